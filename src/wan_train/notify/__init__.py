"""Messages to a person about a run: what there is to say (pure), to whom, and sent once however often things die."""

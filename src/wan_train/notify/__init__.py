"""Messages to a person about a run: which are due (pure), to which services, each sent once despite crashes."""

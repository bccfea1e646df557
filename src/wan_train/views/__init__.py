"""What a person or a script sees of a run: pure renderings of its records."""

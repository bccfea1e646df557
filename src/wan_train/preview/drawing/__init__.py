"""Programs that run in the trainer's environment and import nothing of wan-train."""

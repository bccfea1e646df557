"""Programs that run in the trainer's environment and import nothing from wan-train."""

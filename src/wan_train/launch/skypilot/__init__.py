"""Two programs that run in SkyPilot's own environment, so they import nothing of wan-train."""

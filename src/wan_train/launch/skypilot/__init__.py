"""Two programs that run in SkyPilot's own environment. They import nothing of wan-train; nobody imports them."""

"""What every page that wan-train writes is made of: markup that escapes, one frame, one style."""

"""The only room that knows musubi-tuner: scripts, flags, output grammar, files, failures."""

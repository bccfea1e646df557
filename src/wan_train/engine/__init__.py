"""The only package that knows musubi-tuner: scripts, options, output grammar, files, failures."""

"""The embedded tiny trainer: runs only as a subprocess, with musubi-tuner's script names and options."""

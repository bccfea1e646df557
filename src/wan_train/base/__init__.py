"""Errors, settings, records, files, text, the host and locks: what every package may use."""

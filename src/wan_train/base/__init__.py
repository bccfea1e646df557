"""Errors, settings, records, files, text, the host and locks, for use in every package."""

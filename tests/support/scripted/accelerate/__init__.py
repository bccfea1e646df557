"""Stands in for the accelerate package: its launcher only."""

"""Prepares a machine for training."""

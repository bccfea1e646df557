"""A machine made ready to train."""

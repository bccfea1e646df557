"""The user's pictures, clips and captions: inventory, checks, dataset.toml."""

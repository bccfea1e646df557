"""wan-train: captioned pictures or clips in, two finished Wan 2.2 LoRAs out."""

__version__ = "0.1.0"

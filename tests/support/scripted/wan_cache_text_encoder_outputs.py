"""Stands in for musubi-tuner's text-encoder caching."""

from __future__ import annotations

from scripted_caching import cache

if __name__ == "__main__":
    cache("wan_cache_text_encoder_outputs.py", "text", "missing_caption", model="t5", said="Loading T5: {}")

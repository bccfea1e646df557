"""Stands in for musubi-tuner's latent caching."""

from __future__ import annotations

from scripted_caching import cache

if __name__ == "__main__":
    cache("wan_cache_latents.py", "latents", "bad_image", model="vae", said="Loading VAE model from {}")

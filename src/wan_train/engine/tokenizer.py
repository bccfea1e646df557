"""The T5 tokenizer: the only file that the trainer downloads from the hub while it runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from wan_train.base.home import expanded
from wan_train.base.huggingface import hub_home

REPO = "Wan-AI/Wan2.1-T2V-14B"
SUBFOLDER = "google/umt5-xxl"
"""What the trainer requests (`wan/modules/t5.py`, both supported versions)."""

OFFLINE_ENV: Mapping[str, str] = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def is_cached(environ: Mapping[str, str] | None = None) -> bool:
    """Whether the tokenizer is in the Hugging Face cache that a trainer started with `environ` would use."""
    folder = hub_cache(os.environ if environ is None else environ) / f"models--{REPO.replace('/', '--')}" / "snapshots"
    return any(
        (snapshot / SUBFOLDER / "tokenizer_config.json").is_file()
        and any((snapshot / SUBFOLDER / name).is_file() for name in ("tokenizer.json", "spiece.model"))
        for snapshot in (folder.iterdir() if folder.is_dir() else ())
    )


def cached_file(environ: Mapping[str, str]) -> Path | None:
    """The tokenizer's tokenizer.json in that cache, or None."""
    folder = hub_cache(environ) / f"models--{REPO.replace('/', '--')}" / "snapshots"
    return next(folder.glob(f"*/{SUBFOLDER}/tokenizer.json"), None)


def hub_cache(environ: Mapping[str, str]) -> Path:
    """The hub cache directory. Reads the same variables in the same order as huggingface_hub."""
    if cache := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return expanded(cache)
    return hub_home(environ) / "hub"

"""Small real pictures, and a configuration for a folder of them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from wan_train.dataset.config import load
from wan_train.dataset.model import DatasetConfig


def draw(path: Path, size: tuple[int, int], *, caption: str | None = "a drawing") -> Path:
    Image.linear_gradient("L").resize(size).convert("RGB").save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def config_for(folder: Path, extra: str = "") -> DatasetConfig:
    path = folder.parent / "dataset.toml"
    path.write_text(
        f"""
[general]
resolution = [320, 320]
caption_extension = ".txt"
enable_bucket = true
{extra}
[[datasets]]
image_directory = '{folder}'
cache_directory = '{folder}/cache'
""",
        encoding="utf-8",
    )
    return load(path)

"""The contents of a dataset.toml for the programs: captioned items, their frames, and the names of their caches.

`wan_train.dataset` provides parsing, buckets and crops. Sizes are (width, height) in pixels.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from PIL import Image

from wan_train.dataset import buckets
from wan_train.dataset.buckets import RESOLUTION_STEP, TARGET_FPS, crop_for
from wan_train.dataset.config import load
from wan_train.dataset.jsonl import read
from wan_train.dataset.listing import list_media
from wan_train.dataset.model import DatasetError, MediaKind, Severity, Subset

logger = logging.getLogger(__name__)

Size = tuple[int, int]

_ANIMATIONS = (".gif", ".webp")
"""Clips that Pillow can read: a stand-in for video where no decoder is installed."""
IMAGE_WINDOW = 9
"""Third number of an image bucket in the trainer's log (its `fp_latent_window_size`). Wan does not use it otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One captioned picture or clip."""

    path: Path
    caption: str


def load_datasets(path: Path) -> tuple[Subset, ...]:
    """The datasets of a TOML file, logged as the trainer logs them; raises DatasetError."""
    logger.info("Load dataset config from %s", path)
    subsets = load(path).datasets
    for subset in subsets:
        if subset.directory is not None:
            logger.info("glob %ss in %s", subset.kind, subset.directory)
            logger.info("found %d %ss", len(media_files(subset)), subset.kind)
        logger.info("%s", _summary(subset))
    return subsets


def items_of(subset: Subset) -> Iterator[Item]:
    """Every item; those of a folder in name order. Raises OSError or DatasetError if one cannot be read."""
    if subset.jsonl is not None:
        found = read(subset.jsonl, subset.kind, [Path.cwd()])
        if wrong := [problem for problem in found.problems if problem.severity is Severity.STOPS]:
            raise DatasetError.listing(f"{subset.jsonl} cannot be used", wrong)
        yield from (Item(path=record.path, caption=record.caption) for record in found.records)
        return
    for path in media_files(subset):
        if not subset.caption_extension:
            raise FileNotFoundError(errno.ENOENT, "no caption_extension is set, so no caption is found for", str(path))
        caption = path.with_name(path.stem + subset.caption_extension)
        yield Item(path=path, caption=caption.read_text(encoding="utf-8").strip())


def media_files(subset: Subset) -> list[Path]:
    """Pictures or clips of the folder, in name order."""
    if subset.directory is None:
        return []
    found = list_media(subset.directory, avif=False)
    if subset.kind is MediaKind.IMAGE:
        return [subset.directory / name for name in found.images]
    animated = (name for name in (*found.images, *found.lookalikes) if name.lower().endswith(_ANIMATIONS))
    return [subset.directory / name for name in sorted((*found.videos, *animated))]


def bucket_of(subset: Subset, size: Size) -> Size:
    """The size at which a picture or cached clip is trained; raises ValueError for a picture that is too small."""
    bucket = buckets.bucket_of(subset, size)
    if min(bucket) == 0:
        raise ValueError(f"Image or video size too small: {size[0]}x{size[1]}, a side is below {RESOLUTION_STEP}")
    return bucket


def fit(picture: Image.Image, bucket: Size) -> Image.Image:
    """The picture scaled to cover the bucket and cropped around its centre."""
    if picture.size == bucket:
        return picture
    crop = crop_for(picture.size, bucket)
    filter_ = Image.Resampling.LANCZOS if crop.is_enlarged else Image.Resampling.BOX
    right, bottom = crop.left + bucket[0], crop.top + bucket[1]
    return picture.resize(crop.scaled, filter_).crop((crop.left, crop.top, right, bottom))


def read_clip(path: Path, *, source_fps: float | None) -> list[Image.Image]:
    """The frames of a clip in RGB, thinned to Wan's 16 frames a second when the source's rate is given.

    Raises RuntimeError if the file is a video and PyAV is missing.
    """
    if path.suffix.lower() in _ANIMATIONS:
        with Image.open(path) as animation:
            frames = []
            for number in range(getattr(animation, "n_frames", 1)):
                animation.seek(number)
                frames.append(animation.convert("RGB"))
    else:
        frames = _decode(path)
    if source_fps is None:
        return frames
    seen: dict[int, Image.Image] = {}
    for number, frame in enumerate(frames):
        seen.setdefault(int(number * TARGET_FPS / source_fps), frame)
    return list(seen.values())


def _decode(path: Path) -> list[Image.Image]:
    try:
        # Optional, and only for real videos.
        import av  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise RuntimeError(
            f"{path}: reading video files needs PyAV (pip install av); "
            "the rehearsal reads animated GIF and WebP without it"
        ) from None
    with av.open(str(path)) as container:
        return [cast("Image.Image", frame.to_image()) for frame in container.decode(video=0)]


def text_cache(subset: Subset, stem: str) -> Path:
    return subset.cache_directory / f"{stem}_wan_te.safetensors"


def picture_cache(subset: Subset, stem: str, stored: Size) -> Path:
    return subset.cache_directory / f"{stem}_{stored[0]:04d}x{stored[1]:04d}_wan.safetensors"


def clip_cache(subset: Subset, stem: str, start: int, frames: int, bucket: Size) -> Path:
    name = f"{stem}_{start:05d}-{frames:03d}_{bucket[0]:04d}x{bucket[1]:04d}_wan.safetensors"
    return subset.cache_directory / name


def describe(subset: Subset) -> dict[str, Any]:
    """The entry of `ss_datasets` in a LoRA's metadata."""
    entry: dict[str, Any] = {
        "resolution": list(subset.resolution),
        "caption_extension": subset.caption_extension,
        "batch_size_per_device": subset.batch_size,
        "num_repeats": subset.num_repeats,
        "enable_bucket": subset.enable_bucket,
        "bucket_no_upscale": subset.enable_bucket and subset.bucket_no_upscale,
    }
    if subset.directory is not None:
        entry[f"{subset.kind}_directory"] = subset.directory.name
    if subset.jsonl is not None:
        entry[f"{subset.kind}_jsonl_file"] = subset.jsonl.name
    if subset.video is not None:
        entry["frame_extraction"] = subset.video.frame_extraction.value
        entry["target_frames"] = list(subset.video.target_frames)
    return entry | {"has_control": False}


def _summary(subset: Subset) -> str:
    lines = [
        f"[Dataset {subset.index}]",
        f"  is_image_dataset: {subset.kind is MediaKind.IMAGE}",
        f"  resolution: {subset.resolution}",
        f"  batch_size: {subset.batch_size}",
        f"  num_repeats: {subset.num_repeats}",
        f'  caption_extension: "{subset.caption_extension}"',
        f"  enable_bucket: {subset.enable_bucket}",
        f"  bucket_no_upscale: {subset.enable_bucket and subset.bucket_no_upscale}",
        f'  cache_directory: "{subset.cache_directory}"',
        "  debug_dataset: False",
        f'    {subset.kind}_directory: "{subset.directory}"',
        f'    {subset.kind}_jsonl_file: "{subset.jsonl}"',
    ]
    if subset.video is not None:
        lines += [
            f"    target_frames: {subset.video.target_frames}",
            f"    frame_extraction: {subset.video.frame_extraction}",
        ]
    return "\n".join([*lines, "", ""])

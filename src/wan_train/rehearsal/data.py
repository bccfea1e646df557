"""The dataset file, the items it names, and the names of their caches.

Files and keys are musubi-tuner's, so that a dataset.toml written for it is read here and a ledger kept for
its caches fits ours. Sizes are (width, height) in pixels.
"""

from __future__ import annotations

import errno
import json
import logging
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from PIL import Image

from wan_train.rehearsal.buckets import BucketSelector, Size

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
VIDEO_SUFFIXES = frozenset({".mp4", ".webm", ".avi", ".mkv", ".mov", ".flv", ".wmv", ".m4v", ".mpg", ".mpeg"})
ANIMATION_SUFFIXES = frozenset({".gif", ".webp"})
"""Clips that pillow can read: a stand-in for video where no decoder is installed."""

_SHARED: dict[str, type | tuple[type, ...]] = {
    "resolution": (int, list),
    "caption_extension": str,
    "batch_size": int,
    "num_repeats": int,
    "enable_bucket": bool,
    "bucket_no_upscale": bool,
}
_IMAGE = {
    "image_directory": str,
    "image_jsonl_file": str,
    "cache_directory": str,
    "control_directory": str,
    "fp_latent_window_size": int,
    "fp_1f_clean_indices": list,
    "fp_1f_target_index": int,
    "fp_1f_no_post": bool,
    "flux_kontext_no_resize_control": bool,
}
_VIDEO = {
    "video_directory": str,
    "video_jsonl_file": str,
    "cache_directory": str,
    "control_directory": str,
    "target_frames": list,
    "frame_extraction": str,
    "frame_stride": int,
    "frame_sample": int,
    "max_frames": int,
    "source_fps": (float, int),
    "fp_latent_window_size": int,
}
IMAGE_WINDOW = 9
"""Third number of an image bucket in the trainer's log (its `fp_latent_window_size`); it has no other use
with Wan."""


class MultipleInvalid(ValueError):  # noqa: N818 - the name that the real trainer's traceback shows
    """A dataset file that does not follow the schema; the message has the key's path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One captioned picture or clip."""

    path: Path
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One `[[datasets]]` entry with the values of `[general]` and the defaults filled in."""

    is_image: bool
    directory: Path | None
    jsonl: Path | None
    cache: Path
    resolution: Size
    caption_extension: str | None
    batch_size: int
    num_repeats: int
    enable_bucket: bool
    bucket_no_upscale: bool
    target_frames: tuple[int, ...]
    frame_extraction: str
    frame_stride: int
    frame_sample: int
    max_frames: int
    source_fps: float | None

    @property
    def selector(self) -> BucketSelector:
        """Buckets of training, and of caching pictures."""
        return BucketSelector(
            resolution=self.resolution, enable_bucket=self.enable_bucket, no_upscale=self.bucket_no_upscale
        )

    def items(self) -> Iterator[Item]:
        """Every item in name order, its caption read when it is reached.

        Raises:
            FileNotFoundError: an item has no caption file.
        """
        if self.jsonl is not None:
            key = "image_path" if self.is_image else "video_path"
            for line in self.jsonl.read_text(encoding="utf-8").splitlines():
                if line.strip():
                    record = json.loads(line)
                    yield Item(path=Path(record[key]), caption=record["caption"])
            return
        for path in self.files():
            if not self.caption_extension:
                raise FileNotFoundError(
                    errno.ENOENT, "no caption_extension is set, so no caption is found for", str(path)
                )
            caption = path.with_name(path.stem + self.caption_extension)
            yield Item(path=path, caption=caption.read_text(encoding="utf-8").strip())

    def files(self) -> list[Path]:
        """Pictures or clips of the directory, in name order."""
        if self.directory is None or not self.directory.is_dir():
            return []
        wanted = IMAGE_SUFFIXES if self.is_image else VIDEO_SUFFIXES | ANIMATION_SUFFIXES
        return sorted(path for path in self.directory.iterdir() if path.suffix.lower() in wanted)

    def text_cache(self, stem: str) -> Path:
        return self.cache / f"{stem}_wan_te.safetensors"

    def image_cache(self, stem: str, original: Size) -> Path:
        return self.cache / f"{stem}_{original[0]:04d}x{original[1]:04d}_wan.safetensors"

    def clip_cache(self, stem: str, start: int, frames: int, bucket: Size) -> Path:
        return self.cache / f"{stem}_{start:05d}-{frames:03d}_{bucket[0]:04d}x{bucket[1]:04d}_wan.safetensors"

    def describe(self) -> dict[str, Any]:
        """The entry of `ss_datasets` in a LoRA's metadata."""
        entry: dict[str, Any] = {
            "resolution": list(self.resolution),
            "caption_extension": self.caption_extension,
            "batch_size_per_device": self.batch_size,
            "num_repeats": self.num_repeats,
            "enable_bucket": self.enable_bucket,
            "bucket_no_upscale": self.enable_bucket and self.bucket_no_upscale,
        }
        kind = "image" if self.is_image else "video"
        if self.directory is not None:
            entry[f"{kind}_directory"] = self.directory.name
        if self.jsonl is not None:
            entry[f"{kind}_jsonl_file"] = self.jsonl.name
        if not self.is_image:
            entry["frame_extraction"] = self.frame_extraction
            entry["target_frames"] = list(self.target_frames)
        return entry | {"has_control": False}


def load_datasets(path: Path) -> list[Dataset]:
    """The datasets of a TOML file, logged as the trainer logs them.

    Raises:
        MultipleInvalid: no TOML, an unknown key, or a value of the wrong kind.
        ValueError: no such file, or two datasets with one cache directory.
    """
    logger.info("Load dataset config from %s", path)
    if not path.is_file():
        raise ValueError(f"file not found: {path}")
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise MultipleInvalid(f"{path}: {error}") from error
    _check(config, {"general": dict, "datasets": list}, "data")
    general = config.get("general", {})
    _check(general, _SHARED, "data['general']")
    datasets = [
        _dataset(entry, general, where=f"data['datasets'][{number}]")
        for number, entry in enumerate(config.get("datasets", []))
    ]
    if len({dataset.cache for dataset in datasets}) != len(datasets):
        raise ValueError(
            "cache directory should be unique for each dataset "
            "(note that cache directory is image/video directory if not specified)"
        )
    for number, dataset in enumerate(datasets):
        kind = "images" if dataset.is_image else "videos"
        if dataset.directory is not None:
            logger.info("glob %s in %s", kind, dataset.directory)
            logger.info("found %d %s", len(dataset.files()), kind)
        logger.info("%s", _summary(number, dataset))
    return datasets


def _check(found: dict[str, Any], known: dict[str, Any], where: str) -> None:
    for key, value in found.items():
        if key not in known:
            raise MultipleInvalid(f"extra keys not allowed @ {where}['{key}']")
        wanted = known[key]
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise MultipleInvalid(f"expected {wanted} for dictionary value @ {where}['{key}']")


def _dataset(entry: dict[str, Any], general: dict[str, Any], *, where: str) -> Dataset:
    is_video = "video_directory" in entry or "video_jsonl_file" in entry
    _check(entry, _SHARED | (_VIDEO if is_video else _IMAGE), where)
    both = general | entry
    kind = "video" if is_video else "image"
    directory, jsonl = entry.get(f"{kind}_directory"), entry.get(f"{kind}_jsonl_file")
    if directory is None and jsonl is None:
        raise MultipleInvalid(f"image_directory or image_jsonl_file must be specified @ {where}")
    cache = entry.get("cache_directory", directory)
    if cache is None:
        raise ValueError(f"cache_directory is required @ {where}")
    resolution = both.get("resolution", [960, 544])
    width, height = (resolution, resolution) if isinstance(resolution, int) else resolution
    if "control_directory" in entry:
        raise ValueError(f"the rehearsal trains no control inputs @ {where}['control_directory']")
    return Dataset(
        is_image=not is_video,
        directory=None if directory is None else Path(directory),
        jsonl=None if jsonl is None else Path(jsonl),
        cache=Path(cache),
        resolution=(width, height),
        caption_extension=both.get("caption_extension"),
        batch_size=both.get("batch_size", 1),
        num_repeats=both.get("num_repeats", 1),
        enable_bucket=both.get("enable_bucket", False),
        bucket_no_upscale=both.get("bucket_no_upscale", False),
        # The VAE makes one latent frame of the first picture and one of every four after it.
        target_frames=tuple(sorted({(frames - 1) // 4 * 4 + 1 for frames in entry.get("target_frames", [1])})),
        frame_extraction=entry.get("frame_extraction", "head"),
        frame_stride=entry.get("frame_stride", 1),
        frame_sample=entry.get("frame_sample", 1),
        max_frames=entry.get("max_frames", 129),
        source_fps=entry.get("source_fps"),
    )


def _summary(number: int, dataset: Dataset) -> str:
    kind = "image" if dataset.is_image else "video"
    lines = [
        f"[Dataset {number}]",
        f"  is_image_dataset: {dataset.is_image}",
        f"  resolution: {dataset.resolution}",
        f"  batch_size: {dataset.batch_size}",
        f"  num_repeats: {dataset.num_repeats}",
        f'  caption_extension: "{dataset.caption_extension}"',
        f"  enable_bucket: {dataset.enable_bucket}",
        f"  bucket_no_upscale: {dataset.enable_bucket and dataset.bucket_no_upscale}",
        f'  cache_directory: "{dataset.cache}"',
        "  debug_dataset: False",
        f'    {kind}_directory: "{dataset.directory}"',
        f'    {kind}_jsonl_file: "{dataset.jsonl}"',
    ]
    if not dataset.is_image:
        lines += [
            f"    target_frames: {dataset.target_frames}",
            f"    frame_extraction: {dataset.frame_extraction}",
        ]
    return "\n".join([*lines, "", ""])


def windows(dataset: Dataset, frames: int) -> list[tuple[int, int]]:
    """(start, length) of every stretch that the dataset takes from a clip of this many frames."""
    fitting = [length for length in dataset.target_frames if length <= frames]
    match dataset.frame_extraction:
        case "head":
            return [(0, length) for length in fitting]
        case "chunk":
            return [(i, length) for length in fitting for i in range(0, frames - length + 1, length)]
        case "slide":
            return [(i, length) for length in fitting for i in range(0, frames - length + 1, dataset.frame_stride)]
        case "uniform":
            spans = max(dataset.frame_sample - 1, 1)
            return [
                (int((frames - length) * i / spans), length) for length in fitting for i in range(dataset.frame_sample)
            ]
        case "full":
            return [(0, (min(frames, dataset.max_frames) - 1) // 4 * 4 + 1)]
        case other:
            raise ValueError(f"frame_extraction {other} is not supported")


def read_clip(path: Path, *, source_fps: float | None) -> list[Image.Image]:
    """The frames of a clip in RGB, thinned to Wan's 16 frames a second when the source's rate is given.

    Raises:
        RuntimeError: the file is a video and PyAV is not installed.
    """
    if path.suffix.lower() in ANIMATION_SUFFIXES:
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
        seen.setdefault(int(number * 16.0 / source_fps), frame)
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

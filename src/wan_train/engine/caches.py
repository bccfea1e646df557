"""The trainer's cache files: their names, their required contents, and whether they are complete.

Names and keys are those of musubi-tuner at d0a1930 and v0.3.4 (dataset/image_video_dataset.py, dataset/cache_io.py). A
picture's cache name has the stored size, not the resolution; a clip's has the size it was scaled to. Training uses
every latent cache in the folder that has a text cache of the same stem, whatever the dataset says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from wan_train.engine.tensors import BrokenFileError, read_header

_STRIDE = 8
"""Pixels per latent, in both directions."""
_FRAME_STRIDE = 4
"""Frames per latent after the first."""


class CacheKind(StrEnum):
    """What a cache file holds."""

    LATENTS = "latents"
    TEXT = "text"

    @property
    def ending(self) -> str:
        """The suffix that the trainer searches for. Its glob skips names that begin with a dot."""
        return _ENDINGS[self]


_ENDINGS: Mapping[CacheKind, str] = {
    CacheKind.LATENTS: "_wan.safetensors",
    CacheKind.TEXT: "_wan_te.safetensors",
}
_CLIP = re.compile(r"(?P<stem>.+)_(?P<start>\d{5,})-(?P<frames>\d{3,})_(?P<width>\d{4,})x(?P<height>\d{4,})")
_PICTURE = re.compile(r"(?P<stem>.+)_(?P<width>\d{4,})x(?P<height>\d{4,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheName:
    """A parsed cache name. Sizes are in pixels, 0 for text caches. `start` and `frames` are for clips only."""

    kind: CacheKind
    stem: str
    width: int = 0
    height: int = 0
    start: int | None = None
    frames: int | None = None


def parse(name: str, *, is_clip: bool) -> CacheName | None:
    """Parse a cache file's name; None if the trainer did not name the file.

    Pictures and clips share a suffix, so `is_clip` says which of them the folder's dataset has.
    """
    if name.startswith("."):
        return None
    for kind, ending in _ENDINGS.items():
        if not name.endswith(ending):
            continue
        body = name.removesuffix(ending)
        if kind is CacheKind.TEXT:
            return CacheName(kind=kind, stem=body) if body else None
        match = (_CLIP if is_clip else _PICTURE).fullmatch(body)
        if match is None:
            return None
        numbers = {word: int(text) for word, text in match.groupdict().items() if word != "stem"}
        return CacheName(kind=kind, stem=match["stem"], **numbers)
    return None


def is_read(name: str, kind: CacheKind) -> bool:
    """Whether the trainer reads a file of this name as a cache of that kind."""
    return name.endswith(kind.ending) and not name.startswith(".")


def text_name(stem: str) -> str:
    return f"{stem}{CacheKind.TEXT.ending}"


def picture_name(stem: str, width: int, height: int) -> str:
    """The name of a picture's latent cache, with the size in which the picture is stored."""
    return f"{stem}_{width:04d}x{height:04d}{CacheKind.LATENTS.ending}"


def clip_name(stem: str, start: int, frames: int, bucket: tuple[int, int]) -> str:
    return f"{stem}_{start:05d}-{frames:03d}_{bucket[0]:04d}x{bucket[1]:04d}{CacheKind.LATENTS.ending}"


class Flaw(StrEnum):
    """A flaw in a cache file, whatever it was made from."""

    BROKEN = "broken"
    NOT_FINITE = "not_finite"
    OTHER_SHAPE = "other_shape"
    OTHER_TASK = "other_task"
    OTHER_PRECISION = "other_precision"
    OTHER_CONTENT = "other_content"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """A cache file's header. `shapes` is None if the file is incomplete or not a safetensors file."""

    size: int
    mtime_ns: int
    shapes: Mapping[str, tuple[int, ...]] | None
    caption: str | None = None


def read(path: Path | str) -> Contents | None:
    """Read a file's header; None if there is no such file."""
    try:
        header = read_header(path)
    except BrokenFileError:
        try:
            stat = os.stat(path)  # noqa: PTH116 - as in `read_header`
        except OSError:
            return None
        return Contents(size=stat.st_size, mtime_ns=stat.st_mtime_ns, shapes=None)
    return Contents(
        size=header.size,
        mtime_ns=header.mtime_ns,
        shapes={name: tensor.shape for name, tensor in header.tensors.items()},
        caption=header.metadata.get("caption1"),
    )


def element(found: Contents) -> str | None:
    """The element type in a cache's tensor names; None if the file is not a complete cache."""
    for name in found.shapes or ():
        if match := re.fullmatch(r"(?:latents_\d+x\d+x\d+|varlen_t5)_(\w+)", name):
            return match[1]
    return None


def latent_shape(width: int, height: int, frames: int = 1) -> tuple[int, int, int]:
    """Latent frames, height and width for `frames` frames of width x height pixels."""
    return (frames - 1) // _FRAME_STRIDE + 1, height // _STRIDE, width // _STRIDE


def latents_flaw(
    found: Contents, *, bucket: tuple[int, int] | None, frames: int, image_to_video: bool, element: str
) -> Flaw | None:
    """Why a latent cache cannot be trained in this bucket (None: any) for this task; None if it can."""
    if found.shapes is None:
        return Flaw.BROKEN
    latents = {name: shape for name, shape in found.shapes.items() if re.match(r"latents_\d+x\d+x\d+_", name)}
    if len(latents) != 1:
        return Flaw.OTHER_CONTENT
    ((name, shape),) = latents.items()
    if bucket is not None and shape[1:] != latent_shape(*bucket, frames):
        return Flaw.OTHER_SHAPE
    if not name.endswith(f"_{element}"):
        return Flaw.OTHER_PRECISION
    # An image-to-video cache also works for text-to-video, never the reverse.
    if image_to_video and f"latents_image_{name.removeprefix('latents_')}" not in found.shapes:
        return Flaw.OTHER_TASK
    return None


def text_flaw(found: Contents, *, element: str) -> Flaw | None:
    """Why a text-encoder cache cannot be trained; None if it can."""
    if found.shapes is None:
        return Flaw.BROKEN
    if "varlen_t5_" + element in found.shapes:
        return None
    return Flaw.OTHER_PRECISION if any(name.startswith("varlen_t5_") for name in found.shapes) else Flaw.OTHER_CONTENT

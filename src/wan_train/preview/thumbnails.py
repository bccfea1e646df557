"""Small pictures of drawn cells: JPEGs of single frames, strips of three, and looping clips."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wan_train.base.files import write_whole
from wan_train.preview.model import Cell, PreviewDirectory

if TYPE_CHECKING:
    from PIL.Image import Image

FRAMES_PER_SECOND = 16
"""The rate of Wan 2.2 A14B: `sample_fps` in the trainer's shared configuration."""
FRAME_GAP = 4
"""Pixels between the frames of a clip."""
_CLIP_SIDE = 320
_CLIP_QUALITY = 60
_WEBP_METHOD = 4
"""A compromise between speed and size."""


def is_clip(cell: Cell) -> bool:
    return len(cell.files) > 1


def shown_frames(cell: Cell) -> tuple[str, ...]:
    """The only frame of a picture; the first, the middle and the last of a clip."""
    files = cell.files
    return (files[0], files[len(files) // 2], files[-1]) if is_clip(cell) else files[:1]


def strip(directory: PreviewDirectory, cell: Cell, side: int) -> Image:
    """Return the shown frames side by side. `side` is the longer side of a frame, in pixels.

    Raise OSError or ValueError for files that are not pictures.
    """
    from PIL import Image

    frames = [_opened(directory.path / file, side) for file in shown_frames(cell)]
    width = sum(frame.width for frame in frames) + FRAME_GAP * (len(frames) - 1)
    joined = Image.new("RGB", (width, max(frame.height for frame in frames)), "white")
    left = 0
    for frame in frames:
        joined.paste(frame, (left, 0))
        left += frame.width + FRAME_GAP
    return joined


def jpeg(picture: Image, quality: int) -> bytes:
    """The picture as a JPEG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def clip_file(directory: PreviewDirectory, cell: Cell) -> Path:
    """Return the path of a cell's looping clip, beside the folder of its frames."""
    first = directory.path / cell.files[0]
    return directory.path / f"{(first.parent if first.parent != directory.path else first.with_suffix('')).name}.webp"


def write_clip(directory: PreviewDirectory, cell: Cell) -> Path | None:
    """Write a clip as one small looping WebP, unless it exists. Return None for a picture or unreadable frames."""
    if not is_clip(cell):
        return None
    target = clip_file(directory, cell)
    if target.exists():
        return target
    try:
        frames = [_opened(directory.path / file, _CLIP_SIDE) for file in cell.files]
    except (OSError, ValueError):
        return None
    write_whole(target, _webp(frames))
    return target


def _webp(frames: Sequence[Image]) -> bytes:
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / FRAMES_PER_SECOND),
        loop=0,
        quality=_CLIP_QUALITY,
        method=_WEBP_METHOD,
    )
    return buffer.getvalue()


def _opened(path: Path, side: int) -> Image:
    """Return a picture in RGB with a longer side of at most `side` pixels."""
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small

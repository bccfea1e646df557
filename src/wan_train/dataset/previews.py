"""Previews: small copies of pictures and first frames, and the beginnings of captions."""

from __future__ import annotations

import io
import os
import struct
from codecs import getincrementaldecoder
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wan_train.dataset.captions import as_trained
from wan_train.dataset.listing import list_media
from wan_train.dataset.model import Item, MediaKind
from wan_train.dataset.pictures import quiet_about_size
from wan_train.dataset.video import pyav

if TYPE_CHECKING:
    from PIL.Image import Image

_LONGEST_SIDE = 240
MOST_BYTES = 16_000
"""Limit for one preview; a larger one is compressed more."""
_QUALITIES = (75, 55, 35, 15, 5)
_MOST_PIXELS = 50_000_000
"""Decoding takes three or four bytes per pixel. Above this a preview is not worth the memory."""
_CAPTION_BYTES = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A JPEG of at most `MOST_BYTES` and 240 pixels a side; as in training, EXIF rotation and alpha are ignored."""

    jpeg: bytes
    width: int
    height: int


def previews_of(
    kinds: Mapping[Path, MediaKind], *, on_done: Callable[[int, int], None] = lambda _done, _all: None
) -> dict[Path, Preview]:
    """The previews by path; files that give none are left out. `on_done` gets the number done and the total."""
    workers = max(2, min(4, os.cpu_count() or 1))
    found = {}
    # Pillow and PyAV decode without the interpreter's lock.
    with quiet_about_size(), ThreadPoolExecutor(workers, thread_name_prefix="preview") as pool:
        for number, (path, preview) in enumerate(pool.map(_preview_of, kinds.items()), start=1):
            on_done(number, len(kinds))
            if preview is not None:
                found[path] = preview
    return found


def captions(items: Sequence[Item]) -> dict[Path, str]:
    """The beginning of each item's caption, stripped; captions that are not UTF-8 are left out."""
    found = {}
    for item in items:
        if item.caption is not None:
            more = "…" if len(item.caption) > _CAPTION_BYTES else ""
            found[item.path] = item.caption[:_CAPTION_BYTES].strip() + more
        elif item.caption_path is not None and (text := _beginning(item.caption_path)) is not None:
            found[item.path] = text
    return found


def _preview_of(entry: tuple[Path, MediaKind]) -> tuple[Path, Preview | None]:
    from PIL import Image

    path, kind = entry
    try:
        if kind is MediaKind.IMAGE:
            return path, _of_picture(path)
        if path.is_dir():
            return path, _of_picture(path / list_media(path).images[0])
        return path, _of_video(path)
    except (
        # Pillow's decoders report damage with all of these.
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        struct.error,
        MemoryError,
        Image.DecompressionBombError,
    ):
        return path, None


def _of_picture(path: Path) -> Preview | None:
    from PIL import Image

    with Image.open(path) as image:
        # Decode a JPEG at down to an eighth of its size, where that is enough.
        image.draft("RGB", (_LONGEST_SIDE, _LONGEST_SIDE))
        if image.width * image.height > _MOST_PIXELS:
            return None
        return _small(image.convert("RGB"))


def _of_video(path: Path) -> Preview | None:
    av = pyav()
    if av is None:
        return None
    try:
        with av.open(os.fspath(path)) as container:
            for frame in container.decode(video=0):
                return _small(frame.to_image()) if frame.width * frame.height <= _MOST_PIXELS else None
    except av.FFmpegError:
        return None
    return None


def _small(image: Image) -> Preview:
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    payload = b""
    for quality in _QUALITIES:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, optimize=True)
        payload = file.getvalue()
        if len(payload) <= MOST_BYTES:
            break
    return Preview(jpeg=payload, width=image.width, height=image.height)


def _beginning(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            data = file.read(_CAPTION_BYTES + 1)
    except OSError:
        return None
    is_cut = len(data) > _CAPTION_BYTES
    try:
        # Only the last character may be cut in two.
        text = getincrementaldecoder("utf-8")().decode(data[:_CAPTION_BYTES], final=not is_cut)
    except UnicodeDecodeError:
        return None
    return as_trained(text) + ("…" if is_cut else "")

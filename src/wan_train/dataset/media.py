"""Sizes and soundness of pictures and videos from their headers; nothing is decoded that looks whole."""

from __future__ import annotations

import importlib
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from wan_train.dataset.model import ProblemKind

_TAIL = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Width and height in pixels as stored: like the trainer, without turning by EXIF orientation."""

    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A video's size in pixels and its frames; None where its header does not tell."""

    width: int
    height: int
    frames: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """Why a file cannot be used, in words for the user."""

    kind: ProblemKind
    what: str


@contextmanager
def quiet_about_size() -> Iterator[None]:
    """Inside, Pillow's warning about large pictures is off; the inventory judges their size itself."""
    from PIL import Image  # noqa: PLC0415 - Pillow takes 30 ms to import and many commands never look at a picture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def largest_unwarned_picture() -> int:
    """Pixels beyond which Pillow warns of a decompression bomb; beyond twice as many it refuses, in the
    trainer too.
    """
    from PIL import Image  # noqa: PLC0415 - as above

    return Image.MAX_IMAGE_PIXELS or 89_478_485


def read_picture(path: Path) -> Picture | Unreadable:
    """The size of a picture, or why the trainer will fail on it.

    Found now: not a picture, empty, cut off (PNG, JPEG, WebP and BMP lack their end: then, and only then, the
    picture is decoded for proof), too many pixels. Not found: damage in the middle of a file, which would
    need a full decode of every picture.
    """
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 - as above

    try:
        with path.open("rb") as file:
            width, height = _size_if_whole(file)
    except UnidentifiedImageError:
        what = "is empty" if path.stat().st_size == 0 else "is not a picture that can be read"
        return Unreadable(kind=ProblemKind.UNREADABLE_MEDIA, what=what)
    except Image.DecompressionBombError:
        limit = 2 * largest_unwarned_picture() // 1_000_000
        what = f"has more than {limit} million pixels, which the trainer's image library refuses"
        return Unreadable(kind=ProblemKind.TOO_LARGE, what=what)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError) as error:
        # Pillow's decoders report damage with all of these; its "image file is truncated" is an OSError.
        return _damaged(path, error)
    return Picture(width=width, height=height)


def read_clip(path: Path) -> Clip | Unreadable | None:
    """The size and length of a video; None without PyAV, which is not required. Nothing is decoded."""
    try:
        if path.is_dir():
            raise IsADirectoryError
        if path.stat().st_size == 0:
            return Unreadable(kind=ProblemKind.UNREADABLE_MEDIA, what="is empty")
    except OSError as error:
        return _damaged(path, error)
    try:
        # Optional and heavy. By name, because type checkers have no stubs for it where it is not installed.
        av = importlib.import_module("av")
    except ImportError:
        return None
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.video:
                return Unreadable(kind=ProblemKind.UNREADABLE_MEDIA, what="holds no video")
            stream = container.streams.video[0]
            # Matroska and WebM headers do not say; their packets are counted, still without decoding.
            frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
            return Clip(width=stream.width, height=stream.height, frames=frames or None)
    except (av.FFmpegError, OSError, ValueError) as error:
        return _damaged(path, error)


def _size_if_whole(file: BinaryIO) -> tuple[int, int]:
    from PIL import Image  # noqa: PLC0415 - as above

    with Image.open(file) as image:
        size = image.size
        whole = _has_its_end(file, image.format)
    if not whole:
        file.seek(0)
        with Image.open(file) as image:
            image.load()
    return size


def _damaged(path: Path, error: BaseException) -> Unreadable:
    match error:
        case IsADirectoryError():
            noun = "is a folder with the name of a picture or video"
            return Unreadable(kind=ProblemKind.NOT_A_FILE, what=noun)
        case FileNotFoundError():
            is_link = path.is_symlink()
            what = "is a link to a file that does not exist" if is_link else "does not exist"
            return Unreadable(kind=ProblemKind.NOT_A_FILE, what=what)
        case _:
            words = str(getattr(error, "strerror", None) or error) or type(error).__name__
    if "truncated" in words.lower() or "unexpected end" in words.lower():
        return Unreadable(kind=ProblemKind.TRUNCATED_MEDIA, what="is cut off: its end is missing")
    return Unreadable(kind=ProblemKind.UNREADABLE_MEDIA, what=f"cannot be read: {words}")


def _has_its_end(file: BinaryIO, format_name: str | None) -> bool:
    """Whether the file ends as its format says; True for formats whose end is not known here."""
    size = os.fstat(file.fileno()).st_size
    match format_name:
        case "PNG":
            return _ends_with(file, size, b"IEND\xaeB`\x82")
        case "JPEG" | "MPO":
            return _ends_with(file, size, b"\xff\xd9")
        case "WEBP":
            return size >= 8 + _number_at(file, 4)
        case "BMP":
            return size >= _number_at(file, 2)
        case _:
            return True


def _ends_with(file: BinaryIO, size: int, mark: bytes) -> bool:
    """Whether `mark` ends the file, or is followed by nothing but what some cameras append."""
    for length in (len(mark), _TAIL):
        file.seek(max(0, size - length))
        if mark in file.read(length):
            return True
    return False


def _number_at(file: BinaryIO, offset: int) -> int:
    file.seek(offset)
    return int.from_bytes(file.read(4), "little")

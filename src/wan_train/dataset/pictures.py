"""Read picture headers: size, format, damage. Only a picture that seems cut off is decoded."""

from __future__ import annotations

import errno
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from wan_train.dataset.model import ProblemKind

if TYPE_CHECKING:
    from PIL import Image

_TAIL = 64 * 1024
_ORIENTATION = 0x0112
# The EXIF entry: tag, type short, count 1, value 1.
_UPRIGHT_LITTLE = b"\x12\x01\x03\x00\x01\x00\x00\x00\x01\x00"
_UPRIGHT_BIG = b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x01"
_LIKELY = ((b"\xff\xd8\xff", ("JPEG",)), (b"\x89PNG\r\n\x1a\n", ("PNG",)))
_CUT_OFF = "is cut off: its end is missing"
# The last is Pillow's only message about a WebP with fewer bytes than its header declares.
_SIGNS_OF_TRUNCATION = ("truncated", "unexpected end", "could not create decoder object")
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
# Files that often have a picture's extension, but that Pillow does not read.
_FOREIGN = (
    (4, b"ftyphei", "a HEIC photo"),
    (4, b"ftyphev", "a HEIC photo"),
    (4, b"ftypmif1", "a HEIC photo"),
    (4, b"ftypmsf1", "a HEIC photo"),
    (4, b"ftypavi", "an AVIF picture"),
    (4, b"ftyp", "a video"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (0, b"\x00\x00\x00\x0cJXL", "a JPEG XL picture"),
    (0, b"%PDF", "a PDF"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"version https://git-lfs", "a Git LFS pointer instead of the file"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture's header. Width and height are in stored pixels: like the trainer, they ignore the EXIF orientation.

    `format` and `mode` are Pillow's names, `size` is in bytes, `orientation` is the EXIF number (1 is upright).
    """

    width: int
    height: int
    format: str
    mode: str
    size: int
    orientation: int = 1
    is_animated: bool = False
    has_alpha: bool = False


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why a file cannot be used, as a phrase for the user."""

    kind: ProblemKind
    what: str


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; raises OSError, also for pipes and devices, where reading might never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise IsADirectoryError if stat.S_ISDIR(mode) else OSError(errno.EINVAL, "not a regular file")
    return os.fdopen(descriptor, "rb")


@contextmanager
def quiet_about_size() -> Iterator[None]:
    """Silence Pillow's warnings about large pictures; the checks report them."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def largest_unwarned_picture() -> int:
    """Pixels above which Pillow warns of a decompression bomb; above twice that it refuses, also in the trainer."""
    from PIL import Image

    return Image.MAX_IMAGE_PIXELS or 89_478_485


def read_picture(path: Path) -> Picture | Unreadable:
    """The header of a picture, or why the trainer will fail on it.

    A PNG, JPEG or BMP without its end is decoded to confirm the damage. Damage in the middle of a file is not found,
    since that needs a full decode of every picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with open_regular(path) as file:
            return _whole(file)
    except UnidentifiedImageError:
        return Unreadable(ProblemKind.UNREADABLE_MEDIA, _unidentified(path))
    except Image.DecompressionBombError:
        limit = 2 * largest_unwarned_picture() // 1_000_000
        what = f"has more than {limit} million pixels; the trainer's image library refuses it"
        return Unreadable(ProblemKind.TOO_LARGE, what)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError) as error:
        # Pillow's decoders report damage with all of these; its "image file is truncated" is an OSError.
        return damaged(path, error)


def _whole(file: BinaryIO) -> Picture:
    from PIL import Image

    size = os.fstat(file.fileno()).st_size
    head = file.read(32)
    file.seek(0)
    # Without a known format, Pillow tries all of its decoders in turn.
    likely = next((formats for mark, formats in _LIKELY if head.startswith(mark)), None)
    with Image.open(file, formats=likely) as image:
        found = Picture(
            width=image.width,
            height=image.height,
            format=image.format or "",
            mode=image.mode,
            size=size,
            orientation=_orientation(image),
            # The other pictures in an MPO are a camera's previews and depth maps.
            is_animated=image.format != "MPO" and getattr(image, "is_animated", False),
            has_alpha=image.mode in _ALPHA_MODES or "transparency" in image.info,
        )
        whole = _has_its_end(file, image.format, size)
    if not whole:
        file.seek(0)
        with Image.open(file) as image:
            image.load()
    return found


def _orientation(image: Image.Image) -> int:
    exif = image.info.get("exif", b"")
    # Parsing costs as much as opening. Most pictures lack this tag (0x0112, a short, in either byte order) or have a 1.
    if b"\x12\x01\x03\x00" not in exif and b"\x01\x12\x00\x03" not in exif:
        return 1
    if exif.count(_UPRIGHT_LITTLE) + exif.count(_UPRIGHT_BIG) == exif.count(b"\x12\x01\x03\x00") + exif.count(
        b"\x01\x12\x00\x03"
    ):
        return 1
    value = image.getexif().get(_ORIENTATION)
    return value if isinstance(value, int) and value in range(1, 9) else 1


def _unidentified(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "is empty"
    inside = next((name for place, mark, name in _FOREIGN if head[place:].startswith(mark)), None)
    if inside is None and head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        inside = "a web page"
    return f"contains {inside} despite its extension" if inside else "is not a readable picture"


def damaged(path: Path, error: BaseException) -> Unreadable:
    """What an error while reading or decoding a file means."""
    match error:
        case IsADirectoryError():
            return Unreadable(ProblemKind.NOT_A_FILE, "is a folder named like a picture or video")
        case FileNotFoundError():
            is_link = path.is_symlink()
            what = "is a link to a file that does not exist" if is_link else "does not exist"
            return Unreadable(ProblemKind.NOT_A_FILE, what)
        case _:
            words = str(getattr(error, "strerror", None) or error) or type(error).__name__
    if any(sign in words.lower() for sign in _SIGNS_OF_TRUNCATION):
        return Unreadable(ProblemKind.TRUNCATED_MEDIA, _CUT_OFF)
    return Unreadable(ProblemKind.UNREADABLE_MEDIA, f"cannot be read: {words}")


def _has_its_end(file: BinaryIO, format_name: str | None, size: int) -> bool:
    """Whether the file ends as its format requires; True for formats without such a rule here."""
    match format_name:
        case "PNG":
            return _ends_with(file, size, b"IEND\xaeB`\x82")
        case "JPEG" | "MPO":
            return _ends_with(file, size, b"\xff\xd9")
        case "BMP":
            file.seek(2)
            return size >= int.from_bytes(file.read(4), "little")
        case _:
            return True


def _ends_with(file: BinaryIO, size: int, mark: bytes) -> bool:
    """Whether `mark` ends the file or is in its tail, since some cameras append data."""
    for length in (len(mark), _TAIL):
        file.seek(max(0, size - length))
        if mark in file.read(length):
            return True
    return False

"""Which files of a folder the trainer sees. Like its glob, this checks only names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# musubi-tuner globs each extension in lower and in upper case on a case-sensitive file system,
# so it does not see `.Png` (IMAGE_EXTENSIONS and VIDEO_EXTENSIONS, d0a1930 and v0.3.4).
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_AVIF = (".avif",)
_VIDEOS = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".flv", ".wmv", ".m4v", ".mpg", ".mpeg")
_WINDOWS = re.compile(r"(?:^|/)(?:[A-Za-z]:(?:[\\/]|$)|\\\\)")
# People take these for training files, but the trainer ignores them.
_LOOKALIKES = (".gif", ".tif", ".tiff", ".heic", ".heif", ".jxl", ".jfif", ".ico", ".psd", ".ts", ".3gp")


def _both_cases(extensions: tuple[str, ...]) -> tuple[str, ...]:
    return extensions + tuple(extension.upper() for extension in extensions)


IMAGE_EXTENSIONS = _both_cases(_IMAGES)
AVIF_EXTENSIONS = _both_cases(_AVIF)
VIDEO_EXTENSIONS = _both_cases(_VIDEOS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The names in one folder, sorted. `lookalikes` are pictures or videos of unsupported types or extensions."""

    images: tuple[str, ...]
    videos: tuple[str, ...]
    lookalikes: tuple[str, ...]
    subfolders: tuple[str, ...]
    others: tuple[str, ...]


def list_media(directory: Path, *, avif: bool = True) -> Listing:
    """The names of `directory` by kind; raises OSError.

    The trainer's glob skips names with a leading dot. It takes a folder called `x.png` for an image, so that folder is
    in both lists.
    """
    image_endings = IMAGE_EXTENSIONS + (AVIF_EXTENSIONS if avif else ())
    known = tuple(extension.lower() for extension in (*_IMAGES, *_AVIF, *_VIDEOS, *_LOOKALIKES))
    images: list[str] = []
    videos: list[str] = []
    lookalikes: list[str] = []
    subfolders: list[str] = []
    others: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            name = entry.name
            if _is_folder(entry):
                subfolders.append(name)
            if name.startswith("."):
                continue
            if name.endswith(image_endings):
                images.append(name)
            elif name.endswith(VIDEO_EXTENSIONS):
                videos.append(name)
            elif not _is_folder(entry):
                (lookalikes if name.lower().endswith(known) else others).append(name)
    return Listing(
        images=tuple(sorted(images)),
        videos=tuple(sorted(videos)),
        lookalikes=tuple(sorted(lookalikes)),
        subfolders=tuple(sorted(subfolders)),
        others=tuple(sorted(others)),
    )


def media_subfolders(directory: Path, subfolders: tuple[str, ...], *, at_most: int = 200) -> Iterator[Path]:
    """The subfolders, among the first `at_most`, that directly contain pictures or videos."""
    for name in subfolders[:at_most]:
        try:
            listing = list_media(directory / name)
        except OSError:
            continue
        if listing.images or listing.videos:
            yield directory / name


def pattern_characters(directory: Path) -> str:
    """The characters of a cache folder's path that the trainer reads as a pattern; "" if the path is safe.

    The trainer lists caches with an unescaped glob, so it finds nothing in such a folder.
    Source: musubi-tuner get_all_latent_cache_files and prepare_for_training at both versions.
    """
    return " ".join(sorted(set(str(directory)) & set("[]*?")))


def is_windows_path(path: Path | str) -> bool:
    r"""Whether a path that does not exist is a Windows path (`C:\cats`, `\\box\cats`), also after a local folder."""
    return _WINDOWS.search(os.fspath(path)) is not None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a symbolic link that points to itself
        return False

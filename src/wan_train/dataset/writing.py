"""A new dataset.toml for a folder of pictures or clips, from the shipped template."""

from __future__ import annotations

import os
from pathlib import Path

import tomlkit
from tomlkit.items import AoT, Table

from wan_train.base.files import move_without_overwriting, write_whole
from wan_train.base.settings import shipped_configs
from wan_train.dataset.listing import list_media, pattern_characters
from wan_train.dataset.model import DatasetError, Problem, ProblemKind, Severity

CACHE_FOLDER = "cache"
VIDEO_CACHE_FOLDER = "cache_video"


def text_for_directory(
    directory: Path,
    *,
    resolution: tuple[int, int] = (960, 960),
    batch_size: int = 1,
    num_repeats: int = 1,
    caption_extension: str = ".txt",
    cache_directory: Path | None = None,
) -> str:
    """The text of a dataset.toml for the pictures, the videos, or both, directly inside `directory`.

    A folder with both gets two datasets, the videos' cache beside the pictures' as `cache_video`. Paths are
    absolute. Raises DatasetError for a folder that is missing, unreadable, without media, or cannot be named
    in the file.
    """
    directory = Path(os.path.abspath(directory))  # noqa: PTH100 - keep symbolic links as the user wrote them
    try:
        listing = list_media(directory)
    except OSError as error:
        raise _refused(directory, error.strerror or str(error), "Name a folder that you may read") from None
    if not listing.images and not listing.videos:
        raise _refused(directory, "holds no pictures and no videos", "Put pictures and their .txt captions into it")
    if not _is_utf8(directory) or (cache_directory is not None and not _is_utf8(cache_directory)):
        raise _refused(directory, "has a name that is not UTF-8, which TOML cannot hold", "Rename the folder")
    image_cache = Path(os.path.abspath(cache_directory or directory / CACHE_FOLDER))  # noqa: PTH100 - as above
    video_cache = image_cache.with_name(VIDEO_CACHE_FOLDER) if listing.images else image_cache

    pattern = pattern_characters(image_cache) or pattern_characters(video_cache)
    if pattern:
        what = f"contains {pattern}; the trainer takes that for a pattern and finds no caches"
        raise _refused(image_cache, what, "Rename the folder without [ ] * ?, or choose another cache folder")

    document = tomlkit.parse(template())
    general, datasets = document["general"], document["datasets"]
    if not isinstance(general, Table) or not isinstance(datasets, AoT):
        raise TypeError("the shipped template has [general] and [[datasets]]")
    general["resolution"] = list(resolution)
    general["batch_size"] = batch_size
    general["caption_extension"] = caption_extension
    for entry, source, cache in (
        (datasets[0], "image_directory", image_cache),
        (datasets[1], "video_directory", video_cache),
    ):
        entry[source] = str(directory)
        entry["cache_directory"] = str(cache)
        entry["num_repeats"] = num_repeats
    if not listing.videos:
        del datasets[1]
    if not listing.images:
        del datasets[0]
    return tomlkit.dumps(document).rstrip() + "\n"


def write_for_directory(
    directory: Path,
    target: Path,
    *,
    resolution: tuple[int, int] = (960, 960),
    batch_size: int = 1,
    num_repeats: int = 1,
    caption_extension: str = ".txt",
    cache_directory: Path | None = None,
    overwrite: bool = False,
) -> str:
    """Write `text_for_directory` to `target` in one piece and return it.

    Without `overwrite` an existing file is never touched. Raises DatasetError as `text_for_directory` does,
    and when `target` exists or cannot be written.
    """
    text = text_for_directory(
        directory,
        resolution=resolution,
        batch_size=batch_size,
        num_repeats=num_repeats,
        caption_extension=caption_extension,
        cache_directory=cache_directory,
    )
    try:
        if overwrite:
            write_whole(target, text, mode=0o644)
        else:
            _write_new(target, text)
    except FileExistsError:
        raise _refused(target, "exists already", "Use it as it is, or allow it to be overwritten") from None
    except OSError as error:
        raise _refused(target, error.strerror or str(error), "Choose a place that you may write to") from None
    return text


def _write_new(target: Path, text: str) -> None:
    whole = target.with_name(f".{target.name}.new-{os.getpid()}")
    write_whole(whole, text, mode=0o644)
    try:
        move_without_overwriting(whole, target)
    finally:
        whole.unlink(missing_ok=True)


def template() -> str:
    """The shipped dataset.toml: [general], a dataset of pictures, a dataset of clips, each key with its comment."""
    return (shipped_configs() / "dataset.toml").read_text(encoding="utf-8")


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _refused(path: Path, what: str, mend: str) -> DatasetError:
    problem = Problem(kind=ProblemKind.EMPTY_DATASET, severity=Severity.STOPS, path=path, what=what, mend=mend)
    return DatasetError.listing("no dataset.toml was written", [problem])

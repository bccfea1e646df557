"""A dataset.toml for several folders and resolutions, new or rewritten with the comments of the one that is there."""

from __future__ import annotations

import os
import re
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
import tomlkit.exceptions
from tomlkit.items import AoT, Table

from wan_train.dataset.config import load
from wan_train.dataset.listing import list_media
from wan_train.dataset.model import DatasetError, FrameExtraction, MediaKind, Problem, ProblemKind, Severity
from wan_train.dataset.writing import CACHE_FOLDER, VIDEO_CACHE_FOLDER, template, text_for_directory

_SOURCES = {MediaKind.IMAGE: "image_directory", MediaKind.VIDEO: "video_directory"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """Values to be written; None (or nothing) leaves what is there, in a new file the guide's.

    With several `resolutions` (width, height in pixels) each folder gets one dataset for each of them.
    """

    resolutions: tuple[tuple[int, int], ...] = ()
    batch_size: int | None = None
    num_repeats: int | None = None
    caption_extension: str | None = None
    target_frames: tuple[int, ...] = ()
    frame_extraction: FrameExtraction | None = None
    frame_stride: int | None = None
    frame_sample: int | None = None
    max_frames: int | None = None
    source_fps: float | None = None

    def of_clips(self) -> dict[str, Any]:
        """The keys that only datasets of clips take."""
        values = {
            "target_frames": list(self.target_frames) or None,
            "frame_extraction": self.frame_extraction.value if self.frame_extraction is not None else None,
            "frame_stride": self.frame_stride,
            "frame_sample": self.frame_sample,
            "max_frames": self.max_frames,
            # The trainer takes a decimal number only.
            "source_fps": float(self.source_fps) if self.source_fps is not None else None,
        }
        return {key: value for key, value in values.items() if value is not None}


def compose(folders: Sequence[Path], wishes: Wishes, *, existing: str | None) -> str:
    """The text of a dataset.toml for the media directly inside `folders`; raises DatasetError.

    Of an `existing` text, comments, order, other datasets and all values that were not asked for stay. Every dataset
    has a cache directory of its own. The result was read back by the rules of the trainer.
    """
    folders = [Path(os.path.abspath(folder)) for folder in folders]  # noqa: PTH100 - keep symbolic links as written
    first = text_for_directory(folders[0])
    kinds = {folder: _kinds(folder) for folder in folders}
    if wishes.of_clips() and not any(MediaKind.VIDEO in found for found in kinds.values()):
        raise _refused(", ".join(wishes.of_clips()), "is for clips, and there are none", "Leave it out")
    try:
        document = tomlkit.parse((existing if existing is not None else first).replace("\r\n", "\n").lstrip("\ufeff"))
        _fill(document, folders, kinds, wishes)
        text = _spaced(tomlkit.dumps(document).rstrip() + "\n")
    except (tomlkit.exceptions.TOMLKitError, TypeError, KeyError, ValueError, IndexError) as error:
        what = f"cannot be changed without losing its layout ({error})"
        raise _refused("dataset.toml", what, "Write to another file with --output") from None
    _verify(text)
    return text


def _spaced(text: str) -> str:
    """An empty line before every dataset, which the editor forgets where it adds keys; the values stay."""
    spaced = re.sub(r"(?<=[^\n])\n\[\[datasets\]\]", "\n\n[[datasets]]", text)
    return spaced if tomllib.loads(spaced) == tomllib.loads(text) else text


def _kinds(folder: Path) -> tuple[MediaKind, ...]:
    try:
        listing = list_media(folder)
    except OSError as error:
        raise _refused(str(folder), error.strerror or str(error), "Name a folder that you may read") from None
    found = [kind for kind, names in zip(MediaKind, (listing.images, listing.videos), strict=True) if names]
    if not found:
        raise _refused(str(folder), "holds no pictures and no videos", "Name a folder with media directly in it")
    return tuple(found)


def _fill(
    document: tomlkit.TOMLDocument, folders: Sequence[Path], kinds: dict[Path, tuple[MediaKind, ...]], wishes: Wishes
) -> None:
    entries = document.get("datasets")
    if not isinstance(entries, AoT):
        raise TypeError("datasets are not written as [[datasets]]")
    general = document.get("general", {})
    if len(wishes.resolutions) == 1 and isinstance(general, Table):
        general["resolution"] = list(wishes.resolutions[0])
    for key, value in (("batch_size", wishes.batch_size), ("caption_extension", wishes.caption_extension)):
        if value is not None:
            _set_everywhere(general, entries, key, value)
    for folder in folders:
        for kind in kinds[folder]:
            for entry in _entries_of(entries, folder, kind, wishes.resolutions, general.get("resolution")):
                if wishes.num_repeats is not None:
                    entry["num_repeats"] = wishes.num_repeats
                for key, value in wishes.of_clips().items() if kind is MediaKind.VIDEO else ():
                    entry[key] = value


def _set_everywhere(general: object, entries: AoT, key: str, value: Any) -> None:  # noqa: ANN401 - a TOML value
    holders = [entry for entry in entries if key in entry]
    if isinstance(general, Table):
        holders.append(general)
    for holder in holders or list(entries):
        holder[key] = value


def _entries_of(
    entries: AoT, folder: Path, kind: MediaKind, resolutions: Sequence[tuple[int, int]], default: object
) -> Iterator[Table]:
    """One entry for each resolution: those that are there already, by resolution and then in turn, and new ones."""
    source = _SOURCES[kind]
    there = [entry for entry in entries if os.path.abspath(str(entry.get(source, ""))) == str(folder)]  # noqa: PTH100 - as above
    if not resolutions:
        if not there:
            there = [_new(entries, folder, kind, _cache_name(kind, None))]
        yield from there
        return
    is_many = len(resolutions) > 1
    by_resolution: dict[tuple[int, int], Table] = {}
    for entry in list(there):
        size = _pair(entry.get("resolution", default))
        if size in resolutions and size not in by_resolution:
            by_resolution[size] = entry
            there.remove(entry)
    for size in resolutions:
        entry = by_resolution.get(size)
        if entry is None:
            spare = there.pop(0) if there else None
            entry = (
                spare
                if spare is not None
                else _new(entries, folder, kind, _cache_name(kind, size if is_many else None))
            )
        if is_many or "resolution" in entry:
            entry["resolution"] = list(size)
        yield entry
    for surplus in there:
        del entries[next(index for index, entry in enumerate(entries) if entry is surplus)]


def _pair(value: object) -> tuple[int, int]:
    sides = value if isinstance(value, list) else [value, value]
    whole = [side for side in sides if isinstance(side, int)]
    return (int(whole[0]), int(whole[1])) if len(whole) == len(sides) == 2 else (0, 0)  # noqa: PLR2004 - width, height


def _cache_name(kind: MediaKind, size: tuple[int, int] | None) -> str:
    name = CACHE_FOLDER if kind is MediaKind.IMAGE else VIDEO_CACHE_FOLDER
    return f"{name}_{size[0]}x{size[1]}" if size is not None else name


def _new(entries: AoT, folder: Path, kind: MediaKind, cache: str) -> Table:
    shipped = tomlkit.parse(template())["datasets"]
    if not isinstance(shipped, AoT):
        raise TypeError("the shipped template has [[datasets]]")
    entry = shipped[0 if kind is MediaKind.IMAGE else 1]
    if not isinstance(entry, Table):
        raise TypeError("the shipped template has tables")
    taken = {os.path.abspath(str(other.get("cache_directory", ""))) for other in entries}  # noqa: PTH100 - as above
    path, number = folder / cache, 2
    while str(path) in taken:
        path, number = folder / f"{cache}_{number}", number + 1
    entry[_SOURCES[kind]] = str(folder)
    entry["cache_directory"] = str(path)
    entries.append(entry)
    return entries[-1]


def _verify(text: str) -> None:
    with tempfile.TemporaryDirectory(prefix="wan-train-") as scratch:
        draft = Path(scratch) / "dataset.toml"
        draft.write_text(text, encoding="utf-8")
        load(draft)


def _refused(key: str, what: str, mend: str) -> DatasetError:
    problem = Problem(kind=ProblemKind.WRONG_VALUE, severity=Severity.STOPS, key=key, what=what, mend=mend)
    return DatasetError.listing("no dataset.toml was written", [problem])

"""A dataset.toml for folders of pictures or clips: new from the shipped template, or an existing one changed."""

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

from wan_train.base.files import move_without_overwriting, write_whole
from wan_train.base.settings import shipped_configs
from wan_train.dataset.config import load
from wan_train.dataset.listing import list_media, pattern_characters
from wan_train.dataset.model import DatasetError, FrameExtraction, MediaKind, Problem, ProblemKind, Severity

_SOURCES = {MediaKind.IMAGE: "image_directory", MediaKind.VIDEO: "video_directory"}
_CACHES = {MediaKind.IMAGE: "cache", MediaKind.VIDEO: "cache_video"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigValues:
    """Values to write; None (or nothing) keeps what is there, or the guide's value in a new file.

    With several `resolutions` (width, height in pixels) each folder gets one dataset for each.
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

    def video_values(self) -> dict[str, Any]:
        """The keys that only datasets of clips have."""
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


def text_for_directory(directory: Path) -> str:
    """The text of a dataset.toml, with absolute paths, for the pictures and videos directly inside `directory`.

    Raises DatasetError for a folder that is missing, unreadable, without media, or cannot be named in the file.
    """
    directory = Path(os.path.abspath(directory))  # noqa: PTH100 - keep symbolic links as the user wrote them
    try:
        listing = list_media(directory)
    except OSError as error:
        raise _refused(directory, error.strerror or str(error), "Choose a folder that you can read") from None
    if not listing.images and not listing.videos:
        raise _refused(directory, "contains no pictures and no videos", "Add pictures and their .txt captions")
    try:
        str(directory).encode()
    except UnicodeEncodeError:
        what = "has a name that is not UTF-8, which TOML cannot hold"
        raise _refused(directory, what, "Rename the folder") from None
    if pattern := pattern_characters(directory):
        what = f"contains {pattern}; the trainer reads that as a pattern and finds no caches"
        raise _refused(directory, what, "Rename the folder without [ ] * ?")
    document = tomlkit.parse(_template())
    datasets = document["datasets"]
    if not isinstance(datasets, AoT):
        raise TypeError("the shipped template has [[datasets]]")
    for entry, kind in zip(datasets, MediaKind, strict=True):
        entry[_SOURCES[kind]] = str(directory)
        entry["cache_directory"] = str(directory / _CACHES[kind if listing.images else MediaKind.IMAGE])
    if not listing.videos:
        del datasets[1]
    if not listing.images:
        del datasets[0]
    return tomlkit.dumps(document).rstrip() + "\n"


def write_for_directory(directory: Path, target: Path) -> str:
    """Write `text_for_directory` to `target` in one piece and return it; an existing file is never touched.

    Raises DatasetError as `text_for_directory` does, and when `target` exists or cannot be written.
    """
    text = text_for_directory(directory)
    whole = target.with_name(f".{target.name}.new-{os.getpid()}")
    try:
        write_whole(whole, text, mode=0o644)
        try:
            move_without_overwriting(whole, target)
        finally:
            whole.unlink(missing_ok=True)
    except FileExistsError:
        raise _refused(target, "exists already", "Use it, or choose another file") from None
    except OSError as error:
        raise _refused(target, error.strerror or str(error), "Choose a folder that you can write to") from None
    return text


def _template() -> str:
    """The shipped dataset.toml: [general], a dataset of pictures, a dataset of clips, each key with its comment."""
    return (shipped_configs() / "dataset.toml").read_text(encoding="utf-8")


def _refused(subject: Path | str, what: str, fix: str) -> DatasetError:
    """About a path, or about a key of the file."""
    if isinstance(subject, Path):
        problem = Problem(kind=ProblemKind.EMPTY_DATASET, severity=Severity.STOPS, path=subject, what=what, fix=fix)
    else:
        problem = Problem(kind=ProblemKind.WRONG_VALUE, severity=Severity.STOPS, key=subject, what=what, fix=fix)
    return DatasetError.listing("no dataset.toml was written", [problem])


def compose(folders: Sequence[Path], wishes: ConfigValues, *, existing: str | None) -> str:
    """The text of a dataset.toml for the media directly inside `folders`; raises DatasetError.

    An `existing` text keeps its comments, order, other datasets and all other values. Every dataset has its own cache
    directory. The result was read back by the trainer's rules.
    """
    folders = [Path(os.path.abspath(folder)) for folder in folders]  # noqa: PTH100 - keep symbolic links as written
    first = text_for_directory(folders[0])
    kinds = {folder: _kinds(folder) for folder in folders}
    if wishes.video_values() and not any(MediaKind.VIDEO in found for found in kinds.values()):
        raise _refused(", ".join(wishes.video_values()), "is for clips only, and there are none", "Remove it")
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
    """The text with an empty line before every dataset: the editor forgets it where it adds keys."""
    spaced = re.sub(r"(?<=[^\n])\n\[\[datasets\]\]", "\n\n[[datasets]]", text)
    return spaced if tomllib.loads(spaced) == tomllib.loads(text) else text


def _kinds(folder: Path) -> tuple[MediaKind, ...]:
    try:
        listing = list_media(folder)
    except OSError as error:
        raise _refused(folder, error.strerror or str(error), "Choose a folder that you can read") from None
    found = [kind for kind, names in zip(MediaKind, (listing.images, listing.videos), strict=True) if names]
    if not found:
        raise _refused(folder, "contains no pictures and no videos", "Choose a folder that directly contains some")
    return tuple(found)


def _fill(
    document: tomlkit.TOMLDocument,
    folders: Sequence[Path],
    kinds: dict[Path, tuple[MediaKind, ...]],
    wishes: ConfigValues,
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
                for key, value in wishes.video_values().items() if kind is MediaKind.VIDEO else ():
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
    """One entry for each resolution: existing ones first by resolution, then in order, then new ones."""
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
    return f"{_CACHES[kind]}_{size[0]}x{size[1]}" if size is not None else _CACHES[kind]


def _new(entries: AoT, folder: Path, kind: MediaKind, cache: str) -> Table:
    shipped = tomlkit.parse(_template())["datasets"]
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

"""Write a dataset.toml for folders of pictures or clips: from the shipped template, or by changing an existing one."""

from __future__ import annotations

import os
import re
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
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
from wan_train.dataset.model import DatasetError, DatasetPreset, FrameExtraction, MediaKind, ProblemKind, stops

_SOURCES = {MediaKind.IMAGE: "image_directory", MediaKind.VIDEO: "video_directory"}
_CACHES = {MediaKind.IMAGE: "cache", MediaKind.VIDEO: "cache_video"}
_CUTS = ("target_frames", "frame_extraction", "frame_stride", "frame_sample", "max_frames")
"""The keys that together set how clips are cut from videos."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigValues:
    """Values to write; None (or empty) keeps the existing value, or the guide's value in a new file.

    Each folder gets one dataset for each of the `resolutions` (width, height in pixels), or of those of
    the `preset`; never both. The other values take precedence over the preset's.
    """

    preset: DatasetPreset | None = None
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
        """The given values that only datasets of clips have, by key."""
        values = {
            "target_frames": list(self.target_frames) or None,
            "frame_extraction": self.frame_extraction.value if self.frame_extraction is not None else None,
            "frame_stride": self.frame_stride,
            "frame_sample": self.frame_sample,
            "max_frames": self.max_frames,
            # The trainer accepts only a decimal number.
            "source_fps": float(self.source_fps) if self.source_fps is not None else None,
        }
        return {key: value for key, value in values.items() if value is not None}


def preset_path(preset: DatasetPreset) -> Path:
    return shipped_configs() / "dataset-presets" / f"{preset.value}.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetTerms:
    """A preset's values besides its datasets; None for `epochs` means the recipe's."""

    summary: str
    epochs: int | None


def preset_terms(preset: DatasetPreset) -> PresetTerms:
    own = tomllib.loads(preset_path(preset).read_text(encoding="utf-8"))
    return PresetTerms(summary=own["summary"], epochs=own.get("epochs"))


def text_for_directory(directory: Path) -> str:
    """The text of a new dataset.toml with the guide's values for the media directly inside `directory`.

    Raises DatasetError for a folder that is missing, unreadable, without media, or cannot be named in the file.
    """
    return _composed([directory], ConfigValues(), existing=None)


def write_for_directory(directory: Path, target: Path) -> str:
    """Write `text_for_directory` to `target` atomically and return it; never changes an existing file.

    Raises DatasetError as `text_for_directory` does, and if `target` exists or cannot be written.
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


def compose(folders: Sequence[Path], values: ConfigValues, *, existing: str | None) -> str:
    """The text of a dataset.toml for the media directly inside `folders`; raises DatasetError.

    An `existing` text keeps its comments, order, other datasets and all other values. Every dataset has its own cache
    directory. The result is checked by the trainer's rules.
    """
    text = _composed(folders, values, existing=existing)
    with tempfile.TemporaryDirectory(prefix="wan-train-") as scratch:
        draft = Path(scratch) / "dataset.toml"
        draft.write_text(text, encoding="utf-8")
        load(draft)
    return text


def _composed(folders: Sequence[Path], values: ConfigValues, *, existing: str | None) -> str:
    folders = [Path(os.path.abspath(folder)) for folder in folders]
    kinds = {folder: _kinds(folder) for folder in folders}
    if values.video_values() and not any(MediaKind.VIDEO in found for found in kinds.values()):
        raise _refused(", ".join(values.video_values()), "is for clips only, and there are none", "Remove it")
    try:
        if existing is not None:
            document = tomlkit.parse(existing.replace("\r\n", "\n").lstrip("\ufeff"))
        else:
            document = _empty(values)
        _fill(document, kinds, values)
        return _spaced(tomlkit.dumps(document).rstrip() + "\n")
    except (tomlkit.exceptions.TOMLKitError, TypeError, KeyError, ValueError, IndexError) as error:
        what = f"cannot be changed without losing its layout ({error})"
        raise _refused("dataset.toml", what, "Write to another file with --output") from None


def _refused(subject: Path | str, what: str, fix: str) -> DatasetError:
    """The error about a path, or about a key of the file."""
    if isinstance(subject, Path):
        problem = stops(ProblemKind.EMPTY_DATASET, what, fix, subject)
    else:
        problem = stops(ProblemKind.WRONG_VALUE, what, fix, key=subject)
    return DatasetError.listing("no dataset.toml was written", [problem])


def _kinds(folder: Path) -> tuple[MediaKind, ...]:
    """The kinds of media directly inside a folder; raises DatasetError, also if the file cannot contain its path."""
    try:
        listing = list_media(folder)
    except OSError as error:
        raise _refused(folder, error.strerror or str(error), "Choose a folder that you can read") from None
    found = [kind for kind, names in zip(MediaKind, (listing.images, listing.videos), strict=True) if names]
    if not found:
        fix = "Choose a folder with pictures or clips, and a .txt caption for each, directly in it"
        raise _refused(folder, "contains no pictures and no videos", fix)
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        what = "has a name that is not UTF-8, which TOML does not allow"
        raise _refused(folder, what, "Rename the folder") from None
    if pattern := pattern_characters(folder):
        what = f"contains {pattern}; the trainer reads that as a pattern and finds no caches"
        raise _refused(folder, what, "Rename the folder without [ ] * ?")
    return tuple(found)


def _shipped(values: ConfigValues) -> tomlkit.TOMLDocument:
    """The shipped dataset.toml with its comments, or the preset's; new datasets are copied from its datasets."""
    path = shipped_configs() / "dataset.toml" if values.preset is None else preset_path(values.preset)
    return tomlkit.parse(path.read_text(encoding="utf-8"))


def _empty(values: ConfigValues) -> tomlkit.TOMLDocument:
    """A new file without datasets."""
    document = _shipped(ConfigValues())
    del _datasets(document)[:]
    if values.preset is not None:
        # Every dataset of a preset has its own resolution.
        del document["general"]["resolution"]
    return document


def _datasets(document: tomlkit.TOMLDocument) -> AoT:
    entries = document.get("datasets")
    if not isinstance(entries, AoT):
        raise TypeError("datasets are not written as [[datasets]]")
    return entries


def _spaced(text: str) -> str:
    """The text with an empty line before every dataset, which tomlkit omits where it adds keys."""
    spaced = re.sub(r"(?<=[^\n])\n\[\[datasets\]\]", "\n\n[[datasets]]", text)
    return spaced if tomllib.loads(spaced) == tomllib.loads(text) else text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A dataset to write for a folder. `model` is a table with comments to copy for a new one.

    Without a `resolution` (width, height in pixels) it uses that of [general], or keeps its own.
    """

    resolution: tuple[int, int] | None
    cache: str
    values: Mapping[str, Any]
    model: Table


def _wanted(kind: MediaKind, values: ConfigValues, *, is_only_kind: bool) -> list[_Wanted]:
    models = [entry for entry in _datasets(_shipped(values)) if isinstance(entry, Table) and _SOURCES[kind] in entry]
    own = values.video_values() if kind is MediaKind.VIDEO else {}
    if values.num_repeats is not None:
        own["num_repeats"] = values.num_repeats
    if values.preset is None:
        sizes: list[tuple[int, int] | None] = list(values.resolutions) or [None]
        parts = [(size, models[0], {"resolution": list(size)} if size and len(sizes) > 1 else {}) for size in sizes]
    else:
        keys = (*_CUTS, "resolution", "num_repeats")
        parts = [
            (_pair(model["resolution"]), model, {key: model[key] for key in keys if key in model}) for model in models
        ]
    cache = _CACHES[MediaKind.IMAGE if is_only_kind else kind]
    return [
        _Wanted(
            resolution=size,
            cache=f"{cache}_{size[0]}x{size[1]}" if size is not None and len(parts) > 1 else cache,
            values=values | own,
            model=model,
        )
        for size, model, values in parts
    ]


def _fill(document: tomlkit.TOMLDocument, kinds: Mapping[Path, tuple[MediaKind, ...]], values: ConfigValues) -> None:
    entries, general = _datasets(document), document.get("general")
    shared = dict(_shipped(values).get("general", {})) if values.preset is not None else {}
    if not isinstance(general, Table):
        general = None
    elif not entries:
        general.update(shared)
    for key, value in (("batch_size", values.batch_size), ("caption_extension", values.caption_extension)):
        if value is not None:
            holders = [*([general] if general is not None else []), *(entry for entry in entries if key in entry)]
            for holder in holders or list(entries):
                holder[key] = value
    if general is not None and len(values.resolutions) == 1:
        general["resolution"] = list(values.resolutions[0])
    default: Mapping[str, Any] = general or {}
    for folder, found in kinds.items():
        for kind in found:
            wanted = _wanted(kind, values, is_only_kind=len(found) == 1)
            for entry, each in _entries_of(entries, folder, _SOURCES[kind], wanted, default.get("resolution")):
                for key in _CUTS if values.preset is not None else ():
                    if key not in each.values:
                        entry.pop(key, None)
                entry.update(each.values)
                entry.update({key: value for key, value in shared.items() if entry.get(key, default.get(key)) != value})


def _entries_of(
    entries: AoT, folder: Path, source: str, wanted: Sequence[_Wanted], default: object
) -> Iterator[tuple[Table, _Wanted]]:
    """The entry of each wanted dataset: existing ones by resolution, then in order, then new ones; deletes the rest."""
    there = [entry for entry in entries if os.path.abspath(str(entry.get(source, ""))) == str(folder)]
    if wanted[0].resolution is None:
        yield from ((entry, wanted[0]) for entry in there or [_new(entries, folder, source, wanted[0])])
        return
    sizes = {each.resolution for each in wanted}
    by_resolution: dict[tuple[int, int], Table] = {}
    for entry in list(there):
        size = _pair(entry.get("resolution", default))
        if size in sizes and size not in by_resolution:
            by_resolution[size] = entry
            there.remove(entry)
    for each in wanted:
        entry = by_resolution.get(each.resolution or (0, 0))
        if entry is None:
            entry = there.pop(0) if there else _new(entries, folder, source, each)
        if "resolution" in entry:
            entry["resolution"] = list(each.resolution or ())
        yield entry, each
    for surplus in there:
        del entries[next(index for index, entry in enumerate(entries) if entry is surplus)]


def _pair(value: object) -> tuple[int, int]:
    sides = value if isinstance(value, list) else [value, value]
    whole = [side for side in sides if isinstance(side, int)]
    return (int(whole[0]), int(whole[1])) if len(whole) == len(sides) == 2 else (0, 0)


def _new(entries: AoT, folder: Path, source: str, wanted: _Wanted) -> Table:
    entry = deepcopy(wanted.model)
    taken = {os.path.abspath(str(other.get("cache_directory", ""))) for other in entries}
    path, number = folder / wanted.cache, 2
    while str(path) in taken:
        path, number = folder / f"{wanted.cache}_{number}", number + 1
    entry[source] = str(folder)
    entry["cache_directory"] = str(path)
    entries.append(entry)
    return entries[-1]

"""The dataset.toml of a run: the user's text and comments, absolute paths, overrides applied.

The user's own file is never written. Values come from the standard library's parser; tomlkit keeps the comments.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import tomlkit
import tomlkit.exceptions
from tomlkit.items import AoT, Table

from wan_train.dataset.buckets import is_resolution_possible
from wan_train.dataset.config import tables
from wan_train.dataset.model import DatasetConfig, DatasetError, DatasetOverrides, ProblemKind, Subset, stops
from wan_train.dataset.schema import UNUSED


def with_overrides(config: DatasetConfig, overrides: DatasetOverrides) -> DatasetConfig:
    """The configuration with these command line values; raises DatasetError for impossible ones."""
    problems = [
        stops(ProblemKind.WRONG_VALUE, f"is {value}", "Use 1 or more", key=key)
        for key, value in (("batch size", overrides.batch_size), ("repeats", overrides.num_repeats))
        if value is not None and value < 1
    ]
    for subset in config.datasets:
        resolution = overrides.resolution
        if resolution and not is_resolution_possible(resolution, enable_bucket=subset.enable_bucket):
            rule = "at least 32x32 pixels" if subset.enable_bucket else "multiples of 16, as enable_bucket is off"
            problems.append(
                stops(
                    ProblemKind.WRONG_VALUE,
                    f"is {resolution[0]}x{resolution[1]}",
                    f"Use {rule}, like 960x960",
                    key=f"resolution for datasets[{subset.index}]",
                )
            )
    if problems:
        raise DatasetError.listing(f"these values cannot be used with {config.path}", problems)
    subsets = tuple(
        replace(
            subset,
            resolution=overrides.resolution or subset.resolution,
            batch_size=overrides.batch_size or subset.batch_size,
            num_repeats=overrides.num_repeats or subset.num_repeats,
        )
        for subset in config.datasets
    )
    return replace(config, datasets=subsets, overrides=overrides)


def snapshot_text(config: DatasetConfig, overrides: DatasetOverrides | None = None) -> str:
    """The dataset.toml of a run, without keys that only other models use.

    Overrides (default: those of `with_overrides`) go into [general] and into each dataset that sets the key itself.
    """
    document = tomllib.loads(config.text)
    general, entries = tables(document)
    for table in (general, *entries):
        for key in UNUSED & table.keys():
            del table[key]
    for subset, entry in zip(config.datasets, entries, strict=True):
        entry.update(_paths_of(subset, entry))
    changes = _changes(overrides or config.overrides)
    for key, value in changes.items():
        general[key] = value
        for entry in entries:
            if key in entry:
                entry[key] = value
    wanted: dict[str, Any] = {"datasets": entries}
    if general or "general" in document:
        wanted["general"] = general
    return _render(config.text, wanted)


def _paths_of(subset: Subset, entry: Mapping[str, Any]) -> dict[str, str]:
    paths = {f"{subset.kind}_directory": subset.directory, f"{subset.kind}_jsonl_file": subset.jsonl}
    found = {key: str(path) for key, path in paths.items() if key in entry and path is not None}
    # Without the key the caches go beside the pictures.
    if "cache_directory" in entry or subset.cache_directory != subset.directory:
        found["cache_directory"] = str(subset.cache_directory)
    return found


def _changes(overrides: DatasetOverrides) -> dict[str, Any]:
    values = {
        "resolution": list(overrides.resolution) if overrides.resolution is not None else None,
        "batch_size": overrides.batch_size,
        "num_repeats": overrides.num_repeats,
    }
    return {key: value for key, value in values.items() if value is not None}


def _render(text: str, wanted: Mapping[str, Any]) -> str:
    """`wanted` as TOML in the layout and with the comments of `text`.

    If tomlkit cannot keep the layout (inline tables, dotted keys), plain values are written with a comment.
    """
    try:
        edited = _edit(text, wanted)
        if tomllib.loads(edited) == wanted:
            return edited
    except (tomlkit.exceptions.TOMLKitError, tomllib.TOMLDecodeError, ValueError, KeyError, TypeError, IndexError):
        pass
    plain = tomlkit.dumps(dict(wanted))
    return "# Rewritten without comments; they are in the original file.\n" + plain


def _edit(text: str, wanted: Mapping[str, Any]) -> str:
    document = tomlkit.parse(text.replace("\r\n", "\n"))
    entries = document["datasets"]
    if not isinstance(entries, AoT):
        raise TypeError("datasets is not written as [[datasets]]")
    if "general" in wanted and "general" not in document:
        prefix = tomlkit.dumps({"general": wanted["general"]})
        return _edit(f"{prefix}\n{text}", wanted)
    if "general" in document:
        _fill(document["general"], wanted.get("general", {}))
    for table, values in zip(entries, wanted["datasets"], strict=True):
        _fill(table, values)
    return tomlkit.dumps(document)


def _fill(table: object, values: Mapping[str, Any]) -> None:
    if not isinstance(table, Table):
        raise TypeError("not an ordinary table")
    for key in table.keys() - values.keys():
        del table[key]
    for key, value in values.items():
        # Rewrite unchanged values too, because the trainer's older parser does not read 0x10 and the like.
        table[key] = value

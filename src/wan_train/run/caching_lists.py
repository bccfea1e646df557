"""What the program of one shard gets: a dataset.toml of its own, with lists of items in place of folders.

A list (jsonl) is the only way to name some pictures of a folder to the trainer. Its caches get the same names and
contents, since both follow from the picture and the settings, so the training reads the run's own dataset.toml.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan_train.dataset.model import DatasetConfig, SubsetInventory
from wan_train.dataset.toml_file import tables
from wan_train.files import write_whole
from wan_train.run.caching import Survey
from wan_train.run.caching_items import caption_of, stem_of
from wan_train.run.directory import RunDirectory

_FOUND_THROUGH_FOLDERS = ("control_directory", "multiple_target")
"""Keys of a dataset whose items bring other pictures along, which the trainer finds by looking through a folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """The files of one shard, by path."""

    files: Mapping[Path, str]

    def write(self) -> None:
        """Raises OSError. The configuration is written last."""
        for path, text in self.files.items():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_whole(path, text)


def can_be_listed(config: DatasetConfig) -> bool:
    """Whether every item of a dataset.toml can be named one by one."""
    _, entries = tables(tomllib.loads(config.text))
    return not any(entry.get(key) for entry in entries for key in _FOUND_THROUGH_FOLDERS)


def lists(run: RunDirectory, step: str, survey: Survey) -> Lists:
    """Lists of exactly the items whose caches are to be made; raises OSError, UnicodeDecodeError.

    A dataset of which nothing is to be made is left out.
    """
    import tomlkit  # noqa: PLC0415  only a run that is split needs it

    document = tomllib.loads(survey.inventory.config.text)
    general, entries = tables(document)
    files: dict[Path, str] = {}
    kept: list[dict[str, Any]] = []
    for number, (entry, found, one) in enumerate(zip(entries, survey.inventory.subsets, survey.folders, strict=True)):
        stems = {item.stem for item in one.folder.items if item.key in one.decision.make}
        if not stems:
            continue
        path = run.shard_list(step, number)
        files[path] = "".join(f"{line}\n" for line in _lines(found, stems))
        kind = found.subset.kind
        rest = {key: value for key, value in entry.items() if key not in {f"{kind}_directory", f"{kind}_jsonl_file"}}
        cache = str(found.subset.cache_directory)
        kept.append({f"{kind}_jsonl_file": str(path), **rest, "cache_directory": cache})
    text = tomlkit.dumps({"general": general, "datasets": kept} if general else {"datasets": kept})
    files[run.shard_config(step)] = "# Written by wan-train: what this shard of the caching makes.\n" + text
    return Lists(files=files)


def _lines(found: SubsetInventory, stems: Collection[str]) -> Iterator[str]:
    """One record for each item. Everything but ASCII is escaped: no two readers agree on what ends a line."""
    subset = found.subset
    key = f"{subset.kind}_path"
    if subset.jsonl is not None:
        # The records as they are: they may hold more than is known here.
        for line in subset.jsonl.read_text(encoding="utf-8").split("\n"):
            record = json.loads(line) if line.strip() else {}
            path = record.get(key, record.get(f"{key}_0"))
            if path is not None and stem_of(Path(path)) in stems:
                yield json.dumps(record)
        return
    for item in found.items:
        if stem_of(item.path) in stems:
            yield json.dumps({key: os.fspath(item.path), "caption": caption_of(item) or ""})

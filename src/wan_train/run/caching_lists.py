"""What the program of one shard gets: a dataset.toml of its own, with lists of items in place of folders.

A list (jsonl) is the only way to name some pictures of a folder to the trainer. Its caches get the same names and
contents, since both follow from the picture and the settings, so the training reads the run's own dataset.toml.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wan_train.base.files import write_whole
from wan_train.caching.items import caption_of, stem_of
from wan_train.dataset import records
from wan_train.dataset.config import tables
from wan_train.run.caching import Survey
from wan_train.run.directory import RunDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """The files of one shard, by path."""

    files: Mapping[Path, str]

    def write(self) -> None:
        """Raises OSError. The configuration is written last."""
        for path, text in self.files.items():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_whole(path, text)


def lists(run: RunDirectory, step: str, survey: Survey) -> Lists:
    """Lists of exactly the items whose caches are to be made; raises OSError, UnicodeDecodeError.

    A dataset of which nothing is to be made is left out.
    """
    import tomlkit

    document = tomllib.loads(survey.inventory.config.text)
    general, entries = tables(document)
    files: dict[Path, str] = {}
    kept: list[dict[str, Any]] = []
    for number, (entry, found, one) in enumerate(zip(entries, survey.inventory.subsets, survey.folders, strict=True)):
        stems = {item.stem for item in one.folder.items if item.key in one.decision.make}
        if not stems:
            continue
        path = run.shard_list(step, number)
        kind = found.subset.kind
        listed = (replace(item, caption=caption_of(item)) for item in found.items if stem_of(item.path) in stems)
        files[path] = records.text(kind, listed)
        rest = {key: value for key, value in entry.items() if key not in {f"{kind}_directory", f"{kind}_jsonl_file"}}
        cache = str(found.subset.cache_directory)
        kept.append({f"{kind}_jsonl_file": str(path), **rest, "cache_directory": cache})
    text = tomlkit.dumps({"general": general, "datasets": kept} if general else {"datasets": kept})
    files[run.shard_config(step)] = "# Written by wan-train: what this shard of the caching makes.\n" + text
    return Lists(files=files)

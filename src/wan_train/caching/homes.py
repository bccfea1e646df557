"""Where the caches of a run go: a writable folder for each engine and precision.

Caches of two engines or precisions have the same names but different contents, so in one folder each run would remove
the other's. The real trainer uses the folder that the dataset.toml names, as in the guide.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from wan_train.base.errors import BadInputError
from wan_train.base.files import can_be_written
from wan_train.base.text import slug
from wan_train.dataset.listing import pattern_characters
from wan_train.dataset.model import DatasetConfig, Subset
from wan_train.engine import caches
from wan_train.engine.caches import CacheKind
from wan_train.engine.traits import TrainerTraits


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheHome:
    """`chosen` is the requested folder; `spare` takes the caches of read-only datasets."""

    spare: Path
    chosen: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The configuration with the folders that this run uses, and notes on them for the user."""

    config: DatasetConfig
    notes: tuple[str, ...] = ()


def place(config: DatasetConfig, trainer: TrainerTraits, home: CacheHome) -> Placed:
    """Give every dataset its cache folder; raises BadInputError for a chosen one that the trainer cannot use."""
    notes: dict[str, None] = {}
    subsets = []
    for subset in config.datasets:
        plain = subset.cache_directory
        if home.chosen is not None:
            plain = home.chosen / _name(subset)
        elif not can_be_written(plain):
            plain = home.spare / _name(subset)
            notes[_why_elsewhere(config, subset, plain)] = None
        own = _own(plain, trainer)
        if own != plain and trainer.is_real:
            notes[f"{plain} has caches of another precision; this run uses {own}"] = None
        _check(own, was_moved=plain != subset.cache_directory)
        subsets.append(replace(subset, cache_directory=own))
    return Placed(config=replace(config, datasets=tuple(subsets)), notes=tuple(notes))


def _own(plain: Path, trainer: TrainerTraits) -> Path:
    """The folder itself for the real trainer, unless it contains caches of another precision; else a subfolder."""
    if trainer.is_real and all(found == trainer.cache_element for found in _elements(plain)):
        return plain
    return plain / f"{trainer.kind}-{trainer.cache_element}"


def _elements(folder: Path) -> Iterator[str]:
    """The precision of every complete cache in a folder."""
    try:
        with os.scandir(folder) as entries:
            files = sorted(e.path for e in entries if any(caches.is_read(e.name, kind) for kind in CacheKind))
    except OSError:
        return
    for path in files:
        contents = caches.read(path)
        element = caches.element(contents) if contents is not None else None
        if element is not None:
            yield element


def _name(subset: Subset) -> str:
    """A folder name that is the same for all runs of a dataset and different for other datasets."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(subset.cache_directory))).hexdigest()[:8]
    return f"{slug(subset.source.stem)}-{digest}"


def _why_elsewhere(config: DatasetConfig, subset: Subset, place: Path) -> str:
    toml = "" if config.path.exists() else " and no dataset.toml is written"
    return (
        f"caches go to {place}{toml}, because {subset.cache_directory} cannot be written. "
        "Choose another folder with --cache-dir"
    )


def _check(folder: Path, *, was_moved: bool) -> None:
    pattern = pattern_characters(folder)
    if was_moved and pattern:
        raise BadInputError(
            f"the cache directory {folder} contains {pattern}, which the trainer reads as a pattern",
            hint="Choose a place without [ ] * ? with --cache-dir DIR.",
        )

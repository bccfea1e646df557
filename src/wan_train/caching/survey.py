"""The caches of one kind: inspected, cleared before the trainer makes more, and recorded once they are valid."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import time_ns

from wan_train.base import codec
from wan_train.base.errors import NotReadyError
from wan_train.base.files import write_whole
from wan_train.base.host import boot_id, without_garbage_collection
from wan_train.base.units import MIB
from wan_train.caching.decide import CacheNeed, Decision, Folder, Reason, begun, count, decide
from wan_train.caching.index import (
    CacheFile,
    CacheIndex,
    Hasher,
    index_file,
    model_identity,
    read_index,
    stamp,
    write_index,
)
from wan_train.caching.items import Maker, folders
from wan_train.dataset.config import load
from wan_train.dataset.model import GUIDE_READING, NEWEST_READING, Inventory, TrainerReading
from wan_train.dataset.scan import scan
from wan_train.engine import caches
from wan_train.engine.caches import CacheKind, Contents
from wan_train.engine.commands import ModelPaths
from wan_train.engine.tensors import is_sound
from wan_train.engine.trainer import Trainer
from wan_train.recipe.terms import Task

_FINITE_BYTES = 256 * MIB
"""How much of the new caches is searched for NaN. The trainer itself replaces NaN with zero when it writes them."""


def reading_of(trainer: Trainer) -> TrainerReading:
    """How this trainer version reads datasets."""
    reading = NEWEST_READING if trainer.capabilities.drops_uncaptioned else GUIDE_READING
    return replace(reading, root=trainer.root) if trainer.is_real else reading


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInputs:
    """What the caches of a run depend on besides pictures and captions. `config` is the run's dataset.toml."""

    config: Path
    trainer: Trainer
    models: ModelPaths
    task: Task

    def inventory(self) -> Inventory:
        """The dataset as it is now; raises DatasetError if it cannot be trained."""
        reading = reading_of(self.trainer)
        inventory = scan(load(self.config, reading=reading), reading=reading)
        inventory.require()
        return inventory

    def maker(self, kind: CacheKind) -> Maker:
        trainer = self.trainer
        return Maker(
            kind=kind,
            model=model_identity(self.models.vae if kind is CacheKind.LATENTS else self.models.t5),
            trainer=f"{trainer.kind.value} {trainer.commit or trainer.version}",
            element=trainer.traits.cache_element,
            image_to_video=self.task is Task.I2V,
        )

    def needs(self, inventory: Inventory) -> dict[CacheKind, CacheNeed]:
        """The caches to make, by kind; raises NotReadyError if the dataset cannot be read."""
        try:
            return {kind: survey(inventory, self.maker(kind), hash_all=False).need for kind in CacheKind}
        except OSError as error:
            raise NotReadyError(
                f"{error.filename or 'the dataset'} cannot be read: {error.strerror or error}",
                hint="Wait until no other program writes into the dataset, then start again.",
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSurvey:
    """One cache directory: expected items, its index, and the decision."""

    folder: Folder
    index: CacheIndex
    hasher: Hasher
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The caches of one kind; `folders` are in the order of the datasets."""

    kind: CacheKind
    folders: tuple[FolderSurvey, ...]

    @property
    def is_settled(self) -> bool:
        return all(one.decision.is_settled for one in self.folders)

    @property
    def total(self) -> int:
        return sum(len(one.folder.items) for one in self.folders)

    @property
    def make(self) -> dict[str, int]:
        """Number of items to cache, by reason."""
        return _sum(count(one.decision.make) for one in self.folders)

    @property
    def foreign(self) -> tuple[Path, ...]:
        return tuple(one.folder.path / name for one in self.folders for name in one.decision.foreign)

    @property
    def need(self) -> CacheNeed:
        make, remove = self.make, _sum(count(one.decision.remove) for one in self.folders)
        return CacheNeed(
            items=self.total, make=sum(make.values()), remove=sum(remove.values()), reasons={**remove, **make}
        )


def survey(inventory: Inventory, maker: Maker, *, finished: bool = False, hash_all: bool = True) -> Survey:
    """Look at the caches of one kind; changes nothing.

    `finished` means that the trainer just ended without an error. Without `hash_all`, pictures in no index are not
    read: the decision is the same, but it must not be carried out.
    Raises OSError for an unreadable picture, caption or folder. An unreadable cache is made again.
    """
    directories = [found.subset.cache_directory for found in inventory.subsets]
    indexes = {path: read_index(index_file(path, maker.kind)) for path in directories}
    now = time_ns()
    hashers = {path: Hasher(index.sources, now_ns=now) for path, index in indexes.items()}
    hashed = None if hash_all else {path: index.entries for path, index in indexes.items()}
    boot = boot_id()
    return Survey(
        kind=maker.kind,
        folders=tuple(
            FolderSurvey(
                folder=folder,
                index=indexes[folder.path],
                hasher=hashers[folder.path],
                decision=decide(folder, indexes[folder.path], files_in(folder), boot=boot, finished=finished),
            )
            for folder in folders(inventory, maker, hashers, hashed=hashed)
        ),
    )


@without_garbage_collection()
def files_in(folder: Folder) -> dict[str, Contents]:
    """Every file of one kind in a cache directory; raises OSError if the directory cannot be listed."""
    try:
        with os.scandir(folder.path) as entries:
            ours = sorted(
                (e.name, e.path) for e in entries if caches.is_read(e.name, folder.kind) and not _is_folder(e)
            )
    except FileNotFoundError:
        return {}
    looked = ((name, caches.read(path)) for name, path in ours)
    return {name: contents for name, contents in looked if contents is not None}


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False


def clear(found: Survey) -> dict[str, int]:
    """Remove stale caches and record what is about to be made, so that a crash leaves no unknown files.

    Returns the number of removed files by reason.
    """
    boot = boot_id()
    removed = _remove(found)
    for one in found.folders:
        one.folder.path.mkdir(parents=True, exist_ok=True)
        pending = begun(one.decision, one.folder, one.index, boot=boot)
        write_index(index_file(one.folder.path, found.kind), replace(pending, sources=one.hasher.seen))
    return removed


def _remove(found: Survey) -> dict[str, int]:
    removed: Counter[str] = Counter()
    for one in found.folders:
        for name, reason in one.decision.remove.items():
            try:
                (one.folder.path / name).unlink()
            except FileNotFoundError:
                continue
            removed[reason.value] += 1
    return dict(removed.most_common())


def recheck(earlier: Survey) -> Survey:
    """Look at the same items after the trainer ended without an error.

    An item whose picture changed meanwhile is made again, since either version may have been encoded.
    """
    boot = boot_id()
    budget = _FINITE_BYTES
    looked = []
    for one in earlier.folders:
        index = read_index(index_file(one.folder.path, earlier.kind))
        decision = decide(one.folder, index, files_in(one.folder), boot=boot, finished=True)
        doubtful = {item.key: Reason.PICTURE for item in one.folder.items if _touched(one, item.sources)}
        for key in one.decision.make:
            for name, file in decision.keep[key].files.items() if key in decision.keep else ():
                budget -= file.size
                if budget > 0 and not is_sound(one.folder.path / name):
                    doubtful[key] = Reason.BROKEN
        looked.append(replace(one, index=index, decision=_without(decision, doubtful)))
    return replace(earlier, folders=tuple(looked))


def _touched(one: FolderSurvey, sources: tuple[Path, ...]) -> bool:
    try:
        return any(stamp(path) != one.hasher.stamps[os.fspath(path)] for path in sources)
    except OSError:
        return True


def _without(decision: Decision, doubtful: Mapping[str, Reason]) -> Decision:
    removed = {
        name: reason for key, reason in doubtful.items() if key in decision.keep for name in decision.keep[key].files
    }
    return replace(
        decision,
        keep={key: entry for key, entry in decision.keep.items() if key not in doubtful},
        make={**decision.make, **doubtful},
        remove={**decision.remove, **removed},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRecord:
    """The caches that a step made or found for its run, by cache directory and file name."""

    folders: Mapping[str, Mapping[str, CacheFile]]


def record(path: Path, right: Survey) -> dict[str, int]:
    """Remove leftover files, update the index, and record what the run trains from, once nothing is left to make.

    Returns the number of removed files by reason.
    """
    removed = _remove(right)
    for one in right.folders:
        index = CacheIndex(entries=one.decision.keep, sources=one.hasher.seen)
        if index != one.index and one.folder.path.is_dir():
            write_index(index_file(one.folder.path, right.kind), index)
    files = {
        str(one.folder.path): {name: file for entry in one.decision.keep.values() for name, file in entry.files.items()}
        for one in right.folders
    }
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_whole(path, codec.to_json(CacheRecord(folders=files)) + "\n")
    return removed


_Recorded = dict[str, dict[str, CacheFile]]


def difference_from_records(records: Iterable[tuple[CacheKind, Path]]) -> str | None:
    """How the caches on disk differ from those that this run recorded, in words; None if a training may start.

    Each file must be unchanged and complete, and each latent cache needs its text cache. There must be no other latent
    cache, since the trainer would train it as well.
    """
    recorded: dict[CacheKind, _Recorded] = {kind: {} for kind in CacheKind}
    for kind, path in records:
        made: CacheRecord | None = codec.read(path, CacheRecord)
        if made is None:
            return f"{path.parent.name} has no record of its caches"
        for directory, files in made.folders.items():
            recorded[kind].setdefault(directory, {}).update(files)
    problems = [problem for kind, known in recorded.items() for problem in _differences(kind, known)]
    problems += list(_unpaired(recorded))
    more = f" and {len(problems) - 1} more like it" if len(problems) > 1 else ""
    return f"{problems[0]}{more}" if problems else None


def _differences(kind: CacheKind, known: _Recorded) -> Iterator[str]:
    for directory, files in known.items():
        folder = Folder(path=Path(directory), kind=kind, is_clip=False, image_to_video=False, element="", items=())
        try:
            found = files_in(folder)
        except OSError as error:
            yield f"{directory} cannot be listed: {error.strerror}"
            continue
        for name, file in files.items():
            now = found.get(name)
            if now is None:
                yield f"{name} is missing"
            elif now.shapes is None:
                yield f"{name} is truncated"
            elif (now.size, now.mtime_ns) != (file.size, file.mtime_ns):
                yield f"{name} was rewritten"
        if kind is CacheKind.LATENTS:
            yield from (f"{name} was added" for name in found if name not in files)


def _unpaired(recorded: Mapping[CacheKind, _Recorded]) -> Iterator[str]:
    for directory, files in recorded[CacheKind.LATENTS].items():
        there = recorded[CacheKind.TEXT].get(directory, {})
        for name in files:
            stems = (caches.parse(name, is_clip=True), caches.parse(name, is_clip=False))
            if not any(parsed is not None and caches.text_name(parsed.stem) in there for parsed in stems):
                yield f"{name} has no text cache"


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for some in counts:
        total.update(some)
    return dict(total.most_common())

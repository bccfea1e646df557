"""Caches of a run looked at, cleared and put on record: what the decision needs from disk, and what follows from it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import time_ns

from wan_train.base import codec
from wan_train.base.errors import NotReadyError
from wan_train.base.files import write_whole
from wan_train.base.host import without_garbage_collection
from wan_train.base.process_identity import boot_id
from wan_train.caching.decide import CacheNeed, Decision, Folder, Reason, begun, count, decide
from wan_train.caching.index import (
    CacheFile,
    Hasher,
    Ledger,
    ledger_file,
    model_identity,
    read_ledger,
    stamp,
    write_ledger,
)
from wan_train.caching.items import Maker, folders
from wan_train.dataset.config import load
from wan_train.dataset.model import GUIDE_READING, NEWEST_READING, Inventory, TrainerReading
from wan_train.dataset.scan import scan
from wan_train.engine import caches
from wan_train.engine.caches import CacheKind, Contents
from wan_train.engine.commands import ModelPaths
from wan_train.engine.trainer import Trainer
from wan_train.recipe.model import Recipe
from wan_train.recipe.terms import Task
from wan_train.run.directory import RunDirectory
from wan_train.run.plan import CACHE_KINDS, Plan, Step

_FINITE_BYTES = 256 * 1024 * 1024
"""Numbers of new caches are read up to this much. The trainer itself replaces NaN by zero when it writes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """One cache directory: what belongs into it, what the ledger says, what is to be done. `ledger` is as read."""

    folder: Folder
    ledger: Ledger
    hasher: Hasher
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The caches of one kind looked at; `folders` are in the order of the datasets."""

    kind: CacheKind
    inventory: Inventory
    folders: tuple[Surveyed, ...]

    @property
    def is_settled(self) -> bool:
        return all(one.decision.is_settled for one in self.folders)

    @property
    def total(self) -> int:
        return sum(len(one.folder.items) for one in self.folders)

    @property
    def kept(self) -> int:
        return sum(len(one.decision.keep) for one in self.folders)

    @property
    def make(self) -> dict[str, int]:
        """Items whose caches are to be made, by reason."""
        return _sum(count(one.decision.make) for one in self.folders)

    @property
    def remove(self) -> dict[str, int]:
        """Files to be removed, by reason."""
        return _sum(count(one.decision.remove) for one in self.folders)

    @property
    def strangers(self) -> tuple[Path, ...]:
        return tuple(one.folder.path / name for one in self.folders for name in one.decision.strangers)

    @property
    def need(self) -> CacheNeed:
        return CacheNeed(
            items=self.total,
            make=sum(self.make.values()),
            remove=sum(self.remove.values()),
            reasons={**self.remove, **self.make},
        )


def reading_of(trainer: Trainer) -> TrainerReading:
    """How this trainer version reads datasets."""
    reading = NEWEST_READING if trainer.capabilities.drops_uncaptioned else GUIDE_READING
    return replace(reading, root=trainer.root) if trainer.is_real else reading


def maker_of(kind: CacheKind, trainer: Trainer, recipe: Recipe, models: ModelPaths) -> Maker:
    return Maker(
        kind=kind,
        model=model_identity(models.vae if kind is CacheKind.LATENTS else models.t5),
        trainer=f"{trainer.kind.value} {trainer.commit or trainer.version}",
        element=trainer.traits.cache_element,
        image_to_video=recipe.task is Task.I2V,
    )


def survey(
    inventory: Inventory,
    maker: Maker,
    *,
    finished: bool = False,
    hash_all: bool = True,
) -> Survey:
    """Look at the caches of one kind; changes nothing.

    Without `hash_all` pictures that no ledger knows are not read: the decision is the same, but cannot be acted upon.
    Raises OSError for a picture, caption or folder that cannot be read; a cache that cannot be is to be made anew.
    """
    directories = [found.subset.cache_directory for found in inventory.subsets]
    ledgers = {path: read_ledger(ledger_file(path, maker.kind)) for path in directories}
    now = time_ns()
    hashers = {path: Hasher(ledger.sources, now_ns=now) for path, ledger in ledgers.items()}
    hashed = None if hash_all else {path: ledger.entries for path, ledger in ledgers.items()}
    boot = boot_id()
    return Survey(
        kind=maker.kind,
        inventory=inventory,
        folders=tuple(
            Surveyed(
                folder=folder,
                ledger=ledgers[folder.path],
                hasher=hashers[folder.path],
                decision=decide(folder, ledgers[folder.path], found_in(folder), boot=boot, finished=finished),
            )
            for folder in folders(inventory, maker, hashers, hashed=hashed)
        ),
    )


def needs(inventory: Inventory, trainer: Trainer, recipe: Recipe, models: ModelPaths) -> dict[CacheKind, CacheNeed]:
    """What there is to make; raises NotReadyError when the dataset cannot be read."""
    try:
        return {
            kind: survey(inventory, maker_of(kind, trainer, recipe, models), hash_all=False).need for kind in CacheKind
        }
    except OSError as error:
        raise NotReadyError(
            f"{error.filename or 'the dataset'} cannot be read: {error.strerror or error}",
            hint="Wait until nothing writes into the dataset any more, then start again.",
        ) from error


def inventory_of(plan: Plan) -> Inventory:
    """What there is to train now by the run's own dataset.toml; raises DatasetError when it cannot be trained."""
    reading = reading_of(plan.trainer)
    inventory = scan(load(RunDirectory(plan.run_dir).dataset_config, reading=reading), reading=reading)
    inventory.require()
    return inventory


def survey_step(plan: Plan, step: Step, inventory: Inventory, *, finished: bool = False) -> Survey:
    """The same for a caching step of a run."""
    maker = maker_of(CACHE_KINDS[step.kind], plan.trainer, plan.recipe, plan.models)
    return survey(inventory, maker, finished=finished)


@without_garbage_collection()
def found_in(folder: Folder) -> dict[str, Contents]:
    """Every file of one kind in a cache directory; raises OSError when it is there and cannot be listed."""
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


def clear(wanted: Survey) -> dict[str, int]:
    """Remove what is to be removed and note what is about to be made, so that a crash leaves nothing unexplained.

    Returns how many files were removed, by reason.
    """
    boot = boot_id()
    removed = _remove(wanted)
    for one in wanted.folders:
        one.folder.path.mkdir(parents=True, exist_ok=True)
        pending = begun(one.decision, one.folder, one.ledger, boot=boot)
        write_ledger(ledger_file(one.folder.path, wanted.kind), replace(pending, sources=one.hasher.seen))
    return removed


def _remove(wanted: Survey) -> dict[str, int]:
    """Only what was still there counts: latents and text may be removed from one folder at the same time."""
    removed: Counter[str] = Counter()
    for one in wanted.folders:
        for name, reason in one.decision.remove.items():
            try:
                (one.folder.path / name).unlink()
            except FileNotFoundError:
                continue
            removed[reason.value] += 1
    return dict(removed.most_common())


def again(earlier: Survey) -> Survey:
    """The same items looked at once more after the trainer ended without an error.

    An item whose picture was touched meanwhile is to be made anew: nobody knows which of the two was encoded.
    """
    boot = boot_id()
    budget = _FINITE_BYTES
    looked = []
    for one in earlier.folders:
        ledger = read_ledger(ledger_file(one.folder.path, earlier.kind))
        found = found_in(one.folder)
        decision = decide(one.folder, ledger, found, boot=boot, finished=True)
        doubtful = {item.key: Reason.PICTURE for item in one.folder.items if _touched(one, item.sources)}
        for key in one.decision.make:
            for name, file in decision.keep[key].files.items() if key in decision.keep else ():
                budget -= file.size
                if budget > 0 and not caches.is_finite(one.folder.path / name):
                    doubtful[key] = Reason.BROKEN
        looked.append(replace(one, ledger=ledger, decision=_without(decision, doubtful)))
    return replace(earlier, folders=tuple(looked))


def _touched(one: Surveyed, sources: tuple[Path, ...]) -> bool:
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
    """The caches that a step made or found for its run: file by name, by cache directory."""

    folders: Mapping[str, Mapping[str, CacheFile]]


def settle(run: RunDirectory, step: Step, right: Survey) -> dict[str, int]:
    """Nothing is to be made: remove what is left over, and put on record what is there and what the run trains from.

    Returns how many files were removed, by reason.
    """
    removed = _remove(right)
    for one in right.folders:
        ledger = Ledger(entries=one.decision.keep, sources=one.hasher.seen)
        if ledger != one.ledger and one.folder.path.is_dir():
            write_ledger(ledger_file(one.folder.path, right.kind), ledger)
    files = {
        str(one.folder.path): {name: file for entry in one.decision.keep.values() for name, file in entry.files.items()}
        for one in right.folders
    }
    path = run.caches(step.id)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_whole(path, codec.to_json(CacheRecord(folders=files)) + "\n")
    return removed


def trouble_with_pairs(run: RunDirectory, plan: Plan) -> str | None:
    """What is wrong, in words, with the caches that this run made or found: looked at just before they are trained.

    Each file is still the one on record and whole, each latent cache has its text cache, and nothing else is there that
    the trainer would train as well.
    """
    recorded: dict[CacheKind, dict[str, dict[str, CacheFile]]] = {kind: {} for kind in CacheKind}
    for step in plan.steps:
        kind = CACHE_KINDS.get(step.kind)
        if kind is None:
            continue
        try:
            made: CacheRecord = codec.from_json(run.caches(step.id).read_bytes(), CacheRecord, where=step.id)
        except (OSError, codec.CorruptRecordError):
            return f"what {step.id} made is not on record"
        for directory, files in made.folders.items():
            recorded[kind].setdefault(directory, {}).update(files)
    problems = [problem for kind, known in recorded.items() for problem in _differences(kind, known)]
    problems += list(_unpaired(recorded))
    more = f" and {len(problems) - 1} more like it" if len(problems) > 1 else ""
    return f"{problems[0]}{more}" if problems else None


_Recorded = Mapping[str, Mapping[str, CacheFile]]


def _differences(kind: CacheKind, known: _Recorded) -> Iterator[str]:
    for directory, files in known.items():
        folder = Folder(path=Path(directory), kind=kind, is_clip=False, image_to_video=False, element="", items=())
        try:
            found = found_in(folder)
        except OSError as error:
            yield f"{directory} cannot be listed: {error.strerror}"
            continue
        for name, file in files.items():
            now = found.get(name)
            if now is None:
                yield f"{name} is gone"
            elif now.shapes is None:
                yield f"{name} is cut short"
            elif (now.size, now.mtime_ns) != (file.size, file.mtime_ns):
                yield f"{name} was written anew"
        if kind is CacheKind.LATENTS:
            yield from (f"{name} was added" for name in found if name not in files)


def _unpaired(recorded: Mapping[CacheKind, _Recorded]) -> Iterator[str]:
    for directory, files in recorded[CacheKind.LATENTS].items():
        there = recorded[CacheKind.TEXT].get(directory, {})
        for name in files:
            stems = (caches.parse(name, is_clip=True), caches.parse(name, is_clip=False))
            if not any(parsed is not None and caches.text_name(parsed.stem) in there for parsed in stems):
                yield f"{name} has no text cache"


def _sum(counts: Iterator[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for some in counts:
        total.update(some)
    return dict(total.most_common())

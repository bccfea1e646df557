"""The disk of a run: what it needs, checked before it starts and watched while it trains."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wan_train.base.errors import NotReadyError
from wan_train.base.files import existing_parent
from wan_train.base.units import GB
from wan_train.engine.commands import STATES_KEPT
from wan_train.engine.traits import TrainerTraits
from wan_train.recipe.model import Recipe, Training
from wan_train.recipe.terms import Expert
from wan_train.run.directory import RunDirectory
from wan_train.run.plan import DiskNeed, Plan

_LOOK_SECONDS = 10.0


def disk_for_next_save(plan: Plan) -> int:
    """Return the bytes of one expert's next two saves: the one that is due, and the one that a stop waits for."""
    return max(
        2 * (_state_bytes(plan.trainer.traits, spec.training) + _lora_bytes(plan.trainer.traits, spec.training))
        for spec in plan.recipe.experts
    )


def disk_need(
    trainer: TrainerTraits, recipe: Recipe, cache_bytes: int, *, kept: Mapping[Expert, int] | None = None
) -> DiskNeed:
    """Return the most that a run has on disk at once: the trainer writes a new state before it removes an old one.

    `kept` is the number of LoRAs of earlier epochs that stay, by expert.
    """
    copies = STATES_KEPT + 2  # one being written, one at the very end
    states = loras = 0
    for spec in recipe.experts:
        states += copies * _state_bytes(trainer, spec.training)
        loras += (copies + (kept or {}).get(spec.expert, 0)) * _lora_bytes(trainer, spec.training)
    return DiskNeed(caches=cache_bytes, states=states, loras=loras)


def _state_bytes(trainer: TrainerTraits, training: Training) -> int:
    return trainer.state_bytes(training.network_dim)


def _lora_bytes(trainer: TrainerTraits, training: Training) -> int:
    precision = training.options.get("save_precision", training.mixed_precision)
    return trainer.lora_bytes(training.network_dim, str(precision))


def check_disk(need: DiskNeed, run_dir: Path, cache_dirs: Iterable[Path]) -> None:
    """Raise NotReadyError with the numbers if states, LoRAs and caches will not fit."""
    caches = list(cache_dirs)
    amounts = [(run_dir, need.states + need.loras), *((path, need.caches // len(caches)) for path in caches)]
    parts = f": states {need.states / GB:.1f}, LoRAs {need.loras / GB:.1f}, caches {need.caches / GB:.1f}"
    for place, amount in by_disk(amounts).items():
        require_room(
            place,
            amount,
            "this run needs",
            parts=parts,
            hint="Remove old runs (`wan-train runs` lists them), or choose another disk with --runs-dir.",
        )


def check_disk_to_resume(run: RunDirectory, plan: Plan, trainings: int, *, gpus: int) -> None:
    """Raise NotReadyError with the numbers if a run resumed on so many GPUs would be stopped at its first state."""
    require_room(
        run.path,
        min(trainings, gpus) * disk_for_next_save(plan),
        "the next states and LoRAs need",
        hint=f"Remove old runs (`wan-train runs` lists them), then: wan-train resume {run.run_id}",
    )


def by_disk(amounts: Iterable[tuple[Path, int]]) -> Mapping[Path, int]:
    """Return the amounts of several places summed by disk, each under the first existing folder on that disk."""
    folders: dict[int, Path] = {}
    found: dict[Path, int] = {}
    for place, amount in amounts:
        folder = existing_parent(place)
        folder = folders.setdefault(folder.stat().st_dev, folder)
        found[folder] = found.get(folder, 0) + amount
    return found


def require_room(place: Path, needed: int, what: str, *, hint: str, parts: str = "") -> None:
    """Raise NotReadyError with the numbers if fewer than `needed` bytes are free. `what`: such as `this run needs`."""
    folder = existing_parent(place)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NotReadyError(
            f"the disk of {folder} has {free / GB:.1f} GB free and {what} {needed / GB:.1f} GB{parts}", hint=hint
        )


def check_writable(directories: Iterable[Path], what: str, option: str) -> None:
    """Raise NotReadyError if one of these directories cannot be created or written; `option` chooses another place."""
    hint = f"Choose another place with {option} DIR."
    for directory in directories:
        parent = existing_parent(directory)
        if not parent.is_dir():
            raise NotReadyError(f"cannot create {what} {directory}: {parent} is not a directory", hint=hint)
        if not os.access(parent, os.W_OK | os.X_OK):
            raise NotReadyError(f"cannot write to {what} {directory}: no write permission in {parent}", hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Bytes free, and the larger number that the next saves need."""

    free: int
    needed: int


class DiskWatch:
    """Checks the disk at most every ten seconds. `free` is the last result, None before the first check."""

    def __init__(self, run: RunDirectory, plan: Plan) -> None:
        self.free: int | None = None
        self._path = run.path
        self._one_training = disk_for_next_save(plan)
        self._next_look = 0.0

    def look(self, trainings: int, monotonic: float) -> Shortage | None:
        """Return the shortage for the next saves of so many trainings; None if there is none, or no check is due."""
        if monotonic < self._next_look:
            return None
        self._next_look = monotonic + _LOOK_SECONDS
        self.free = shutil.disk_usage(self._path).free
        needed = trainings * self._one_training
        return Shortage(free=self.free, needed=needed) if self.free < needed else None

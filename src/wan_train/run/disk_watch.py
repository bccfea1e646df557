"""The disk of a run, looked at now and then: whether what the trainers save next still fits."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from wan_train.run.directory import RunDirectory
from wan_train.run.plan import Plan, disk_for_next_save

_LOOK_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Bytes free, and the more that the next saves need."""

    free: int
    needed: int


class DiskWatch:
    """Looks every ten seconds however often it is asked. `free` is what it saw last, None before the first look."""

    def __init__(self, run: RunDirectory, plan: Plan) -> None:
        self.free: int | None = None
        self._path = run.path
        self._one_training = disk_for_next_save(plan)
        self._next_look = 0.0

    def look(self, trainings: int, monotonic: float) -> Shortage | None:
        """What is missing for the next saves of so many trainings; None when nothing is, or it is not time to look."""
        if monotonic < self._next_look:
            return None
        self._next_look = monotonic + _LOOK_SECONDS
        self.free = shutil.disk_usage(self._path).free
        needed = trainings * self._one_training
        return Shortage(free=self.free, needed=needed) if self.free < needed else None

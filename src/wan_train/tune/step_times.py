"""The times of a trainer's steps, taken as its output arrives, and the speed that follows from them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from wan_train.engine.log_parser import EpochStarted, Record, StepRecord

WARMUP_STEPS = 3
"""Kernels are chosen and buffers grow in the first steps."""
STEPS = 15
"""Steps that are timed, those that begin an epoch not counted."""


@dataclass(slots=True)
class Stamps:
    """When each step of one trainer was first seen, in seconds of any clock that never goes back."""

    began: float
    trains_since: float | None = None
    steps: dict[int, float] = field(default_factory=dict)
    first_of_epoch: set[int] = field(default_factory=set)

    def add(self, records: Iterable[Record], now: float) -> None:
        """Records that arrived at `now`, in their order."""
        for record in records:
            match record:
                case EpochStarted():
                    self.trains_since = now if self.trains_since is None else self.trains_since
                    self.first_of_epoch.add(self.done + 1)
                case StepRecord(step=step) if step > 0:
                    self.steps.setdefault(step, now)
                case _:
                    pass

    @property
    def done(self) -> int:
        return max(self.steps, default=0)

    @property
    def load_seconds(self) -> float | None:
        """From the start of the program to the first epoch."""
        return None if self.trains_since is None else self.trains_since - self.began

    def step_seconds(self) -> tuple[float, ...]:
        """The steps after warm-up that do not begin an epoch, at most `STEPS`."""
        return tuple(self._seconds(first_of_epoch=False))[:STEPS]

    @property
    def is_complete(self) -> bool:
        return len(self.step_seconds()) >= STEPS

    def warmup_seconds(self) -> float:
        """What the warm-up took beyond as many later steps."""
        last, usual = self.steps.get(WARMUP_STEPS), self.step_seconds()
        if last is None or self.trains_since is None or not usual:
            return 0.0
        return max(0.0, last - self.trains_since - WARMUP_STEPS * statistics.median(usual))

    def epoch_seconds(self) -> float:
        """What the first step of an epoch took beyond the others."""
        first, usual = list(self._seconds(first_of_epoch=True)), self.step_seconds()
        return max(0.0, statistics.median(first) - statistics.median(usual)) if first and usual else 0.0

    def _seconds(self, *, first_of_epoch: bool) -> Iterable[float]:
        for step in sorted(self.steps):
            if step > WARMUP_STEPS and step - 1 in self.steps and (step in self.first_of_epoch) is first_of_epoch:
                yield self.steps[step] - self.steps[step - 1]

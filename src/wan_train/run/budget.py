"""When a run must stop so that everything is saved before its budget is reached: a pure decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wan_train.run.events import StopMode

_DOUBT = 1.1
"""The next epochs may take this much longer than the last ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """Seconds until a running training has saved its next checkpoint, and until the one after that.

    `following` is None where the next one is the last thing that the run will do, or where it is unknown.
    """

    next: float
    following: float | None


def checkpoints_ahead(
    *,
    step: int,
    steps_per_epoch: int,
    epochs: int,
    every: int,
    seconds_per_step: float,
    sample_every: int = 0,
    sample_seconds: float = 0.0,
) -> Ahead:
    """The next checkpoints of an attempt that has made `step` steps of its `epochs` and saves `every` few.

    Its samples, one pause every `sample_every` epochs, are made before the next epoch, by which a checkpoint is known.
    """

    def seconds(epoch: int) -> float:
        pauses = epoch // sample_every - step // steps_per_epoch // sample_every if sample_every else 0
        return max(0, epoch * steps_per_epoch - step) * seconds_per_step + max(0, pauses) * sample_seconds

    first = min(epochs, (step // (every * steps_per_epoch) + 1) * every)
    return Ahead(next=seconds(first), following=seconds(min(epochs, first + every)) if first < epochs else None)


def stop_for_budget(
    *, seconds_left: float, trainings: Sequence[Ahead], saving: float, stopping: float, is_stopping: bool
) -> StopMode | None:
    """How soon to stop, None to go on. `seconds_left` is what the rest of the budget pays for.

    `saving` seconds are those of one checkpoint, `stopping` those of ending a trainer. A stop after the next checkpoint
    is decided shortly before one, and only where the one after it would come too late: speeds change.
    """
    if seconds_left <= stopping:
        return StopMode.NOW
    if is_stopping or not trainings:
        return None
    rest = seconds_left - saving - stopping
    nearest = min(trainings, key=lambda each: each.next)
    if nearest.next > rest:
        return StopMode.NOW  # nothing more can be saved: every second of it would be lost
    due = [each.following for each in trainings if each.next <= stopping + saving]
    too_late = any(following is not None and following * _DOUBT > rest for following in due)
    return StopMode.AFTER_STATE if too_late else None

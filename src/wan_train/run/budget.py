"""When a run must stop so that everything is saved before it reaches its budget: pure decisions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from wan_train.recipe.terms import Expert
from wan_train.run.events import BudgetReached, StopMode
from wan_train.run.plan import Plan, Step, StepKind
from wan_train.run.progress import ProgressTracker
from wan_train.run.samples import sample_every
from wan_train.run.state import Attempt, JobState, RunState, running

_DOUBT = 1.1
"""The next epochs may take this much longer than the last ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """Seconds until a running training has saved its next checkpoint, and until the one after that.

    `following` is None if the next checkpoint is the training's last.
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
    """Return the next checkpoints of an attempt at step `step` of `epochs` epochs that saves every `every` epochs.

    Samples pause it every `sample_every` epochs. They come first, as a checkpoint is known when the next epoch begins.
    """

    def seconds(epoch: int) -> float:
        pauses = epoch // sample_every - step // steps_per_epoch // sample_every if sample_every else 0
        return max(0, epoch * steps_per_epoch - step) * seconds_per_step + max(0, pauses) * sample_seconds

    first = min(epochs, (step // (every * steps_per_epoch) + 1) * every)
    return Ahead(next=seconds(first), following=seconds(min(epochs, first + every)) if first < epochs else None)


def stop_for_budget(
    *, seconds_left: float, trainings: Sequence[Ahead], saving: float, stopping: float, is_stopping: bool
) -> StopMode | None:
    """Return how soon to stop, None to continue. `seconds_left` is how long the rest of the budget lasts.

    `saving` is the seconds to save one checkpoint, `stopping` those to end a trainer. Speeds change, so a stop after
    the next checkpoint is decided shortly before it, and only if the one after it would come too late.
    """
    if seconds_left <= stopping:
        return StopMode.NOW
    if is_stopping or not trainings:
        return None
    rest = seconds_left - saving - stopping
    nearest = min(trainings, key=lambda each: each.next)
    if nearest.next > rest:
        return StopMode.NOW  # nothing more can be saved, so further training would be lost
    due = [each.following for each in trainings if each.next <= stopping + saving]
    too_late = any(following is not None and following * _DOUBT > rest for following in due)
    return StopMode.AFTER_STATE if too_late else None


_SLOW_DISK = 50e6
"""Bytes per second: the worst write speed of a rented box's disk."""


def over_budget(
    plan: Plan, state: RunState, trackers: Mapping[str, ProgressTracker], *, now: float, stopping: float
) -> BudgetReached | None:
    """Return why the run must stop now or after its next states; None if it need not, or without budget or price.

    `stopping` is the seconds until a trainer that was told to end is gone.
    """
    spent, left = state.meter.spent(now), paid_seconds(state, now)
    if state.budget is None or spent is None or left is None or state.stops_now:
        return None
    mode = stop_for_budget(
        seconds_left=left,
        trainings=list(_ahead(plan, state, trackers)),
        saving=max((_saving(plan, spec.expert) for spec in plan.recipe.experts), default=0.0),
        stopping=stopping,
        is_stopping=state.is_stopping,
    )
    known = state.budget_reached
    if mode is None or (known is not None and known.mode is mode is not StopMode.NOW):
        return None
    return BudgetReached(at=now, spent=round(spent, 6), budget=state.budget, mode=mode)


def paid_seconds(state: RunState, now: float) -> float | None:
    """Return how many seconds the rest of the budget lasts at the present price; None without budget or price."""
    spent, rate = state.meter.spent(now), state.meter.dollars_per_second
    return None if state.budget is None or spent is None or not rate else (state.budget - spent) / rate


def _ahead(plan: Plan, state: RunState, trackers: Mapping[str, ProgressTracker]) -> Iterator[Ahead]:
    """Yield the next checkpoints of each training that makes steps. Loading and caching cannot be predicted."""
    for step, attempt in running(plan, state):
        tracker = trackers.get(step.id)
        if step.kind is StepKind.TRAIN and state.jobs[step.id].state is JobState.RUNNING and tracker is not None:
            found = ahead_of(plan, step, attempt, tracker)
            if found is not None:
                yield found


def ahead_of(plan: Plan, step: Step, attempt: Attempt, tracker: ProgressTracker) -> Ahead | None:
    """The next checkpoints of a running training; None before its speed is known."""
    speed, per_epoch = tracker.progress.seconds_per_step, attempt.steps_per_epoch
    every = attempt.state_every_epochs
    if speed is None or per_epoch is None or every is None or tracker.local_step is None:
        return None
    return checkpoints_ahead(
        step=tracker.local_step,
        steps_per_epoch=per_epoch,
        epochs=attempt.wanted_epochs(plan, step) - attempt.epochs_before,
        every=every,
        seconds_per_step=speed,
        sample_every=sample_every(plan, attempt),
        sample_seconds=tracker.pause_seconds or 0.0,
    )


def _saving(plan: Plan, expert: Expert) -> float:
    """Return the seconds within which one checkpoint is certainly on disk."""
    traits, training = plan.trainer.traits, plan.training(expert)
    size = traits.state_bytes(training.network_dim) + traits.lora_bytes(training.network_dim, training.mixed_precision)
    return size / _SLOW_DISK

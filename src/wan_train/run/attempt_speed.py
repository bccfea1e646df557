"""The speeds that a finished attempt measured on this box."""

from __future__ import annotations

from wan_train.recipe.model import changed
from wan_train.run.attempt_watch import AttemptWatch, Timing
from wan_train.run.events import CachesCleared
from wan_train.run.plan import CACHING_STEPS, Plan, Step, StepKind
from wan_train.run.samples import sample_every
from wan_train.run.speeds import Speed, key_of
from wan_train.run.state import Attempt, Job, JobState, RunState

_MOSTLY = 0.5


def speed_of(
    plan: Plan, state: RunState, job: Job, watch: AttemptWatch, *, card: str | None, at: float
) -> Speed | None:
    """A measurement, None where the attempt went wrong, made too little, or its card or work is unknown."""
    attempt, step = job.attempt, watch.step
    if attempt is None or attempt.ended is None or card is None or attempt.stop_diagnosis is not None:
        return None
    if attempt.diagnosis is not None or plan.batch_cost is None:
        return None
    timing = watch.stopwatch.timing(attempt.ended - attempt.started, made=_made(job, watch))
    if timing is None or (step.kind is StepKind.TRAIN and not timing.per_unit):
        return None
    training = changed(plan.training(step.expert), attempt.changes) if step.expert is not None else None
    batches = plan.batches_of_step(step.expert) if step.expert is not None else 1
    is_usual = job.state is JobState.SUCCEEDED
    return Speed(
        at=at,
        key=key_of(plan.trainer, step.kind, training, card=card, at_once=_at_once(plan, state, step, attempt)),
        sizes=plan.speed_key,
        cost=1.0 if step.kind is StepKind.CACHE_TEXT else plan.batch_cost,
        units=timing.units * batches,
        per_unit=timing.per_unit / batches,
        beside=timing.beside if is_usual else None,
        after=timing.after if is_usual else None,
        per_sample=_per_sample(plan, attempt, watch, timing),
    )


def _made(job: Job, watch: AttemptWatch) -> int:
    """Steps or items at the end. Short cachings end before a look sees their last items, or any."""
    if watch.step.kind is StepKind.TRAIN:
        return watch.tracker.local_step or 0
    cleared = job.caches.make if job.state is JobState.SUCCEEDED and isinstance(job.caches, CachesCleared) else 0
    return max(cleared, watch.tracker.progress.cached or 0)


def _per_sample(plan: Plan, attempt: Attempt, watch: AttemptWatch, timing: Timing) -> float | None:
    """None where no samples were made. Those quicker than a look are in the steps."""
    every, per_epoch = sample_every(plan, attempt), attempt.steps_per_epoch
    if plan.samples is None or not every or not per_epoch or timing.units < every * per_epoch:
        return None
    return watch.stopwatch.paused / (max(1, watch.stopwatch.pauses) * len(plan.samples.prompts))


def _at_once(plan: Plan, state: RunState, step: Step, attempt: Attempt) -> int:
    """How many programs of this kind worked for most of the attempt's time, itself included."""
    caching = step.id in CACHING_STEPS.values()
    begun, ended = attempt.started, attempt.ended or attempt.started
    count = 1
    for other in plan.steps:
        if other.id == step.id or (other.id in CACHING_STEPS.values()) is not caching:
            continue
        shared = sum(
            max(0.0, min(ended, each.ended or ended) - max(begun, each.started))
            for each in state.jobs[other.id].attempts
        )
        count += shared > _MOSTLY * (ended - begun)
    return count

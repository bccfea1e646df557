"""When a run will be over, as far as that follows from what was measured; None wherever it does not."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from wan_train.gpu.free import why_busy
from wan_train.gpu.model import Gpu
from wan_train.run.plan import Step, StepKind
from wan_train.run.state import Job, JobState
from wan_train.views import run_status as facts
from wan_train.views.history import Pace
from wan_train.views.model import RunView
from wan_train.views.run_status import Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """Seconds that a training still takes. `per_step` is set where they rest on the speed of an earlier attempt."""

    seconds: float
    per_step: float | None = None


def left(view: RunView, step: Step, job: Job, now: float) -> Left | None:
    """What a training whose processes run still takes; None for any other step and while nothing is known."""
    attempt = job.attempt
    if step.kind is not StepKind.TRAIN or not job.state.has_process or attempt is None:
        return None
    if job.state is JobState.STOPPING:
        return Left(seconds=0.0) if attempt.complete else None  # else it may be tried again
    live, progress = view.live, facts.progress(view, step.id)
    if live is not None and progress is not None and progress.eta_seconds is not None:
        return Left(seconds=max(0.0, progress.eta_seconds - max(0.0, now - live.at)))
    pace = view.paces.get(step.id)
    steps = _steps_to_do(view, step, attempt.epochs_before)
    if pace is None or pace.per_step is None or steps is None:
        return None
    loading = max(0.0, pace.to_load - max(0.0, now - attempt.started))
    return Left(seconds=loading + steps * pace.per_step, per_step=pace.per_step)


def next_state_in(view: RunView, step: Step, job: Job, now: float) -> float | None:
    """Seconds until a running training saves its next state; None while that is not known.

    An attempt that did not go on from a state saves as often as the plan says; others as it was decided at their start.
    """
    attempt, live, progress = job.attempt, view.live, facts.progress(view, step.id)
    per_epoch = facts.steps_per_epoch(view, step)
    if attempt is None or attempt.epochs_before or live is None or progress is None or not per_epoch:
        return None
    if progress.step is None or progress.seconds_per_step is None or progress.steps is None:
        return None
    every = view.plan.state_every_epochs * per_epoch
    due = min(progress.steps, (progress.step // every + 1) * every)
    return max(0.0, (due - progress.step) * progress.seconds_per_step - max(0.0, now - live.at))


def next_states_in(view: RunView, now: float) -> float | None:
    """Seconds until each running step has saved its next state, as a stop waits for it; None where one is not known.

    0 when nothing runs: then nothing is waited for.
    """
    waits = [next_state_in(view, step, job, now) for step, job in facts.steps(view) if job.state.has_process]
    known = [wait for wait in waits if wait is not None]
    return max(known, default=0.0) if len(known) == len(waits) else None


def ends_at(view: RunView, now: float) -> float | None:
    """When the last step will be done (seconds since 1970): with trainings that wait placed one after the other on the
    GPUs that this run has or that are idle, the next one to whichever is free first, as the scheduler does.
    """
    if facts.standing(view) not in {Standing.RUNNING, Standing.RETRYING, Standing.WAITING}:
        return None
    free_at: list[float] = []
    waiting: list[tuple[Step, Job]] = []
    for step, job in facts.steps(view):
        if job.state.is_over:
            continue
        if job.state in {JobState.WAITING, JobState.BACKOFF}:
            waiting.append((step, job))
            continue
        found = left(view, step, job, now)
        if found is None:
            return None
        free_at.append(now + found.seconds)
    if not waiting:
        return max(free_at, default=None)
    placed = _placed(view, waiting, _lanes(view, free_at, now), now)
    return None if placed is None else max([*free_at, *placed])


def _lanes(view: RunView, free_at: Sequence[float], now: float) -> list[float]:
    """When each GPU that the run can count on is free for another training."""
    if view.state.one_at_a_time:
        return [max(free_at, default=now)]
    gpus = view.live.gpus if view.live is not None else ()
    idle = [gpu for gpu in gpus if _is_idle(view, gpu)]
    return [*free_at, *(now for _ in idle)]


def _is_idle(view: RunView, gpu: Gpu) -> bool:
    taken = view.live is not None and gpu.uuid in view.live.taken
    return not taken and facts.user_of(view, gpu) is None and why_busy(gpu) is None


def _placed(view: RunView, waiting: Sequence[tuple[Step, Job]], lanes: list[float], now: float) -> list[float] | None:
    """When each of the waiting trainings ends; None when one of them is not a training, or its speed is not known."""
    heapq.heapify(lanes)
    ends = []
    for step, job in waiting:
        pace = _pace_to_expect(view, step)
        steps = _steps_to_do(view, step, facts.epochs_saved(job))
        if pace is None or pace.per_step is None or steps is None or not lanes:
            return None
        begins = max(heapq.heappop(lanes), job.not_before or now)
        ends.append(begins + pace.to_load + steps * pace.per_step)
        heapq.heappush(lanes, ends[-1])
    return ends


def _pace_to_expect(view: RunView, step: Step) -> Pace | None:
    """Its own of an earlier attempt, else that of the other expert, which trains the same pictures."""
    own = view.paces.get(step.id)
    if step.kind is not StepKind.TRAIN or (own is not None and own.per_step is not None):
        return own
    for other, pace in view.paces.items():
        now = facts.progress(view, other)
        recent = now.seconds_per_step if now is not None else None
        if recent is not None or pace.per_step is not None:
            return Pace(to_load=pace.to_load, per_step=recent if recent is not None else pace.per_step)
    return None


def _steps_to_do(view: RunView, step: Step, epochs_done: int) -> int | None:
    per_epoch = facts.steps_per_epoch(view, step)
    return None if per_epoch is None else max(0, facts.epochs(view, step) - epochs_done) * per_epoch

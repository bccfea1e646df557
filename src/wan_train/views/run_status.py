"""The status of a run, the facts about its steps that all views share, and its expected end."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from wan_train.base.errors import ExitCode
from wan_train.base.units import duration, file_size, fine_percent
from wan_train.engine.failures import Cause, Diagnosis
from wan_train.gpu.free import why_busy
from wan_train.gpu.model import Gpu
from wan_train.run.events import MovementMeasured, StateSaved, StateUnusable
from wan_train.run.gpu_pool import gpu_label
from wan_train.run.movement import Learning, learning
from wan_train.run.plan import Step, StepKind
from wan_train.run.progress import Progress
from wan_train.run.state import Attempt, Job, JobState
from wan_train.views.model import Pace, RunView

_PAUSE_SECONDS = 60.0
"""Pauses shorter than this are not mentioned."""


class RunStatus(StrEnum):
    """A run in one word; part of the JSON contract."""

    RUNNING = "running"
    WAITING = "waiting"
    RETRYING = "retrying"
    """Nothing runs; a failed step is retried after a pause."""
    STOPPING = "stopping"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    LOST = "lost"
    """The supervisor died before the run was over; trainers may still run."""


def status_of(view: RunView) -> RunStatus:
    state = view.state
    if state.finished is not None:
        match state.finished.exit_code:
            case ExitCode.DONE:
                return RunStatus.FINISHED
            case ExitCode.INTERRUPTED | ExitCode.TERMINATED | ExitCode.OVER_BUDGET:
                return RunStatus.STOPPED
            case _:
                return RunStatus.FAILED
    if not view.supervisor_alive:
        return RunStatus.LOST
    if state.is_stopping:
        return RunStatus.STOPPING
    if any(job.state.has_process for job in state.jobs.values()):
        return RunStatus.RUNNING
    if any(job.state is JobState.BACKOFF for job in state.jobs.values()):
        return RunStatus.RETRYING
    return RunStatus.WAITING


def is_lost(view: RunView, job: Job) -> bool:
    """Whether a step was running when its supervisor died, and its program is gone too."""
    return status_of(view) is RunStatus.LOST and job.state.has_process and job.step not in view.orphans


def low_disk(view: RunView) -> Diagnosis | None:
    """Why a run was stopped before its disk was full; None for any other run."""
    low, finished = view.state.disk_low, view.state.finished
    if low is None or (finished is not None and finished.exit_code != ExitCode.NOT_READY):
        return None
    return Diagnosis(
        cause=Cause.DISK_FULL,
        meaning=f"Disk space is low: {file_size(low.free)} free, {file_size(low.needed)} needed "
        "for the next checkpoints",
        advice="Free some disk space: `wan-train clean` removes unneeded files.",
    )


def dead_supervisor(view: RunView) -> Diagnosis | None:
    """What ended a run that is lost; None for any other run."""
    if status_of(view) is not RunStatus.LOST:
        return None
    return Diagnosis(
        cause=Cause.LOST,
        meaning="The supervisor died before the run finished",
        advice=f"wan-train resume {view.run.run_id}",
        evidence=view.supervisor_said,
    )


def elapsed(view: RunView, now: float) -> float:
    """Seconds from the first supervisor's start to the end of the run, or to `now`."""
    finished = view.state.finished
    begun = view.state.started if view.state.started is not None else view.plan.created
    return max(0.0, (finished.at if finished is not None else now) - begun)


def worked(view: RunView, now: float) -> float:
    """Seconds during which any process of the run worked, without pauses, waiting and downtime."""
    spans = sorted(
        (attempt.started, _end(view, job, attempt, now)) for job in view.state.jobs.values() for attempt in job.attempts
    )
    total, until = 0.0, -math.inf
    for begun, ended in spans:
        total += max(0.0, ended - max(begun, until))
        until = max(until, ended)
    return total


def took(view: RunView, now: float) -> str:
    """The time a run worked, with the whole time if that is much longer."""
    work, whole = worked(view, now), elapsed(view, now)
    if whole - work < max(_PAUSE_SECONDS, whole / 4):
        return duration(work)
    return f"{duration(work)} of work ({duration(whole)} in all)"


def _end(view: RunView, job: Job, attempt: Attempt, now: float) -> float:
    """When the processes of an attempt ended. A later supervisor records that too late, so use file times."""
    seen = now if attempt.ended is None else attempt.ended
    return min(seen, max(attempt.started, view.last_signs.get((job.step, attempt.number), seen)))


def spent_by_attempt(job: Job, now: float) -> float | None:
    """Seconds of a step's newest attempt so far, None before the first."""
    attempt = job.attempt
    return max(0.0, (attempt.ended or now) - attempt.started) if attempt is not None else None


def spent(view: RunView, job: Job, now: float) -> float | None:
    """Seconds of all attempts of a step so far, None before the first."""
    if not job.attempts:
        return None
    return sum(max(0.0, _end(view, job, attempt, now) - attempt.started) for attempt in job.attempts)


def steps_of(view: RunView) -> Iterator[tuple[Step, Job]]:
    for step in view.plan.steps:
        yield step, view.state.jobs.get(step.id, Job(step=step.id))


def progress_of(view: RunView, step_id: str) -> Progress | None:
    """The last progress seen of a step's newest attempt."""
    return view.live.progress.get(step_id) if view.live is not None else None


def waits_for(view: RunView, job: Job) -> str | None:
    """Why a step does not run yet; None when it is not waiting."""
    if job.state not in {JobState.WAITING, JobState.BACKOFF}:
        return None
    return (view.live.waiting.get(job.step) if view.live is not None else None) or "waiting for its turn"


def epochs(view: RunView, step: Step) -> int:
    """The epochs of a training; more than the plan's where the run was extended."""
    return view.state.total_epochs(view.plan, step)


def early_end(view: RunView, step: Step) -> str | None:
    """`after epoch 50 of 100 (--until 50)`; None for a step that ends with its schedule."""
    if step.expert is None:
        return None
    end, total = view.state.total_epochs(view.plan, step), view.state.schedule_epochs(view.plan, step)
    if end >= total:
        return None
    # After a resume with new ends, the --until of the plan no longer holds.
    by = "" if view.state.ends else f" (--until {view.plan.training(step.expert).until})"
    return f"after epoch {end} of {total}{by}"


def ended_early(view: RunView) -> bool:
    """Whether a finished training has fewer epochs than its schedule."""
    return any(
        job.result is not None and (job.result.epochs or total) < total
        for step, job in steps_of(view)
        if step.expert is not None and (total := view.state.schedule_epochs(view.plan, step))
    )


def planned_steps(view: RunView, step: Step) -> int | None:
    """Optimizer steps of a whole training as planned; None while unknown."""
    return view.plan.steps_of(step.expert) if step.expert is not None else None


def steps_per_epoch(view: RunView, step: Step) -> int | None:
    """Optimizer steps of one epoch of a training, as a trainer announced them or as planned; None while unknown."""
    plan, expert = view.plan, step.expert
    if expert is None:
        return None
    for other in sorted(plan.steps, key=lambda other: other.id != step.id):
        if other.expert is None or plan.batches_of_step(other.expert) != plan.batches_of_step(expert):
            continue
        for attempt in view.state.jobs[other.id].attempts:
            if attempt.steps_per_epoch:
                return attempt.steps_per_epoch
    return plan.steps_per_epoch(expert)


def newest_state(job: Job) -> StateSaved | None:
    """The state that a training would resume from after a crash, as far as the journal knows."""
    states = [attempt.last_state for attempt in job.attempts if attempt.last_state is not None]
    return max(states, key=lambda state: (state.epoch, state.at), default=None)


def unusable_state(job: Job) -> StateUnusable | None:
    """The newest state if it is unusable, else None."""
    return job.attempt.unusable_state if job.attempt is not None else None


def learning_of(view: RunView, step: Step, movement: MovementMeasured) -> Learning:
    return learning(movement, view.state.schedule_epochs(view.plan, step))


def learning_text(view: RunView, step: Step, movement: MovementMeasured) -> str:
    """The word for a LoRA's movement and the movement itself: `settled: moved 0.3 % since epoch 40`."""
    word, moved = learning_of(view, step, movement), fine_percent(movement.relative)
    return f"{word.value}: moved {moved} since epoch {movement.since_epoch}"


def epochs_saved(job: Job) -> int:
    """The number of epochs that a crash now would not lose."""
    saved = newest_state(job)
    begun_at = job.attempt.epochs_before if job.attempt is not None else 0
    return max(begun_at, saved.epoch if saved is not None else 0)


def expected_caches(view: RunView, step: Step) -> int | None:
    """The number of items of a caching step; None for training, and unknown (None) with videos."""
    if step.kind is StepKind.TRAIN or view.plan.dataset.has_videos:
        return None
    return sum(view.plan.dataset.cached_items.values())


def log_of(view: RunView, job: Job) -> Path | None:
    attempt = job.attempt
    return None if attempt is None else view.run.attempt(job.step, attempt.number).log


def label_of(view: RunView, gpu: Gpu) -> str:
    return gpu_label(gpu, view.plan.devices)


def user_of(view: RunView, gpu: Gpu) -> str | None:
    """The ID of this run's step on a GPU, if there is one."""
    return next((job.step for job in view.state.jobs.values() if job.occupies_gpu == gpu.uuid), None)


def is_rehearsal(view: RunView) -> bool:
    return not view.plan.trainer.is_real


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLeft:
    """Seconds until a training ends. `per_step` is set if they are based on an earlier attempt's speed."""

    seconds: float
    per_step: float | None = None


def time_left(view: RunView, step: Step, job: Job, now: float) -> TimeLeft | None:
    """The time left of a running training; None for any other step and while unknown."""
    attempt = job.attempt
    if step.kind is not StepKind.TRAIN or not job.state.has_process or attempt is None:
        return None
    if job.state is JobState.STOPPING:
        return TimeLeft(seconds=0.0) if attempt.complete else None  # else it may be retried
    live, progress = view.live, progress_of(view, step.id)
    if live is not None and progress is not None and progress.eta_seconds is not None:
        return TimeLeft(seconds=max(0.0, progress.eta_seconds - max(0.0, now - live.at)))
    pace = view.paces.get(step.id)
    steps = _steps_to_do(view, step, attempt.epochs_before)
    if pace is None or pace.per_step is None or steps is None:
        return None
    loading = max(0.0, pace.to_load - max(0.0, now - attempt.started))
    return TimeLeft(seconds=loading + steps * pace.per_step, per_step=pace.per_step)


def next_state_in(view: RunView, step: Step, job: Job, now: float) -> float | None:
    """Seconds until a running training saves its next state; None while unknown.

    A first attempt saves at the plan's interval. A resumed one chooses its own at its start, so it is unknown.
    """
    attempt, live, progress = job.attempt, view.live, progress_of(view, step.id)
    per_epoch = steps_per_epoch(view, step)
    if attempt is None or attempt.epochs_before or live is None or progress is None or not per_epoch:
        return None
    if progress.step is None or progress.seconds_per_step is None or progress.steps is None:
        return None
    every = view.plan.state_every_epochs * per_epoch
    due = min(progress.steps, (progress.step // every + 1) * every)
    return max(0.0, (due - progress.step) * progress.seconds_per_step - max(0.0, now - live.at))


def next_states_in(view: RunView, now: float) -> float | None:
    """Seconds until every running step has saved its next state; 0 when nothing runs, None while unknown."""
    waits = [next_state_in(view, step, job, now) for step, job in steps_of(view) if job.state.has_process]
    known = [wait for wait in waits if wait is not None]
    return max(known, default=0.0) if len(known) == len(waits) else None


def ends_at(view: RunView, now: float) -> float | None:
    """When the last step will end, in seconds since 1970; None while unknown.

    Before the first steps it comes from the plan's quote, which rests on earlier measurements.
    """
    if status_of(view) not in {RunStatus.RUNNING, RunStatus.RETRYING, RunStatus.WAITING}:
        return None
    measured = _measured_end(view, now)
    return _quoted_end(view, now) if measured is None else measured


def _quoted_end(view: RunView, now: float) -> float | None:
    """The end by the plan's quote; None after a retry or resume, or once the quoted time has passed."""
    found = view.plan.quote
    as_planned = all(len(job.attempts) <= 1 for job in view.state.jobs.values()) and view.state.epochs is None
    if found is None or not as_planned or status_of(view) is not RunStatus.RUNNING:
        return None
    left = found.seconds - worked(view, now)
    return now + left if left > 0 else None


def _measured_end(view: RunView, now: float) -> float | None:
    """The end by the speed of this run's own steps; None while unknown.

    Like the scheduler, this places each waiting training on the first free GPU, among the run's own and idle ones.
    """
    free_at: list[float] = []
    waiting: list[tuple[Step, Job]] = []
    for step, job in steps_of(view):
        if job.state.is_over:
            continue
        if job.state in {JobState.WAITING, JobState.BACKOFF}:
            waiting.append((step, job))
            continue
        found = time_left(view, step, job, now) or _loading(view, step, job, now)
        if found is None:
            return None
        free_at.append(now + found.seconds + _after_steps(view))
    if not waiting:
        return max(free_at, default=None)
    placed = _placed(view, waiting, _gpus_free_at(view, free_at, now), now)
    return None if placed is None else max([*free_at, *placed])


def _after_steps(view: RunView) -> float:
    """Seconds from the last step to the end, from earlier trainings: the steps of this run cannot show it."""
    return view.plan.quote.after_steps if view.plan.quote is not None else 0.0


def _loading(view: RunView, step: Step, job: Job, now: float) -> TimeLeft | None:
    """The time left of a training without a step yet, at its earlier or the other expert's pace."""
    attempt, pace = job.attempt, _expected_pace(view, step)
    if attempt is None or job.state is not JobState.RUNNING or pace is None or pace.per_step is None:
        return None
    steps = _steps_to_do(view, step, attempt.epochs_before)
    if steps is None:
        return None
    return TimeLeft(seconds=max(0.0, pace.to_load - max(0.0, now - attempt.started)) + steps * pace.per_step)


def _gpus_free_at(view: RunView, free_at: Sequence[float], now: float) -> list[float]:
    """When each GPU available to the run is free for another training."""
    if view.state.one_at_a_time:
        return [max(free_at, default=now)]
    gpus = view.live.gpus if view.live is not None else ()
    return [*free_at, *(now for gpu in gpus if _is_idle(view, gpu))]


def _is_idle(view: RunView, gpu: Gpu) -> bool:
    taken = view.live is not None and gpu.uuid in view.live.taken
    return not taken and user_of(view, gpu) is None and why_busy(gpu) is None


def _placed(view: RunView, waiting: Sequence[tuple[Step, Job]], gpus: list[float], now: float) -> list[float] | None:
    """When each waiting training ends; None when one of them is not a training, or its speed is unknown."""
    heapq.heapify(gpus)
    ends = []
    for step, job in waiting:
        pace = _expected_pace(view, step)
        steps = _steps_to_do(view, step, epochs_saved(job))
        if pace is None or pace.per_step is None or steps is None or not gpus:
            return None
        begins = max(heapq.heappop(gpus), job.not_before or now)
        ends.append(begins + pace.to_load + steps * pace.per_step + _after_steps(view))
        heapq.heappush(gpus, ends[-1])
    return ends


def _expected_pace(view: RunView, step: Step) -> Pace | None:
    """The pace of an earlier attempt, or else of the other expert, which trains the same pictures."""
    own = view.paces.get(step.id)
    if step.kind is not StepKind.TRAIN or (own is not None and own.per_step is not None):
        return own
    for other, pace in view.paces.items():
        progress = progress_of(view, other)
        recent = progress.seconds_per_step if progress is not None else None
        if recent is not None or pace.per_step is not None:
            return Pace(to_load=pace.to_load, per_step=recent if recent is not None else pace.per_step)
    return None


def _steps_to_do(view: RunView, step: Step, epochs_done: int) -> int | None:
    per_epoch = steps_per_epoch(view, step)
    return None if per_epoch is None else max(0, epochs(view, step) - epochs_done) * per_epoch

"""One line per event, for terminals without colour, logs and CI."""

from __future__ import annotations

from typing import assert_never

from wan_train.base.errors import ExitCode
from wan_train.base.units import count, dollars, duration, file_size
from wan_train.engine.failures import Diagnosis
from wan_train.run.events import (
    BudgetReached,
    BudgetSet,
    CachesCleared,
    CachesDisturbed,
    CachesUpToDate,
    CheckpointKept,
    DiskLow,
    EpochEnded,
    Event,
    GpusChosen,
    MovementMeasured,
    PriceSet,
    ResultPlaced,
    RetryScheduled,
    RunFinished,
    RunResumed,
    StateSaved,
    StateUnusable,
    StepExited,
    StepFailed,
    StepRefused,
    StepSkipped,
    StepStarted,
    StepStopped,
    StepStopping,
    StepSucceeded,
    StopMode,
    StopRequested,
    SupervisorStarted,
    TrainingBegan,
)
from wan_train.run.samples import WITHOUT
from wan_train.views import run_status
from wan_train.views.formatting import (
    clock,
    columns,
    cut,
    dollars_per_hour,
    joined_lines,
    loss,
    pace,
    pad,
    price_basis,
    reasons,
    safe,
)
from wan_train.views.model import RunView

_MOST_EPOCH_LINES = 100
_EVIDENCE_WIDTH = 160


def event_line(event: Event, view: RunView) -> str | None:
    """One line per event, local time first; None for events without a line.

    `view` is the run after the event, or later.
    """
    text = event_text(event, view)
    if text is None:
        return None
    width = max(len("run"), *(columns(safe(step.id)) for step in view.plan.steps)) + 2
    return f"{clock(event.at)}  {pad(safe(subject(event)), width)}{text}"


def subject(event: Event) -> str:
    """The id of an event's step, or `run`."""
    match event:
        case SupervisorStarted() | StopRequested() | RunFinished() | DiskLow() | GpusChosen() | RunResumed():
            return "run"
        case PriceSet() | BudgetSet() | BudgetReached():
            return "run"
        case _:
            return event.step


def event_text(event: Event, view: RunView) -> str | None:  # noqa: C901, PLR0912  one branch for each kind of event
    """The text of an event, without time and subject; None for events without a line."""
    match event:
        case SupervisorStarted():
            is_first = view.state.started is None or event.at <= view.state.started
            return f"{view.plan.run_id} in {safe(view.run.path)}" if is_first else "a new supervisor took over"
        case StopRequested():
            return f"stop requested: {'now' if event.mode is StopMode.NOW else 'after the next checkpoint'}"
        case RunFinished():
            return _run_finished(event, view)
        case DiskLow():
            sizes = f"{file_size(event.free)} free, {file_size(event.needed)} needed"
            return f"disk space is low ({sizes}): stopping after the next checkpoints"
        case PriceSet():
            return f"the box costs {dollars_per_hour(event.per_hour)} ({price_basis(event.source, event.runs)})"
        case BudgetSet():
            return f"budget {dollars(event.dollars)}"
        case BudgetReached():
            sums = f"{dollars(event.spent)} of {dollars(event.budget)} spent"
            when = "now" if event.mode is StopMode.NOW else "after the next checkpoints"
            return f"the budget is nearly reached ({sums}): stopping {when}"
        case GpusChosen():
            gpus = safe(", ".join(event.labels or event.gpu_uuids))
            return f"now uses {gpus}" if event.asked else f"this box has other GPUs than before: now uses {gpus}"
        case RunResumed():
            if event.ends:
                ends = ", ".join(f"{safe(step)} after epoch {epoch}" for step, epoch in event.ends.items())
                return f"resumed under the same learning rate; ends: {ends}"
            if event.epochs is None:
                return "resumed: failed and stopped steps are retried"
            return f"extended to {event.epochs} epochs; the learning rate follows the longer curve from here on"
        case StepStarted():
            return _started(event, view)
        case StepSucceeded():
            job = view.state.jobs.get(event.step)
            took = run_status.spent(view, job, event.at) if job is not None else None
            return "finished" + (f" in {duration(took)}" if took is not None else "") + _loss("final loss", event.loss)
        case StepFailed():
            log = view.run.attempt(event.step, event.attempt).log
            return f"{_failure(event.diagnosis)} Log: {safe(log)}"
        case StepRefused():
            return _failure(event.diagnosis)
        case StepStopping(complete=True):
            return "the last epoch is done: stopping the trainer"
        case StepStopping(diagnosis=Diagnosis(meaning=meaning)):
            return f"stopping: {safe(meaning)}"
        case StepStopping():
            return "stopping"
        case StepStopped():
            return "stopped"
        case StepSkipped():
            return f"skipped: {safe(event.reason)}"
        case RetryScheduled():
            pause = duration(max(0.0, event.not_before - event.at))
            return f"attempt {event.attempt} failed: {safe(event.why)}; retrying in {pause}"
        case CachesUpToDate():
            gone = sum(event.removed.values())
            removed = f"; {count(gone, 'cache')} without a picture removed" if gone else ""
            return f"caches are up to date: {event.items:,} of {event.items:,}{removed}"
        case CachesCleared():
            gone = sum(event.removed.values())
            removed = f", {count(gone, 'file')} removed ({reasons(event.removed)})" if gone else ""
            return f"{event.make:,} of {event.items:,} caches to make ({reasons(event.made)}){removed}"
        case CachesDisturbed():
            return f"caches have changed and are checked again: {safe(event.what)}"
        case EpochEnded():
            return _epoch(event, view)
        case MovementMeasured():
            return _movement(event, view)
        case CheckpointKept():
            return f"LoRA of epoch {event.epoch} kept: {safe(event.path)}"
        case StateUnusable():
            return f"the checkpoint of epoch {event.epoch} is not usable: {safe(event.why)} in {safe(event.path)}"
        case ResultPlaced():
            return f"LoRA ready: {safe(event.path)} ({file_size(event.bytes)})"
        case StateSaved() | StepExited() | TrainingBegan():
            return None
        case _:
            assert_never(event)


def _started(event: StepStarted, view: RunView) -> str:
    parts = [f"started on {safe(event.gpu_label)}" if event.gpu_label else "started"]
    parts += [f"attempt {event.attempt}"] if event.attempt > 1 else []
    if event.resumed_from:
        parts.append(f"resumed after epoch {event.epochs_before} of {event.total_epochs}")
    elif event.attempt > 1 and event.total_epochs is not None:
        job = view.state.jobs.get(event.step)
        earlier = [attempt for attempt in job.attempts if attempt.number < event.attempt] if job is not None else []
        unusable = earlier[-1].unusable_state if earlier else None
        why = f"the checkpoint of epoch {unusable.epoch} is not usable, {safe(unusable.why)}" if unusable else ""
        parts.append(f"from the beginning: {why or 'no checkpoint was saved'}")
    if event.total_epochs is not None and event.schedule_epochs not in {None, event.total_epochs}:
        parts.append(f"ends after epoch {event.total_epochs} of {event.schedule_epochs}")
    for name, value in event.changes.items():
        parts.append("without samples" if (name, value) in WITHOUT.items() else f"{name}={value}")
    return ", ".join(parts)


def _failure(found: Diagnosis) -> str:
    evidence = f" [{cut(joined_lines(found.evidence), _EVIDENCE_WIDTH)}]" if found.evidence else ""
    return f"failed: {safe(found.meaning)}. {safe(found.advice)}{evidence}"


def _epoch(event: EpochEnded, view: RunView) -> str | None:
    epochs = run_status.epochs(view, view.plan.step(event.step))
    every = max(1, epochs // _MOST_EPOCH_LINES)
    if event.epoch % every and event.epoch != epochs:
        return None
    text = f"epoch {event.epoch}/{epochs}{_loss('loss', event.loss)}"
    progress = run_status.progress_of(view, event.step)
    job = view.state.jobs.get(event.step)
    # Speed and time left are current, so they would be wrong beside an earlier epoch.
    is_newest = job is not None and job.attempt is not None and job.attempt.epochs_done == event.epoch
    if progress is not None and is_newest and job is not None and job.state.has_process:
        text += f"  {pace(progress.seconds_per_step)}" if progress.seconds_per_step is not None else ""
        text += f"  {duration(progress.eta_seconds)} left" if progress.eta_seconds else ""
    return text


def _movement(event: MovementMeasured, view: RunView) -> str | None:
    """The text of a movement; None if the word for it is the same as before."""
    job = view.state.jobs.get(event.step)
    earlier = [each for each in job.movements if each.epoch < event.epoch] if job is not None else []
    step = view.plan.step(event.step)
    word = run_status.learning_of(view, step, event)
    if earlier and run_status.learning_of(view, step, earlier[-1]) is word:
        return None
    return run_status.learning_text(view, step, event)


def _run_finished(event: RunFinished, view: RunView) -> str:
    took = run_status.took(view, event.at)
    match event.exit_code:
        case ExitCode.DONE:
            return f"finished in {took}"
        case ExitCode.PARTLY_FAILED:
            return f"failed after {took}: one expert finished, the other did not"
        case ExitCode.INTERRUPTED | ExitCode.TERMINATED:
            return f"stopped after {took}"
        case ExitCode.OVER_BUDGET:
            return f"stopped after {took}, before the budget was reached"
        case _:
            return f"failed after {took}"


def _loss(name: str, value: float | None) -> str:
    return f"  {name} {loss(value)}" if value is not None else ""

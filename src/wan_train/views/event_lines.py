"""One line per event, for terminals without colour, logs and CI."""

from __future__ import annotations

from typing import assert_never

from wan_train.base.errors import ExitCode
from wan_train.engine.failures import Diagnosis
from wan_train.run.events import (
    CachesCleared,
    CachesDisturbed,
    CachesUpToDate,
    CheckpointKept,
    DiskLow,
    EpochEnded,
    Event,
    GpusChosen,
    ResultPlaced,
    RetryScheduled,
    RunFinished,
    RunResumed,
    StateUnusable,
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
)
from wan_train.run.samples import WITHOUT
from wan_train.views import formatting
from wan_train.views import run_status as facts
from wan_train.views.model import RunView

_MOST_EPOCH_LINES = 100


def describe(event: Event, view: RunView) -> str | None:
    """What happened on one line, local time first; None for what nobody needs to read.

    `view` is the run after the event, or later.
    """
    said = say(event, view)
    if said is None:
        return None
    who, what = said
    ids = max((formatting.columns(formatting.safe(step.id)) for step in view.plan.steps), default=0)
    who = formatting.pad(formatting.safe(who), max(ids, len("run")) + 2)
    return f"{formatting.clock(event.at)}  {who}{what}"


def say(event: Event, view: RunView) -> tuple[str, str] | None:
    """Whom it is about (a step id, or `run`) and what happened; None for what nobody needs to read."""
    match event:
        case SupervisorStarted(at=at):
            again = view.state.started is not None and at > view.state.started
            return "run", "a new supervisor took over" if again else f"{view.plan.run_id} in {_path(view.run.path)}"
        case StopRequested():
            return "run", f"asked to stop {'now' if event.mode is StopMode.NOW else 'after the next checkpoint'}"
        case RunFinished():
            return "run", _finished(event, view)
        case DiskLow():
            free, needed = formatting.file_size(event.free), formatting.file_size(event.needed)
            return "run", f"the disk is low ({free} free, {needed} needed): stopping after the next checkpoints"
        case GpusChosen():
            return "run", _chosen(event)
        case RunResumed(epochs=None):
            return "run", "goes on: what failed or was stopped is tried again"
        case RunResumed(epochs=int(epochs)):
            return "run", f"extended to {epochs} epochs; the learning rate follows the longer curve from here on"
        case (
            StepStarted()
            | StepSucceeded()
            | StepFailed()
            | StepStopping()
            | StepStopped()
            | StepSkipped()
            | EpochEnded()
            | CheckpointKept()
            | ResultPlaced()
            | RetryScheduled()
            | CachesUpToDate()
            | CachesCleared()
            | CachesDisturbed()
            | StepRefused()
            | StateUnusable()
        ):
            text = _say_step(event, view)
            return None if text is None else (event.step, text)
        case _:
            return None


def _chosen(event: GpusChosen) -> str:
    gpus = formatting.safe(", ".join(event.labels or event.gpu_uuids))
    return f"uses {gpus} from here on" if event.asked else f"this box has other GPUs than before: uses {gpus} now"


_StepEvent = (
    (StepStarted | StepSucceeded | StepFailed | StepStopping | StepStopped | StepSkipped | EpochEnded | CheckpointKept)
    | ResultPlaced
    | RetryScheduled
    | CachesUpToDate
    | CachesCleared
    | CachesDisturbed
    | StepRefused
    | StateUnusable
)


def _say_step(event: _StepEvent, view: RunView) -> str | None:  # noqa: C901, PLR0912  one branch for each kind of event
    match event:
        case StepStarted():
            return _started(event, _unusable(view, event))
        case StepSucceeded():
            return _succeeded(event, view)
        case StepFailed():
            return _failed(event, view)
        case StepStopping(complete=True):
            return "all epochs done: stopping the trainer"
        case StepStopping(diagnosis=Diagnosis(meaning=meaning)):
            return f"is being stopped: {formatting.safe(meaning)}"
        case StepStopping():
            return "is being stopped"
        case RetryScheduled():
            pause = max(0.0, event.not_before - event.at)
            why = formatting.safe(event.why)
            return f"attempt {event.attempt} failed: {why}; retrying in {formatting.duration(pause)}"
        case CachesUpToDate():
            return _up_to_date(event)
        case CachesCleared():
            return _cleared(event)
        case CachesDisturbed():
            return f"looked at again, since its caches have changed: {formatting.safe(event.what)}"
        case StepRefused():
            found = event.diagnosis
            evidence = f" [{formatting.cut(formatting.joined_lines(found.evidence), 160)}]" if found.evidence else ""
            return f"FAILED: {formatting.safe(found.meaning)}. {formatting.safe(found.advice)}{evidence}"
        case StepStopped():
            return "stopped"
        case StepSkipped():
            return f"skipped: {formatting.safe(event.reason)}"
        case EpochEnded():
            return _epoch(event, view)
        case CheckpointKept():
            return f"LoRA of epoch {event.epoch} kept: {_path(event.path)}"
        case StateUnusable():
            return (
                f"the state of epoch {event.epoch} does not count: {formatting.safe(event.why)} in {_path(event.path)}"
            )
        case ResultPlaced():
            return f"LoRA ready: {_path(event.path)} ({formatting.file_size(event.bytes)})"
        case _:
            assert_never(event)


def _up_to_date(event: CachesUpToDate) -> str:
    gone = sum(event.removed.values())
    removed = f"; {formatting.count(gone, 'cache')} of pictures that are gone removed" if gone else ""
    return f"caches are up to date: {event.items:,} of {event.items:,}{removed}"


def _cleared(event: CachesCleared) -> str:
    made = f"{event.make:,} of {event.items:,} caches to make ({formatting.reasons(event.made)})"
    gone = sum(event.removed.values())
    return made + (f", {formatting.count(gone, 'file')} removed ({formatting.reasons(event.removed)})" if gone else "")


def _unusable(view: RunView, event: StepStarted) -> StateUnusable | None:
    """The state that the attempt before left, where it does not count."""
    job = view.state.jobs.get(event.step)
    earlier = [attempt for attempt in job.attempts if attempt.number < event.attempt] if job is not None else []
    return earlier[-1].unusable_state if earlier else None


def _started(event: StepStarted, unusable: StateUnusable | None) -> str:
    where = f" on {formatting.safe(event.gpu_label)}" if event.gpu_label else ""
    attempt = f", attempt {event.attempt}" if event.attempt > 1 else ""
    resumed = ""
    if event.resumed_from:
        resumed = f", going on after epoch {event.epochs_before} of {event.total_epochs}"
    elif event.attempt > 1 and event.total_epochs is not None:
        resumed = ", from the beginning: no complete state was saved"
        if unusable is not None:
            why = formatting.safe(unusable.why)
            resumed = f", from the beginning: the state of epoch {unusable.epoch} does not count, {why}"
    changes = "".join(
        f", {'without samples' if (name, value) in WITHOUT.items() else f'{name}={value}'}"
        for name, value in event.changes.items()
    )
    return f"started{where}{attempt}{resumed}{changes}"


def _succeeded(event: StepSucceeded, view: RunView) -> str:
    job = view.state.jobs.get(event.step)
    took = facts.spent(view, job, event.at) if job is not None else None
    return "done" + (f" in {formatting.duration(took)}" if took is not None else "") + _loss("  final loss", event.loss)


def _failed(event: StepFailed, view: RunView) -> str:
    found = event.diagnosis
    log = view.run.attempt(event.step, event.attempt).log
    evidence = f" [{formatting.cut(formatting.joined_lines(found.evidence), 160)}]" if found.evidence else ""
    return f"FAILED: {formatting.safe(found.meaning)}. {formatting.safe(found.advice)}{evidence} Log: {_path(log)}"


def _epoch(event: EpochEnded, view: RunView) -> str | None:
    epochs = facts.epochs(view, view.plan.step(event.step))
    every = max(1, epochs // _MOST_EPOCH_LINES)
    if event.epoch % every and event.epoch != epochs:
        return None
    text = f"epoch {event.epoch}/{epochs}{_loss('  loss', event.loss)}"
    now = facts.progress_of(view, event.step)
    job = view.state.jobs.get(event.step)
    # Speed and time left are those of this moment: they would be wrong beside an epoch of long ago.
    is_newest = job is not None and job.attempt is not None and job.attempt.epochs_done == event.epoch
    if now is not None and is_newest and job is not None and job.state.has_process:
        text += f"  {formatting.pace(now.seconds_per_step)}" if now.seconds_per_step is not None else ""
        text += f"  {formatting.duration(now.eta_seconds)} left" if now.eta_seconds else ""
    return text


def _finished(event: RunFinished, view: RunView) -> str:
    took = facts.took(view, event.at)
    match event.exit_code:
        case ExitCode.DONE:
            return f"finished in {took}"
        case ExitCode.PARTLY_FAILED:
            return f"ended after {took}: one expert finished, another did not"
        case ExitCode.INTERRUPTED | ExitCode.TERMINATED:
            return f"stopped after {took}"
        case _:
            return f"failed after {took}"


def _loss(name: str, value: float | None) -> str:
    return f"{name} {formatting.loss(value)}" if value is not None else ""


def _path(path: object) -> str:
    return formatting.safe(path)

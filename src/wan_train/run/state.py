"""The state of a run as a function of its events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import assert_never

from wan_train.engine.failures import Diagnosis
from wan_train.run.events import (
    CheckpointKept,
    EpochEnded,
    Event,
    Exit,
    ResultPlaced,
    RunFinished,
    StateSaved,
    StepExited,
    StepFailed,
    StepSkipped,
    StepStarted,
    StepStopped,
    StepStopping,
    StepSucceeded,
    StopMode,
    StopRequested,
    SupervisorStarted,
)
from wan_train.run.identity import ProcessIdentity
from wan_train.run.plan import Plan


class JobState(StrEnum):
    """Where a step stands."""

    WAITING = "waiting"
    RUNNING = "running"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    SKIPPED = "skipped"

    @property
    def is_over(self) -> bool:
        return not LEGAL_MOVES[self]

    @property
    def has_process(self) -> bool:
        return self in {JobState.RUNNING, JobState.STOPPING}


LEGAL_MOVES: Mapping[JobState, frozenset[JobState]] = {
    JobState.WAITING: frozenset({JobState.RUNNING, JobState.STOPPED, JobState.SKIPPED}),
    JobState.RUNNING: frozenset(
        {JobState.STOPPING, JobState.BACKOFF, JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED}
    ),
    JobState.STOPPING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED}),
    JobState.BACKOFF: frozenset({JobState.RUNNING, JobState.STOPPED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.STOPPED: frozenset(),
    JobState.SKIPPED: frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One launch of a step's command."""

    number: int
    gpu_uuid: str | None
    gpu_label: str | None
    identity: ProcessIdentity
    started: float
    resumed_from: str | None = None
    ended: float | None = None
    exit: Exit | None = None
    diagnosis: Diagnosis | None = None
    epochs_done: int = 0
    last_loss: float | None = None
    last_state: StateSaved | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished LoRA."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One step and what became of it so far."""

    step: str
    state: JobState = JobState.WAITING
    attempts: tuple[Attempt, ...] = ()
    not_before: float | None = None
    reason: str | None = None
    result: Result | None = None
    loss: float | None = None
    kept: tuple[str, ...] = ()

    @property
    def attempt(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None

    @property
    def occupies_gpu(self) -> str | None:
        """The UUID of the GPU that this job's processes are on at this moment."""
        last = self.attempt
        return last.gpu_uuid if last is not None and last.exit is None and self.state.has_process else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """All jobs of a run in plan order, and what was asked of the run."""

    jobs: Mapping[str, Job] = field(default_factory=dict)
    supervisor: ProcessIdentity | None = None
    started: float | None = None
    stop: StopRequested | None = None
    finished: RunFinished | None = None

    @property
    def is_over(self) -> bool:
        return self.finished is not None


def initial(plan: Plan) -> RunState:
    return RunState(jobs={step.id: Job(step=step.id) for step in plan.steps})


def fold_all(plan: Plan, events: Iterable[Event]) -> RunState:
    state = initial(plan)
    for event in events:
        state = fold(state, event)
    return state


def fold(state: RunState, event: Event) -> RunState:
    """The state after one more event. Total: an event that does not fit (an illegal move) changes nothing."""
    match event:
        case SupervisorStarted(at=at, identity=identity):
            return replace(state, supervisor=identity, started=state.started or at)
        case StopRequested():
            # A request to stop now overrides one to stop later, never the other way round.
            if state.stop is None or (state.stop.mode, event.mode) == (StopMode.AFTER_STATE, StopMode.NOW):
                return replace(state, stop=event)
            return state
        case RunFinished():
            return replace(state, finished=event)
        case _:
            job = state.jobs.get(event.step)
            if job is None:
                return state
            return replace(state, jobs={**state.jobs, event.step: _fold_job(job, event)})


_JobEvent = (
    StepStarted
    | StepExited
    | StepSucceeded
    | StepFailed
    | StepStopping
    | StepStopped
    | StepSkipped
    | EpochEnded
    | StateSaved
    | CheckpointKept
    | ResultPlaced
)


def _fold_job(job: Job, event: _JobEvent) -> Job:
    match event:
        case StepStarted():
            attempt = Attempt(
                number=event.attempt,
                gpu_uuid=event.gpu_uuid,
                gpu_label=event.gpu_label,
                identity=event.identity,
                started=event.at,
                resumed_from=event.resumed_from,
            )
            moved = _move(job, JobState.RUNNING)
            return moved if moved is job else replace(moved, attempts=(*job.attempts, attempt), not_before=None)
        case StepExited():
            return _change_attempt(job, event.attempt, ended=event.at, exit=event.exit)
        case StepSucceeded():
            moved = _move(job, JobState.SUCCEEDED)
            return moved if moved is job else replace(moved, loss=event.loss)
        case StepFailed():
            return _move(_change_attempt(job, event.attempt, diagnosis=event.diagnosis), JobState.FAILED)
        case StepStopping():
            return _move(job, JobState.STOPPING)
        case StepStopped():
            return _move(job, JobState.STOPPED)
        case StepSkipped():
            moved = _move(job, JobState.SKIPPED)
            return moved if moved is job else replace(moved, reason=event.reason)
        case EpochEnded():
            return _change_attempt(job, event.attempt, epochs_done=event.epoch, last_loss=event.loss)
        case StateSaved():
            return _change_attempt(job, event.attempt, last_state=event)
        case CheckpointKept():
            return replace(job, kept=(*job.kept, event.path))
        case ResultPlaced():
            return replace(job, result=Result(path=event.path, bytes=event.bytes, sha256=event.sha256))
        case _:
            assert_never(event)


def _move(job: Job, state: JobState) -> Job:
    return replace(job, state=state) if state in LEGAL_MOVES[job.state] else job


def _change_attempt(job: Job, number: int, **changes: object) -> Job:
    last = job.attempt
    if last is None or last.number != number:
        return job
    return replace(job, attempts=(*job.attempts[:-1], replace(last, **changes)))  # type: ignore[arg-type]  # names and types are checked at each call above

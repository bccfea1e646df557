"""The state of a run as a function of its events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import assert_never

from wan_train.base.host import ProcessIdentity
from wan_train.engine.failures import Cause, Diagnosis
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
    Exit,
    GpusChosen,
    MovementMeasured,
    PriceSet,
    ResultPlaced,
    RetryScheduled,
    RunFinished,
    RunResumed,
    Setting,
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
from wan_train.run.meter import Meter
from wan_train.run.plan import Plan, Step


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
    JobState.WAITING: frozenset(
        {JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED, JobState.SKIPPED}
    ),
    JobState.RUNNING: frozenset(
        {JobState.STOPPING, JobState.BACKOFF, JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED}
    ),
    JobState.STOPPING: frozenset({JobState.BACKOFF, JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED}),
    JobState.BACKOFF: frozenset({JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.STOPPED: frozenset(),
    JobState.SKIPPED: frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where an attempt must be stopped: after this many of its own epochs and optimizer steps."""

    epochs: int
    steps: int


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
    last_state: StateSaved | None = None
    unusable_state: StateUnusable | None = None
    """The newest state, if no training can be resumed from it."""
    state_files: tuple[str, ...] = ()
    """The files of a complete state, as this step's trainer wrote them; empty before the first state."""
    epochs_before: int = 0
    total_epochs: int | None = None
    """The epochs after which it ends, counted over all attempts."""
    schedule_epochs: int | None = None
    """The epochs that its trainer was told; None means `total_epochs`."""
    saves_at_step: int | None = None
    """The optimizer step, by its trainer's count, at which it saves LoRA and state outside its interval."""
    total_steps: int | None = None
    """The steps that the trainer announced for all epochs of the schedule; None before its first step."""
    changes: Mapping[str, Setting] = field(default_factory=dict)
    stop_diagnosis: Diagnosis | None = None
    """Why wan-train itself ended this attempt, if it did."""
    complete: bool = False
    """Whether it was ended because its epochs were done."""
    oom_kills: int | None = None
    """Out-of-RAM kills in this container that did not hit this attempt. A higher count means that one did."""
    state_every_epochs: int | None = None
    """The number of its epochs between two states; None if not recorded."""

    @property
    def made_progress(self) -> bool:
        return self.last_state is not None

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of one epoch; None before the trainer announced its total."""
        epochs = self.schedule_epochs or self.total_epochs
        if self.total_steps is None or not epochs:
            return None
        return self.total_steps // epochs or None

    @property
    def steps_before(self) -> int | None:
        """Optimizer steps of earlier attempts; None for a resumed attempt that has not announced its total."""
        if self.epochs_before == 0:
            return 0
        return self.epochs_before * self.steps_per_epoch if self.steps_per_epoch is not None else None

    @property
    def ends_early(self) -> bool:
        """Whether it ends before its schedule does."""
        return None not in {self.total_epochs, self.schedule_epochs} and self.total_epochs != self.schedule_epochs

    @property
    def target(self) -> Target | None:
        """Where an attempt must be stopped; None if it ends by itself, and before its first step.

        The trainer counts every attempt from zero, so a resumed one would train all epochs again (musubi-tuner, both
        versions: `epoch_to_start = 0; global_step = 0`). A first attempt ends by itself, unless its expert ends early.
        """
        if not (self.epochs_before or self.ends_early) or self.total_epochs is None or self.steps_per_epoch is None:
            return None
        missing = self.total_epochs - self.epochs_before
        return Target(epochs=missing, steps=missing * self.steps_per_epoch)

    @property
    def wanted_steps(self) -> int | None:
        """Optimizer steps after which it ends, counted over all attempts; None before the trainer announced them."""
        if self.steps_per_epoch is None or self.total_epochs is None:
            return self.total_steps
        return self.total_epochs * self.steps_per_epoch

    @property
    def saves_elsewhere(self) -> bool:
        """Whether it saves at a step other than its target, as its trainer's step count differs from the plan's."""
        return self.schedule_epochs is not None and self.target is not None and self.saves_at_step != self.target.steps

    def wanted_epochs(self, plan: Plan, step: Step) -> int:
        """Return the total epochs of the training that this attempt is part of."""
        return self.total_epochs or plan.epochs_of(step.expert)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished LoRA."""

    path: str
    bytes: int
    sha256: str
    epochs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One step and its history so far."""

    step: str
    state: JobState = JobState.WAITING
    attempts: tuple[Attempt, ...] = ()
    not_before: float | None = None
    reason: str | None = None
    result: Result | None = None
    loss: float | None = None
    kept: tuple[str, ...] = ()
    movements: tuple[MovementMeasured, ...] = ()
    """By epoch. If epochs are trained again, theirs are replaced."""
    changes: Mapping[str, Setting] = field(default_factory=dict)
    """Training settings of the next attempt that differ from the plan's, for example a memory step."""
    refusal: Diagnosis | None = None
    """Why it could not be started at all."""
    caches: CachesUpToDate | CachesCleared | None = None
    """What its last check of the caches found, for a caching step."""
    forgiven: int = 0
    """Attempts before the user resumed the run. Their failures do not count against the retry budget."""

    @property
    def attempt(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None

    @property
    def diagnosis(self) -> Diagnosis | None:
        """Why it failed, or why its last attempt did."""
        return self.refusal or (self.attempt.diagnosis if self.attempt is not None else None)

    @property
    def occupies_gpu(self) -> str | None:
        """The UUID of the GPU that this job's processes use now."""
        last = self.attempt
        return last.gpu_uuid if last is not None and last.exit is None and self.state.has_process else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """All jobs of a run in plan order, and the requests made to the run."""

    jobs: Mapping[str, Job] = field(default_factory=dict)
    supervisor: ProcessIdentity | None = None
    started: float | None = None
    stop: StopRequested | None = None
    disk_low: DiskLow | None = None
    meter: Meter = field(default_factory=Meter)
    budget: float | None = None
    """Dollars that the run may cost in all."""
    budget_reached: BudgetReached | None = None
    finished: RunFinished | None = None
    epochs: int | None = None
    """A total given when the run was resumed. It replaces the plan's."""
    ends: Mapping[str, int] = field(default_factory=dict)
    """By step, the epoch after which it ends, if one was given when the run was resumed."""
    gpu_uuids: tuple[str, ...] | None = None
    """GPUs chosen after the run was planned. They replace the plan's."""
    gpus_named: bool = False
    """Whether the user named those."""
    one_at_a_time: bool = False
    """Set once the box ran out of RAM: experts are then trained in turn."""

    @property
    def is_over(self) -> bool:
        return self.finished is not None

    @property
    def stops_after_state(self) -> float | None:
        """Since when the run is to stop after its next states; None if it is not."""
        asked = (self.stop, self.budget_reached)
        since = [each.at for each in asked if each is not None and each.mode is StopMode.AFTER_STATE]
        since += [self.disk_low.at] if self.disk_low is not None else []
        return min(since, default=None)

    @property
    def stops_now(self) -> bool:
        """Whether the run is to stop without waiting for its next states."""
        return any(each is not None and each.mode is StopMode.NOW for each in (self.stop, self.budget_reached))

    def total_epochs(self, plan: Plan, step: Step | None = None) -> int:
        """Return the epochs to train in a step, or the most of any. An extended run has one total for all experts."""
        if step is None or step.expert is None:
            return max(self.total_epochs(plan, each) for each in plan.steps if each.expert is not None)
        return self.ends.get(step.id) or self.epochs or plan.epochs_of(step.expert)

    def schedule_epochs(self, plan: Plan, step: Step) -> int:
        """Return the epochs of a training's schedule: `total_epochs` unless it ends early."""
        assert step.expert is not None, "only trainings have a schedule"
        return self.epochs or plan.schedule_epochs_of(step.expert)

    @property
    def is_stopping(self) -> bool:
        return self.stop is not None or self.disk_low is not None or self.budget_reached is not None


def initial(plan: Plan) -> RunState:
    return RunState(jobs={step.id: Job(step=step.id) for step in plan.steps})


def running(plan: Plan, state: RunState) -> list[tuple[Step, Attempt]]:
    """Return the attempts not yet seen to end, with their steps, in plan order."""
    return [
        (step, attempt)
        for step in plan.steps
        if (job := state.jobs[step.id]).state.has_process
        and (attempt := job.attempt) is not None
        and attempt.exit is None
    ]


def fold_all(plan: Plan, events: Iterable[Event]) -> RunState:
    state = initial(plan)
    for event in events:
        state = fold(state, event)
    return state


def fold(state: RunState, event: Event) -> RunState:
    """Return the state after one more event. An event that does not fit (an illegal move) changes nothing."""
    match event:
        case SupervisorStarted(at=at, identity=identity):
            meter = state.meter.started(at, idle_since=event.idle_since)
            return replace(state, supervisor=identity, started=state.started or at, meter=meter)
        case StopRequested():
            # A request to stop now overrides one to stop later, never the other way round.
            if state.stop is None or (state.stop.mode, event.mode) == (StopMode.AFTER_STATE, StopMode.NOW):
                return replace(state, stop=event)
            return state
        case DiskLow():
            return replace(state, disk_low=state.disk_low or event)
        case PriceSet():
            meter = state.meter.priced(
                event.at,
                per_hour=event.per_hour,
                source=event.source,
                runs=event.runs,
                rental_ends=event.rental_ends,
            )
            return replace(state, meter=meter)
        case BudgetSet(dollars=dollars):
            return replace(state, budget=dollars)
        case BudgetReached():
            known = state.budget_reached
            if known is None or (known.mode, event.mode) == (StopMode.AFTER_STATE, StopMode.NOW):
                return replace(state, budget_reached=event)
            return state
        case RunFinished(at=at):
            return replace(state, finished=event, meter=state.meter.stopped(at))
        case GpusChosen(gpu_uuids=uuids, asked=asked):
            return replace(state, gpu_uuids=uuids, gpus_named=state.gpus_named or asked)
        case RunResumed():
            return _resume(state, event)
        case _:
            return _fold_into_job(state, event)


def _fold_into_job(state: RunState, event: _JobEvent) -> RunState:
    job = state.jobs.get(event.step)
    if job is None:
        return state
    if isinstance(event, RetryScheduled | StepFailed) and event.diagnosis.cause is Cause.HOST_OUT_OF_MEMORY:
        others = {name: _less_one_kill(other) for name, other in state.jobs.items() if name != event.step}
        state = replace(state, one_at_a_time=True, jobs={**state.jobs, **others})
    return replace(state, jobs={**state.jobs, event.step: _fold_job(job, event)})


def _less_one_kill(job: Job) -> Job:
    """Discount an out-of-RAM kill of another step, so that it cannot explain a later `kill -9` of this one."""
    attempt = job.attempt
    if attempt is None or attempt.oom_kills is None or not job.state.has_process:
        return job
    return _change_attempt(job, attempt.number, oom_kills=attempt.oom_kills + 1)


def _resume(state: RunState, event: RunResumed) -> RunState:
    """Return every step that did not succeed to waiting; with more epochs, also the finished trainings."""
    longer = event.epochs is not None or bool(event.ends)
    again = {JobState.FAILED, JobState.STOPPED, JobState.SKIPPED}
    jobs = {
        step: replace(
            job, state=JobState.WAITING, not_before=None, reason=None, refusal=None, forgiven=len(job.attempts)
        )
        if job.state in again or (longer and job.state is JobState.SUCCEEDED and _ends_later(job, event))
        else job
        for step, job in state.jobs.items()
    }
    return replace(
        state,
        jobs=jobs,
        stop=None,
        disk_low=None,
        budget_reached=None,
        finished=None,
        epochs=event.epochs or state.epochs,
        ends=event.ends if longer else state.ends,
    )


def _ends_later(job: Job, event: RunResumed) -> bool:
    """Whether a finished training has epochs to train again."""
    if job.result is None:
        return False
    wanted = event.ends.get(job.step, event.epochs)
    return wanted is not None and (job.result.epochs or 0) < wanted


_JobEvent = (
    CachesUpToDate
    | CachesCleared
    | CachesDisturbed
    | StepRefused
    | TrainingBegan
    | RetryScheduled
    | StepStarted
    | StepExited
    | StepSucceeded
    | StepFailed
    | StepStopping
    | StepStopped
    | StepSkipped
    | EpochEnded
    | StateSaved
    | StateUnusable
    | MovementMeasured
    | CheckpointKept
    | ResultPlaced
)


def _fold_job(job: Job, event: _JobEvent) -> Job:  # noqa: C901, PLR0912  one branch for each kind of event
    match event:
        case StepStarted():
            attempt = Attempt(
                number=event.attempt,
                gpu_uuid=event.gpu_uuid,
                gpu_label=event.gpu_label,
                identity=event.identity,
                started=event.at,
                resumed_from=event.resumed_from,
                epochs_before=event.epochs_before,
                epochs_done=event.epochs_before,
                total_epochs=event.total_epochs,
                schedule_epochs=event.schedule_epochs,
                saves_at_step=event.saves_at_step,
                changes=event.changes,
                oom_kills=event.oom_kills,
                state_every_epochs=event.state_every_epochs,
                state_files=job.attempt.state_files if job.attempt is not None else (),
            )
            moved = _move(job, JobState.RUNNING)
            if moved is job:
                return job
            kept = tuple(movement for movement in job.movements if movement.epoch <= event.epochs_before)
            return replace(moved, attempts=(*job.attempts, attempt), not_before=None, movements=kept)
        case StepExited():
            return _change_attempt(job, event.attempt, ended=event.at, exit=event.exit)
        case StepSucceeded():
            moved = _move(job, JobState.SUCCEEDED)
            return moved if moved is job else replace(moved, loss=event.loss)
        case StepFailed():
            moved = _move(job, JobState.FAILED)
            return moved if moved is job else _change_attempt(moved, event.attempt, diagnosis=event.diagnosis)
        case CachesUpToDate():
            moved = _move(job, JobState.SUCCEEDED)
            return moved if moved is job else replace(moved, caches=event, not_before=None)
        case CachesCleared():
            return replace(job, caches=event)
        case CachesDisturbed():
            # The only move out of a final state: valid caches changed, so they are checked again.
            return replace(job, state=JobState.WAITING) if _is_cached(job) else job
        case StepRefused():
            moved = _move(job, JobState.FAILED)
            return moved if moved is job else replace(moved, refusal=event.diagnosis)
        case TrainingBegan():
            return _change_attempt(job, event.attempt, total_steps=event.steps)
        case StepStopping():
            moved = _move(job, JobState.STOPPING)
            if moved is job:
                return job
            return _change_attempt(moved, event.attempt, stop_diagnosis=event.diagnosis, complete=event.complete)
        case RetryScheduled():
            moved = _move(_change_attempt(job, event.attempt, diagnosis=event.diagnosis), JobState.BACKOFF)
            if moved.state is not JobState.BACKOFF:
                return job
            return replace(
                moved, not_before=event.not_before, reason=event.why, changes={**job.changes, **event.changes}
            )
        case StepStopped():
            return _move(job, JobState.STOPPED)
        case StepSkipped():
            moved = _move(job, JobState.SKIPPED)
            return moved if moved is job else replace(moved, reason=event.reason)
        case EpochEnded():
            return _change_attempt(job, event.attempt, epochs_done=event.epoch)
        case StateSaved():
            files = event.files or (job.attempt.state_files if job.attempt is not None else ())
            return _change_attempt(job, event.attempt, last_state=event, unusable_state=None, state_files=files)
        case StateUnusable():
            return _change_attempt(job, event.attempt, unusable_state=event)
        case MovementMeasured():
            earlier = tuple(movement for movement in job.movements if movement.epoch < event.epoch)
            return replace(job, movements=(*earlier, event))
        case CheckpointKept():
            return replace(job, kept=(*job.kept, event.path))
        case ResultPlaced():
            return replace(
                job, result=Result(path=event.path, bytes=event.bytes, sha256=event.sha256, epochs=event.epochs)
            )
        case _:
            assert_never(event)


def _is_cached(job: Job) -> bool:
    return job.state is JobState.SUCCEEDED and job.result is None


def _move(job: Job, state: JobState) -> Job:
    return replace(job, state=state) if state in LEGAL_MOVES[job.state] else job


def _change_attempt(job: Job, number: int, **changes: object) -> Job:
    last = job.attempt
    if last is None or last.number != number:
        return job
    return replace(job, attempts=(*job.attempts[:-1], replace(last, **changes)))  # type: ignore[arg-type]  # names and types are checked at each call above

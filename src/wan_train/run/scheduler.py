"""What to do next, as a pure function of the plan, the state and the GPUs."""

from __future__ import annotations

import signal
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from wan_train.base.errors import ExitCode
from wan_train.engine.failures import Cause
from wan_train.run.plan import Plan, Step, StepKind
from wan_train.run.state import Job, JobState, RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuView:
    """One GPU this run may use, as the scheduler sees it."""

    uuid: str
    label: str
    claimed: bool
    """Whether this run holds its lease."""
    free: bool
    """Whether two looks saw little memory in use and no compute process."""
    first_in_line: bool = True
    """Whether no older run waits for it."""
    busy_because: str | None = None
    taken_by: str | None = None
    """The other wan-train run or process that holds its lease."""
    total_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Take the lease on a GPU."""

    gpu_uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Release the lease on a GPU."""

    gpu_uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Start the next attempt of a step on a GPU that this run has leased."""

    step: str
    gpu_uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End a running attempt."""

    step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """Settle a step that will not run: stopped with the run, or skipped because another step failed."""

    step: str
    because: str | None
    """None when the run was stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """End the run."""

    exit_code: ExitCode


Action = Claim | Release | Launch | Stop | GiveUp | Finish


NOTHING_BLOCKED: Mapping[str, str] = {}
WAITING_FOR_GPU = "waiting for a GPU"
"""How the text of `why_waiting` begins if only a GPU is missing."""

BOTH_CACHINGS_BYTES = 24_000_000_000
"""GPU memory needed to encode latents and captions at the same time. Estimated, not measured: T5 in bfloat16 takes
11.4 GB, the VAE with one picture of 960x960 takes 8 GB, and each of the two programs takes 1 GB."""


def decide(
    plan: Plan, state: RunState, gpus: Sequence[GpuView], now: float, blocked: Mapping[str, str] = NOTHING_BLOCKED
) -> tuple[Action, ...]:
    """Return the actions that are due. Repeating them is harmless: those that took effect are not decided again.

    `blocked` are steps that may not start yet, with a reason from outside plan and state, as text.
    """
    if state.is_over:
        return ()
    if all(job.state.is_over for job in state.jobs.values()):
        return (*(Release(gpu_uuid=gpu.uuid) for gpu in gpus if gpu.claimed), Finish(exit_code=exit_code(plan, state)))
    given_up = _give_up(plan, state)
    gone = {action.step for action in given_up}
    waiting = [step for step in ready(plan, state, now) if step.id not in gone and step.id not in blocked]
    return (*_stops(plan, state), *given_up, *_assign(plan, state, gpus, waiting))


def ready(plan: Plan, state: RunState, now: float) -> list[Step]:
    """Return the steps that lack nothing but a GPU, in plan order."""
    if state.is_stopping:
        return []
    steps = [
        step
        for step in plan.steps
        if _may_start(state.jobs[step.id], now)
        and all(state.jobs[need].state is JobState.SUCCEEDED for need in step.needs)
    ]
    return _in_turn(plan, state, steps)


def _in_turn(plan: Plan, state: RunState, steps: list[Step]) -> list[Step]:
    """Hold a training back while another loads its weights, or until it ends if RAM holds only one trainer."""
    if not (plan.stagger or state.one_at_a_time):
        return steps
    if _held_back(plan, state) is not None:
        return [step for step in steps if step.kind is not StepKind.TRAIN]
    trainings = [step for step in steps if step.kind is StepKind.TRAIN]
    return [step for step in steps if step not in trainings[1:]]


def _held_back(plan: Plan, state: RunState) -> str | None:
    """Return why RAM lets no further training start now, even on a free GPU; None if it does."""
    if not (plan.stagger or state.one_at_a_time):
        return None
    for step in plan.steps:
        job = state.jobs[step.id]
        attempt = job.attempt
        if step.kind is not StepKind.TRAIN or not job.state.has_process or attempt is None or attempt.exit is not None:
            continue
        if state.one_at_a_time:
            return f"waiting for {step.id}: this box's RAM was too small for both experts at once"
        if attempt.total_steps is None:
            return f"waiting until {step.id} has loaded its weights: RAM holds only one copy"
    return None


def exit_code(plan: Plan, state: RunState) -> ExitCode:
    """The run's exit code once every job is over."""
    trainings = [state.jobs[step.id] for step in plan.steps if step.kind is StepKind.TRAIN]
    succeeded = [job for job in trainings if job.state is JobState.SUCCEEDED]
    if len(succeeded) == len(trainings):
        return ExitCode.DONE
    stopped = any(job.state is JobState.STOPPED for job in state.jobs.values())
    if stopped and state.stop is not None:
        return ExitCode.INTERRUPTED if state.stop.signal == signal.SIGINT else ExitCode.TERMINATED
    if stopped and state.budget_reached is not None:
        return ExitCode.OVER_BUDGET
    if stopped and state.disk_low is not None:
        return ExitCode.NOT_READY
    failed = [job for job in trainings if job.state is JobState.FAILED]
    if failed and all(_cause(job) is Cause.NAN_LOSS for job in failed):
        return ExitCode.DIVERGED
    return ExitCode.PARTLY_FAILED if succeeded else ExitCode.TRAINING_FAILED


def _cause(job: Job) -> Cause | None:
    attempt = job.attempt
    return attempt.diagnosis.cause if attempt is not None and attempt.diagnosis is not None else None


def why_waiting(
    plan: Plan,
    state: RunState,
    step: Step,
    gpus: Sequence[GpuView],
    now: float,
    *,
    blocked: Mapping[str, str] = NOTHING_BLOCKED,
) -> str:
    """Return what a waiting step waits for, as text for the user."""
    job = state.jobs[step.id]
    if state.is_stopping:
        return "the run is stopping"
    if job.not_before is not None and now < job.not_before:
        return f"retrying in {job.not_before - now:.0f} s: {job.reason}"
    needs = [need for need in step.needs if state.jobs[need].state is not JobState.SUCCEEDED]
    if needs:
        return f"waiting for {' and '.join(needs)}"
    if step.id in blocked:
        return blocked[step.id]
    held_back = _held_back(plan, state)
    if held_back is not None and step.kind is StepKind.TRAIN:
        return held_back
    if not gpus:
        return f"{WAITING_FOR_GPU}: none of this run's GPUs responds"
    return f"{WAITING_FOR_GPU}: " + "; ".join(_why_not(gpu, state) for gpu in gpus)


def _why_not(gpu: GpuView, state: RunState) -> str:
    users = [job.step for job in state.jobs.values() if job.occupies_gpu == gpu.uuid]
    if users:
        return f"{gpu.label} runs {users[0]}"
    if not gpu.first_in_line and gpu.taken_by is None:
        return f"{gpu.label} is wanted by an older run"
    return gpu.busy_because or f"{gpu.label} is being checked"


def _may_start(job: Job, now: float) -> bool:
    match job.state:
        case JobState.WAITING:
            return True
        case JobState.BACKOFF:
            # A wall clock that was set back must not turn a pause of seconds into days.
            ended = job.attempt.ended if job.attempt is not None else None
            return job.not_before is None or now >= job.not_before or (ended is not None and now < ended)
        case _:
            return False


def _stops(plan: Plan, state: RunState) -> list[Stop]:
    now = state.stops_now
    since = state.stops_after_state
    if not now and since is None:
        return []
    stops = []
    for step in plan.steps:
        job = state.jobs[step.id]
        if job.state is not JobState.RUNNING or job.attempt is None or job.attempt.exit is not None:
            continue
        saved = job.attempt.last_state
        # Caching has no state to wait for: its finished files are kept anyway.
        newer = step.kind is not StepKind.TRAIN or (saved is not None and since is not None and saved.at >= since)
        if now or newer:
            stops.append(Stop(step=step.id))
    return stops


def _give_up(plan: Plan, state: RunState) -> list[GiveUp]:
    given_up = []
    hopeless: dict[str, str] = {}
    for step in plan.steps:
        job = state.jobs[step.id]
        if job.state in {JobState.FAILED, JobState.SKIPPED}:
            hopeless[step.id] = step.id
        if job.state not in {JobState.WAITING, JobState.BACKOFF}:
            continue
        failed = [need for need in step.needs if need in hopeless]
        if failed:
            hopeless[step.id] = failed[0]
            given_up.append(GiveUp(step=step.id, because=f"{failed[0]} failed"))
        elif state.is_stopping:
            given_up.append(GiveUp(step=step.id, because=None))
    return given_up


def _assign(plan: Plan, state: RunState, gpus: Sequence[GpuView], waiting: Sequence[Step]) -> list[Action]:
    actions: list[Action] = []
    in_use = {uuid for job in state.jobs.values() if (uuid := job.occupies_gpu) is not None}
    idle = [gpu for gpu in gpus if gpu.uuid not in in_use]
    usable = [gpu for gpu in idle if gpu.claimed and gpu.free]
    unmet = 0
    shared_now: set[str] = set()
    for step in waiting:
        if usable:
            actions.append(Launch(step=step.id, gpu_uuid=usable.pop(0).uuid))
        elif (shared := _shareable(plan, state, step, gpus, shared_now)) is not None and not any(
            gpu.free and gpu.first_in_line for gpu in idle
        ):
            shared_now.add(shared)
            actions.append(Launch(step=step.id, gpu_uuid=shared))
        else:
            unmet += 1
    settling = [gpu for gpu in idle if gpu.claimed and not gpu.free and gpu.busy_because is None]
    filled = [gpu for gpu in idle if gpu.claimed and not gpu.free and gpu.busy_because is not None]
    # Another program may fill a claimed GPU for days. That must not keep us from a free one.
    claims = max(0, unmet - len(settling))
    candidates = [gpu for gpu in idle if not gpu.claimed and gpu.free and gpu.first_in_line]
    actions += [Claim(gpu_uuid=gpu.uuid) for gpu in candidates[:claims]]
    return actions + _releases(plan, state, [*usable, *settling, *filled])


def _shareable(plan: Plan, state: RunState, step: Step, gpus: Sequence[GpuView], taken: Container[str]) -> str | None:
    """Return a GPU that runs one caching step of the other kind, nothing else, and has room for this one too."""
    if step.kind is StepKind.TRAIN or plan.dataset.has_videos or _ran_out(state.jobs[step.id]):
        return None
    for other in plan.steps:
        job = state.jobs[other.id]
        uuid = job.occupies_gpu
        if other.kind in {StepKind.TRAIN, step.kind} or uuid is None or job.state is not JobState.RUNNING:
            continue
        if uuid in taken or sum(each.occupies_gpu == uuid for each in state.jobs.values()) > 1:
            continue
        if any(gpu.uuid == uuid and gpu.claimed and gpu.total_bytes >= BOTH_CACHINGS_BYTES for gpu in gpus):
            return uuid
    return None


def _ran_out(job: Job) -> bool:
    return any(
        attempt.diagnosis is not None and attempt.diagnosis.cause is Cause.OUT_OF_MEMORY for attempt in job.attempts
    )


def _releases(plan: Plan, state: RunState, leased: Sequence[GpuView]) -> list[Action]:
    """Release the leases that no step of this run will need, from the end of `leased`."""
    to_come = sum(1 for step in plan.steps if state.jobs[step.id].state in {JobState.WAITING, JobState.BACKOFF})
    if state.is_stopping:
        to_come = 0
    return [Release(gpu_uuid=gpu.uuid) for gpu in leased[to_come:]]

"""What to do after a failure: one table of causes with retry budgets and pauses, and one pure decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from wan_train.engine import memory_steps
from wan_train.engine.failures import Cause, Diagnosis
from wan_train.engine.memory_steps import MemoryStep
from wan_train.recipe.effective import word_of
from wan_train.recipe.model import ExpertSpec, Origin, settings_of
from wan_train.run.events import Setting
from wan_train.run.plan import Plan, StepKind
from wan_train.run.samples import WITHOUT
from wan_train.run.state import Attempt, Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How many retries a cause gets, and the pauses before them in multiples of the base pause.

    The retry budget counts failures in a row; an attempt that saved a state refills it.
    """

    retries: int
    pauses: tuple[float, ...] = (1.0,)


RULES: Mapping[Cause, Rule] = {
    # The number of memory steps limits these retries.
    Cause.OUT_OF_MEMORY: Rule(retries=8, pauses=(0.5,)),
    # Samples are an extra, and without them this cannot happen again.
    Cause.SAMPLING: Rule(retries=1, pauses=(0.0,)),
    # The kernel killed one of two trainers; one alone may fit.
    Cause.HOST_OUT_OF_MEMORY: Rule(retries=2, pauses=(1.0, 3.0)),
    Cause.NO_PROGRESS: Rule(retries=2, pauses=(1.0, 6.0)),
    Cause.CUDA_ERROR: Rule(retries=3, pauses=(1.0, 6.0, 30.0)),
    # A network disk may recover; one that is lost for good fails again.
    Cause.STORAGE: Rule(retries=2, pauses=(6.0, 30.0)),
    # By then, other programs of the container may have ended.
    Cause.PROCESS_LIMIT: Rule(retries=1, pauses=(6.0,)),
    # The hub and the network to it recover. If the hub names a time, the retry waits for it.
    Cause.HUB: Rule(retries=3, pauses=(3.0, 6.0, 30.0)),
    Cause.CRASHED: Rule(retries=2, pauses=(1.0, 6.0)),
    # A kill from outside.
    Cause.INTERRUPTED: Rule(retries=3, pauses=(1.0, 3.0, 6.0)),
    # The machine went down or the warden was killed: nothing was wrong with the training.
    Cause.LOST: Rule(retries=20, pauses=(0.0,)),
    Cause.UNKNOWN: Rule(retries=1, pauses=(1.0,)),
    # The same input fails the same way; the user has to act first.
    Cause.NAN_LOSS: Rule(retries=0),
    Cause.DISK_FULL: Rule(retries=0),
    Cause.NO_ACCESS: Rule(retries=0),
    Cause.FILE_LIMIT: Rule(retries=0),
    Cause.NO_GPU: Rule(retries=0),
    Cause.DRIVER: Rule(retries=0),
    Cause.ENVIRONMENT: Rule(retries=0),
    Cause.SETTING: Rule(retries=0),
    Cause.HUB_REFUSED: Rule(retries=0),
    Cause.BAD_INPUT: Rule(retries=0),
    Cause.MISSING_FILE: Rule(retries=0),
}

LATE_STEPS = 100
"""Running out of memory after this many steps is called late: the settings did fit for a while."""


class AnotherAttempt(StrEnum):
    """Whether another attempt can help, according to `RULES`."""

    CANNOT_HELP = "cannot_help"
    MAY_HELP = "may_help"
    NEXT_MEMORY_SETTING = "next_memory_setting"
    EXPERTS_IN_TURN = "experts_in_turn"
    WITHOUT_SAMPLES = "without_samples"
    LATER = "later"


def another_attempt(diagnosis: Diagnosis) -> AnotherAttempt:
    match diagnosis.cause:
        case cause if not RULES[cause].retries:
            return AnotherAttempt.CANNOT_HELP
        case Cause.OUT_OF_MEMORY:
            return AnotherAttempt.NEXT_MEMORY_SETTING
        case Cause.HOST_OUT_OF_MEMORY:
            return AnotherAttempt.EXPERTS_IN_TURN
        case Cause.SAMPLING:
            return AnotherAttempt.WITHOUT_SAMPLES
        case _:
            return AnotherAttempt.MAY_HELP if diagnosis.retry_after is None else AnotherAttempt.LATER


def resuming_can_help(diagnosis: Diagnosis) -> bool:
    """Whether resuming can help once the advice is followed: a run keeps the settings it was started with."""
    return diagnosis.cause is not Cause.SETTING


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Retry after `pause` times the base pause, but not before `at_least` seconds, with these settings changed."""

    pause: float
    why: str
    changes: Mapping[str, Setting] = field(default_factory=dict)
    at_least: float = 0.0


def next_move(plan: Plan, job: Job, diagnosis: Diagnosis, *, steps_made: int) -> Retry | None:
    """Return how to retry a step after its last attempt failed, None to give up."""
    rule = RULES[diagnosis.cause]
    failures = failures_in_a_row(job, diagnosis.cause)
    if failures > rule.retries:
        return None
    pause = rule.pauses[min(failures, len(rule.pauses)) - 1]
    match diagnosis.cause:
        case Cause.OUT_OF_MEMORY:
            return _after_out_of_memory(plan, job, pause, steps_made=steps_made)
        case Cause.HOST_OUT_OF_MEMORY:
            return Retry(pause=pause, why="the box ran out of RAM, next: the experts in turn")
        case Cause.SAMPLING:
            return Retry(pause=pause, why=f"{diagnosis.meaning}, next: without samples", changes=WITHOUT)
        case _:
            return Retry(
                pause=pause,
                why=f"{diagnosis.meaning}, next: retry {failures} of {rule.retries}",
                at_least=diagnosis.retry_after or 0.0,
            )


def failures_in_a_row(job: Job, cause: Cause) -> int:
    """Count the attempts that failed for this cause since a saved state or a user's resume, including the newest."""
    count = 1
    if job.attempt is not None and job.attempt.made_progress:
        return count
    for attempt in reversed(job.attempts[job.forgiven : -1]):
        if attempt.made_progress or attempt.diagnosis is None or attempt.diagnosis.cause is not cause:
            break
        count += 1
    return count


def _after_out_of_memory(plan: Plan, job: Job, pause: float, *, steps_made: int) -> Retry | None:
    if plan.step(job.step).kind is not StepKind.TRAIN:
        # Caching has no setting that saves memory. Another process may have used the GPU, so retry once.
        again = failures_in_a_row(job, Cause.OUT_OF_MEMORY) == 1
        return Retry(pause=pause, why="out of GPU memory, next: retry with the same settings") if again else None
    last = job.attempt
    late = steps_made >= LATE_STEPS
    if late and not _was_late_before(job):
        return Retry(pause=pause, why="out of GPU memory after a while, next: retry with the same settings")
    expert = plan.step(job.step).expert
    assert expert is not None, "a training"
    spec = plan.recipe.spec(expert)
    training = spec.training
    step = memory_steps.next_memory_step(
        training,
        last.changes if last is not None else {},
        plan.trainer.capabilities,
        trains_fp8=training.mixed_precision != "no",
    )
    if step is None:
        return None
    return Retry(pause=pause, why=f"out of GPU memory, next: {step.words}{_chosen(spec, step)}", changes=step.changes)


def _chosen(spec: ExpertSpec, step: MemoryStep) -> str:
    """Return the user's settings that a memory step changes, as text."""
    before = settings_of(spec.training)
    chosen = [
        f"{name} {word_of(before.get(name))} was set by {source}"
        for name in step.changes
        if (source := spec.sources.get(name)) is not None and source.origin is not Origin.MACHINE
    ]
    return f" ({', '.join(chosen)})" if chosen else ""


def _was_late_before(job: Job) -> bool:
    """Whether the previous attempt ran out of memory with the same settings."""
    match job.attempts:
        case [*_, before, last]:
            return _ran_out(before) and before.changes == last.changes
        case _:
            return False


def _ran_out(attempt: Attempt) -> bool:
    return attempt.diagnosis is not None and attempt.diagnosis.cause is Cause.OUT_OF_MEMORY

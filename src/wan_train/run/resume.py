"""Where an interrupted training goes on: the newest complete state over all attempts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wan_train.engine import checkpoints
from wan_train.engine.checkpoints import State
from wan_train.engine.tensors import BrokenFileError, first_non_finite, read_header
from wan_train.recipe.terms import EngineKind
from wan_train.run.directory import RunDirectory
from wan_train.run.plan import Plan, Step
from wan_train.run.state import Attempt, Job


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """A complete, finite state, and how many epochs and optimizer steps it holds."""

    state_dir: Path
    epochs_done: int
    steps_per_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """A complete state of one attempt, with its epochs counted over all attempts."""

    path: Path
    attempt: int
    epochs_done: int


def saved_states(run: RunDirectory, plan: Plan, step: Step, job: Job) -> list[SavedState]:
    """Every complete state of a step that is still on disk, fewest epochs first.

    A resumed attempt may make some epochs too many before it is stopped; states of those are worth nothing.
    """
    found = []
    files = state_files(plan, step, job.attempt)
    for attempt in job.attempts:
        directory = run.attempt(step.id, attempt.number).output
        for state in checkpoints.complete_states(directory, step.produces or "", files):
            epochs = epochs_of(state, attempt)
            if epochs is not None and epochs <= (attempt.total_epochs or epochs):
                found.append(SavedState(path=state.path, attempt=attempt.number, epochs_done=epochs))
    return sorted(found, key=lambda state: (state.epochs_done, state.attempt))


def find_resume_point(run: RunDirectory, plan: Plan, step: Step, job: Job, total_epochs: int) -> ResumePoint | None:
    """The state to continue from, None when the training must start again.

    States that hold numbers that are not finite are passed over, and so are those of more epochs than are wanted.
    """
    steps_per_epoch = next(
        (
            attempt.total_steps // attempt.total_epochs
            for attempt in reversed(job.attempts)
            if attempt.total_steps is not None and attempt.total_epochs
        ),
        None,
    )
    if not steps_per_epoch:
        return None
    for state in reversed(saved_states(run, plan, step, job)):
        if state.epochs_done < total_epochs and _is_finite(state.path / "model.safetensors"):
            return ResumePoint(state_dir=state.path, epochs_done=state.epochs_done, steps_per_epoch=steps_per_epoch)
    return None


def epochs_of(state: State, attempt: Attempt) -> int | None:
    """The epochs a state holds, counted over all attempts; None when that cannot be known.

    The trainer numbers epochs and steps of every attempt from zero.
    """
    total = attempt.total_epochs
    if state.epoch is not None:
        return attempt.epochs_before + state.epoch
    if state.step is not None:
        if attempt.total_steps is None or not total:
            return None
        epochs, rest = divmod(state.step, attempt.total_steps // total)
        return attempt.epochs_before + epochs if rest == 0 else None
    return attempt.epochs_before + total if total is not None else None


def state_files(plan: Plan, step: Step, attempt: Attempt | None) -> frozenset[str]:
    """The files that make a state complete: those that this trainer was seen to write, else what the settings tell."""
    if attempt is not None and attempt.state_files:
        return frozenset(attempt.state_files)
    assert step.expert is not None, "only trainings have states"  # noqa: S101  an invariant of the plan
    training = plan.training(step.expert)
    scheduler = training.options.get("lr_scheduler_type")
    return checkpoints.state_files(
        optimizer_type=training.optimizer_type,
        lr_scheduler_type=str(scheduler) if scheduler is not None else None,
        scaler=training.mixed_precision == "fp16" and plan.trainer.kind is EngineKind.MUSUBI,
    )


def _is_finite(path: Path) -> bool:
    try:
        return first_non_finite(path, read_header(path)) is None
    except BrokenFileError:
        return False

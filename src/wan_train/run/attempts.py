"""The next attempt at a step: its starting state, settings and last epoch."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wan_train.engine import checkpoints
from wan_train.engine.checkpoints import State
from wan_train.engine.commands import STATES_KEPT
from wan_train.engine.tensors import is_sound
from wan_train.run.directory import AttemptDirectory, RunDirectory
from wan_train.run.plan import Plan, Step, StepKind
from wan_train.run.state import Attempt, Job, RunState
from wan_train.run.step_commands import AttemptSpec

STATE_EVERY_SECONDS = 300.0
"""Saving a state takes about 3 s. For machines that vanish every few hours, five minutes is near the optimum
(Young's formula: sqrt(2 x cost x time between failures))."""
_SHARE_OF_BUDGET = 0.05
_SHORTEST_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """A complete, finite state, the epochs it holds, and the optimizer steps of one epoch."""

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
    """Return every complete state of a step that is still on disk, fewest epochs first.

    A resumed attempt may train too many epochs before it is stopped. States of those epochs are left out.
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
    """Return the newest state to resume from, or None if the training must start over.

    States with non-finite numbers are skipped, and so are states that already hold `total_epochs` or more.
    """
    steps_per_epoch = _announced_steps_per_epoch(job)
    if steps_per_epoch is None:
        return None
    for state in reversed(saved_states(run, plan, step, job)):
        if state.epochs_done < total_epochs and is_sound(state.path / "model.safetensors"):
            return ResumePoint(state_dir=state.path, epochs_done=state.epochs_done, steps_per_epoch=steps_per_epoch)
    return None


def _announced_steps_per_epoch(job: Job) -> int | None:
    return next((a.steps_per_epoch for a in reversed(job.attempts) if a.steps_per_epoch), None)


def epochs_of(state: State, attempt: Attempt) -> int | None:
    """Return the epochs a state holds, counted over all attempts, or None if unknown.

    The trainer numbers the epochs and steps of every attempt from zero.
    """
    # The final state holds the whole schedule: a trainer may reach its end before wan-train ends the attempt.
    total = attempt.schedule_epochs or attempt.total_epochs
    if state.epoch is not None:
        return attempt.epochs_before + state.epoch
    if state.step is not None:
        if attempt.steps_per_epoch is None:
            return None
        epochs, rest = divmod(state.step, attempt.steps_per_epoch)
        return attempt.epochs_before + epochs if rest == 0 else None
    return attempt.epochs_before + total if total is not None else None


def state_files(plan: Plan, step: Step, attempt: Attempt | None) -> frozenset[str]:
    """Return the files of a complete state: those the trainer wrote before, else those the settings imply."""
    if attempt is not None and attempt.state_files:
        return frozenset(attempt.state_files)
    assert step.expert is not None, "only trainings have states"
    training = plan.training(step.expert)
    scheduler = training.options.get("lr_scheduler_type")
    return checkpoints.state_files(
        optimizer_type=training.optimizer_type,
        lr_scheduler_type=str(scheduler) if scheduler is not None else None,
        scaler=training.mixed_precision == "fp16" and plan.trainer.traits.has_half_precision,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NextAttempt:
    """What to launch, and how many epochs earlier attempts trained."""

    spec: AttemptSpec
    epochs_before: int


def next_attempt(
    run: RunDirectory,
    plan: Plan,
    state: RunState,
    step: Step,
    number: int,
    *,
    seconds_per_step: float,
    paid_seconds: float | None = None,
) -> NextAttempt:
    """Return how to launch attempt `number` at a step. Reads the states on disk.

    `paid_seconds` is how long the rest of the run's budget lasts.
    """
    job = state.jobs[step.id]
    total = state.total_epochs(plan, step)
    point = find_resume_point(run, plan, step, job, total) if step.kind is StepKind.TRAIN and job.attempts else None
    schedule = state.schedule_epochs(plan, step) if step.kind is StepKind.TRAIN else total
    if point is None:
        each = _announced_steps_per_epoch(job)
        if each is None and step.expert is not None:
            each = plan.steps_per_epoch(step.expert)
        spec = AttemptSpec(
            number=number,
            state_every_epochs=min(plan.state_every_epochs, total),
            total_epochs=total,
            schedule_epochs=schedule,
            changes=job.changes,
            # If the steps are unknown, the attempt is restarted once its trainer has announced them.
            stop_at_step=total * each if total < schedule and each is not None else None,
        )
        return NextAttempt(spec=spec, epochs_before=0)
    missing = total - point.epochs_done
    spec = AttemptSpec(
        number=number,
        state_every_epochs=state_every_epochs(
            missing=missing,
            done=point.epochs_done,
            keep=plan.keep_every_epochs,
            epoch_seconds=point.steps_per_epoch * seconds_per_step,
            seconds=seconds_between_states(paid_seconds),
        ),
        total_epochs=total,
        schedule_epochs=schedule,
        changes=job.changes,
        resume_from=point.state_dir,
        stop_at_step=missing * point.steps_per_epoch,
    )
    return NextAttempt(spec=spec, epochs_before=point.epochs_done)


def unrecorded(run: RunDirectory, state: RunState) -> Iterator[AttemptDirectory]:
    """Yield directories of attempts whose supervisor was killed before it could record their start."""
    for job in state.jobs.values():
        known = {attempt.number for attempt in job.attempts}
        number = len(job.attempts) + 1
        while (directory := run.attempt(job.step, number)).path.exists():
            if number not in known:
                yield directory
            number += 1


def is_wanted(plan: Plan, step: Step, attempt: Attempt, epoch: int) -> bool:
    """Whether the user asked to keep the LoRA of this epoch, counted over all attempts."""
    keep = plan.keep_every_epochs
    return keep is not None and epoch % keep == 0 and epoch < attempt.wanted_epochs(plan, step)


def remove_old_checkpoints(run: RunDirectory, plan: Plan, step: Step, job: Job) -> None:
    """Remove the trainer's own intermediate LoRAs, except the newest ones and those still to be kept."""
    name = step.produces or ""
    found = []
    for attempt in job.attempts:
        output = run.attempt(step.id, attempt.number).output
        for local in checkpoints.checkpoint_epochs(output, name):
            epoch = attempt.epochs_before + local
            waits = is_wanted(plan, step, attempt, epoch) and not checkpoints.lora_file(run.path, name, epoch).exists()
            if epoch <= attempt.wanted_epochs(plan, step):
                found.append((epoch, attempt.number, waits, checkpoints.lora_file(output, name, local)))
    for _, _, waits, path in sorted(found)[:-STATES_KEPT]:
        if not waits:
            path.unlink(missing_ok=True)


def remove_old_states(run: RunDirectory, plan: Plan, step: Step, job: Job, *, keep: int = STATES_KEPT) -> None:
    """Remove all but the newest `keep` complete states. States of a running attempt are left alone."""
    kept = {state.path for state in saved_states(run, plan, step, job)[-keep:]}
    for attempt in job.attempts:
        if attempt.exit is None:
            continue
        for path in checkpoints.state_dirs(run.attempt(step.id, attempt.number).output, step.produces or ""):
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)


def seconds_between_states(paid_seconds: float | None = None) -> float:
    """Return at most five minutes. A budget ends a run at a state, so it makes this a twentieth of `paid_seconds`."""
    if paid_seconds is None:
        return STATE_EVERY_SECONDS
    return min(STATE_EVERY_SECONDS, max(_SHORTEST_SECONDS, paid_seconds * _SHARE_OF_BUDGET))


def state_every_epochs(
    *, missing: int, done: int, keep: int | None, epoch_seconds: float, seconds: float = STATE_EVERY_SECONDS
) -> int:
    """Return the epochs between states of an attempt that has `missing` epochs to train after `done`.

    They take about `seconds`, and are never more than `missing`. The LoRAs to keep (every `keep` epochs, counted
    over all attempts) must fall on saved epochs, which the attempt counts from its own start.
    """
    wanted = max(1, min(missing, round(seconds / max(epoch_seconds, 1e-3))))
    if keep is None:
        return wanted
    base = math.gcd(keep, done) if done else keep
    return max(divisor for divisor in range(1, min(wanted, base) + 1) if base % divisor == 0)

"""The events of an attempt, from its log and its directory: epochs, states, kept LoRAs, success or failure.

Also the events of the cache manager's findings.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from wan_train.base.clock import Clock
from wan_train.base.host import oom_kills
from wan_train.caching.locks import CacheLock
from wan_train.caching.manager import CacheManager, CachingStep, Cleared, Disturbed, Finding, Refused, UpToDate
from wan_train.caching.survey import CacheInputs
from wan_train.engine import checkpoints
from wan_train.engine.failures import Cause, Diagnosis
from wan_train.run import attempts, outcome, results, retry
from wan_train.run.attempt_watch import AttemptWatch, diverged
from wan_train.run.curves import CurveReader
from wan_train.run.directory import RunDirectory
from wan_train.run.events import (
    CachesCleared,
    CachesDisturbed,
    CachesUpToDate,
    CheckpointKept,
    EpochEnded,
    Event,
    ResultPlaced,
    RetryScheduled,
    StateSaved,
    StateUnusable,
    StepFailed,
    StepRefused,
    StepStopped,
    StepSucceeded,
    TrainingBegan,
)
from wan_train.run.plan import CACHE_KINDS, Plan, Step, StepKind
from wan_train.run.state import Attempt, Job, JobState, RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One step of one run, examined at one moment (seconds since 1970)."""

    run: RunDirectory
    plan: Plan
    step: Step
    watch: AttemptWatch
    now: float


def progress_events(case: Case, attempt: Attempt) -> Iterator[Event]:
    """Yield what the newly read log shows: the first step, epochs that ended and the files they left."""
    step, watch, now = case.step, case.watch, case.now
    announced = watch.tracker.announced_steps
    if attempt.total_steps is None and announced is not None and watch.tracker.local_step:
        yield TrainingBegan(at=now, step=step.id, attempt=attempt.number, steps=announced)
        attempt = replace(attempt, total_steps=announced)
    for epoch, loss in watch.tracker.take_finished_epochs():
        # Before the next epoch, the trainer has written LoRA and state of this one and removed old ones.
        local = epoch - attempt.epochs_before
        if attempt.total_epochs is not None and epoch > attempt.total_epochs:
            break  # trained while it is being ended, so it does not count
        if epoch > attempt.epochs_done:  # an adopted attempt's log is read again from the start
            yield EpochEnded(at=now, step=step.id, attempt=attempt.number, epoch=epoch, loss=loss)
            yield from _saved(case, attempt, epoch)
        yield from _keep(case, attempt, local)


def _saved(case: Case, attempt: Attempt, epoch: int) -> Iterator[Event]:
    """Yield this epoch's state, if any, as saved or unusable. The trainer has moved on, so it is fully written."""
    directory, step = case.watch.directory, case.step
    state = checkpoints.state_dir(directory.output, step.produces or "", epoch - attempt.epochs_before)
    if not state.is_dir():
        return
    fault = checkpoints.state_fault(state, checkpoints.ALWAYS_IN_A_STATE)
    number, path = attempt.number, str(state)
    if fault is None:
        files = tuple(sorted(checkpoints.written_state_files(state)))
        yield StateSaved(at=case.now, step=step.id, attempt=number, path=path, epoch=epoch, files=files)
    else:
        yield StateUnusable(at=case.now, step=step.id, attempt=number, path=path, epoch=epoch, why=fault)


def _keep(case: Case, attempt: Attempt, local_epoch: int) -> Iterator[Event]:
    """Keep the LoRA of this epoch if the user asked for it and it is not kept yet."""
    epoch = attempt.epochs_before + local_epoch
    if not attempts.is_wanted(case.plan, case.step, attempt, epoch):
        return
    if checkpoints.lora_file(case.run.path, case.step.produces or "", epoch).exists():
        return
    kept = results.keep_checkpoint(case.run, case.step, case.watch.directory, attempt, local_epoch)
    if kept is not None:
        yield CheckpointKept(at=case.now, step=case.step.id, path=str(kept), epoch=epoch)


def judge_attempt(
    case: Case, state: RunState, *, pause_seconds: float, caches: Callable[[str], Diagnosis | None]
) -> Iterator[Event]:
    """What follows an attempt's end: success, retry, or failure.

    `caches` returns the problem with the caches of a step ID, if any.
    """
    job = state.jobs[case.step.id]
    attempt = job.attempt
    assert attempt is not None and attempt.exit is not None, "an attempt that is over"
    # A trainer that died right after saving never logged the end of the epoch.
    for local in checkpoints.checkpoint_epochs(case.watch.directory.output, case.step.produces or ""):
        yield from _keep(case, attempt, local)
    final = case.watch.final_lora(attempt)
    complete = attempt.complete or case.watch.is_complete(attempt)
    if attempt.stop_diagnosis is not None:
        diagnosis: Diagnosis | None = attempt.stop_diagnosis
    elif complete:
        diagnosis = outcome.judge_lora(final)
    else:
        ram = _ran_out_of_ram(attempt)
        directory = case.watch.directory
        diagnosis = outcome.judge(case.step, directory, attempt.exit, final_lora=final, out_of_ram=ram)
    if diagnosis is None and case.step.kind is not StepKind.TRAIN:
        diagnosis = caches(case.step.id)
    if diagnosis is None:
        yield from _success(case, job, state.total_epochs(case.plan, case.step))
    elif job.state is JobState.STOPPING and state.is_stopping and attempt.stop_diagnosis is None and not complete:
        yield StepStopped(at=case.now, step=case.step.id)
    else:
        yield from _failure(case, job, diagnosis, pause_seconds)


def _success(case: Case, job: Job, total: int) -> Iterator[Event]:
    step, now, attempt = case.step, case.now, job.attempt
    assert attempt is not None, "an attempt that is over"
    loss = average = case.watch.tracker.progress.loss
    if step.kind is StepKind.TRAIN:
        loss = CurveReader(case.run, case.plan).curve(step.id, job.attempts).final_loss or average
        total = attempt.total_epochs or total
        source = case.watch.final_lora(attempt)
        try:
            placed = results.place_result(case.run, case.plan, step, job, source)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            yield StepFailed(at=now, step=step.id, attempt=attempt.number, diagnosis=_no_room(case.run, source))
            return
        if attempt.epochs_done < total:
            yield EpochEnded(at=now, step=step.id, attempt=attempt.number, epoch=total, loss=average)
        yield ResultPlaced(
            at=now, step=step.id, path=str(placed.path), bytes=placed.bytes, sha256=placed.sha256, epochs=placed.epochs
        )
    yield StepSucceeded(at=now, step=step.id, attempt=attempt.number, loss=loss)


def _no_room(run: RunDirectory, source: Path) -> Diagnosis:
    needed, free = source.stat().st_size, shutil.disk_usage(run.path).free
    return Diagnosis(
        cause=Cause.DISK_FULL,
        meaning=f"the disk is full: the finished LoRA needs {needed:,} bytes and {free:,} are free",
        advice=f"Free some space (`wan-train runs` lists old runs), then: wan-train resume {run.run_id}",
        evidence=f"the finished LoRA is {source}",
    )


def _failure(case: Case, job: Job, diagnosis: Diagnosis, pause_seconds: float) -> Iterator[Event]:
    attempt = job.attempt
    assert attempt is not None, "an attempt that is over"
    if diagnosis.cause is Cause.NAN_LOSS:
        kept = list(_keep_last_finite(case, job))
        yield from kept
        diagnosis = diverged(diagnosis.evidence, never_finite=case.watch.never_finite, kept=bool(kept))
    following = retry.next_move(case.plan, job, diagnosis, steps_made=case.watch.tracker.local_step or 0)
    if following is None:
        yield StepFailed(at=case.now, step=case.step.id, attempt=attempt.number, diagnosis=diagnosis)
        return
    yield RetryScheduled(
        at=case.now,
        step=case.step.id,
        attempt=attempt.number,
        diagnosis=diagnosis,
        not_before=case.now + max(following.pause * pause_seconds, following.at_least),
        why=following.why,
        changes=following.changes,
    )


def _keep_last_finite(case: Case, job: Job) -> Iterator[Event]:
    found = results.newest_finite_checkpoint(case.run, case.step, job)
    if found is None:
        return
    attempt, directory, local = found
    kept = results.keep_checkpoint(case.run, case.step, directory, attempt, local)
    if kept is not None:
        yield CheckpointKept(at=case.now, step=case.step.id, path=str(kept), epoch=attempt.epochs_before + local)


def _ran_out_of_ram(attempt: Attempt) -> bool:
    now = oom_kills()
    return now is not None and attempt.oom_kills is not None and now > attempt.oom_kills


def cache_manager(run: RunDirectory, plan: Plan, clock: Clock, lock_dir: Path) -> CacheManager:
    inputs = CacheInputs(config=run.dataset_config, trainer=plan.trainer, models=plan.models, task=plan.recipe.task)
    folders = [Path(directory) for directory in plan.dataset.cached_items]
    steps = [
        CachingStep(id=step.id, kind=CACHE_KINDS[step.kind], record=run.caches(step.id))
        for step in plan.steps
        if step.kind in CACHE_KINDS and folders
    ]
    lock = CacheLock(lock_dir, plan.run_id, folders)
    return CacheManager(inputs=inputs, steps=steps, clock=clock, lock=lock)


def event_of(finding: Finding, at: float) -> Event:
    """Return the event of a finding; `at` in seconds since 1970."""
    match finding:
        case UpToDate():
            return CachesUpToDate(at=at, step=finding.step, items=finding.items, removed=finding.removed)
        case Cleared():
            return CachesCleared(
                at=at,
                step=finding.step,
                items=finding.items,
                keep=finding.items - finding.make,
                make=finding.make,
                made=finding.made,
                removed=finding.removed,
            )
        case Disturbed():
            return CachesDisturbed(at=at, step=finding.step, what=finding.what)
        case Refused():
            return StepRefused(at=at, step=finding.step, diagnosis=finding.diagnosis)
        case _:
            assert_never(finding)

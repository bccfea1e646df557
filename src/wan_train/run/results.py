"""Place LoRAs where the user finds them: verified first, atomically, and earlier results are kept."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from wan_train.base.files import sha256_of, sync_directory
from wan_train.engine import checkpoints
from wan_train.engine.tensors import BrokenFileError, is_sound, rewrite_metadata
from wan_train.recipe.terms import Expert
from wan_train.run.directory import AttemptDirectory, RunDirectory
from wan_train.run.plan import Plan, Step
from wan_train.run.state import Attempt, Job, RunState

ENDED_KEY = "wan_train_ended"
"""Metadata key of a LoRA whose training ended before its schedule: `after epoch 50 of 100`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedLora:
    """A LoRA under its final name."""

    path: Path
    bytes: int
    sha256: str
    epochs: int


def place_result(run: RunDirectory, plan: Plan, step: Step, job: Job, source: Path) -> PlacedLora:
    """Give the verified LoRA its final name in the run directory. May be repeated after a crash.

    If the training was extended, the earlier LoRA is kept under its number of epochs. Any other file that has the name
    is kept too. The file of an attempt that was ended gets the metadata of a finished training: the trainer itself
    counted only the attempt's own epochs, and named the file after a step.
    """
    attempt = job.attempt
    assert attempt is not None and step.produces is not None, "a training that ended"
    total = attempt.wanted_epochs(plan, step)
    target = checkpoints.lora_file(run.path, step.produces)
    aside = None
    if job.result is not None and job.result.epochs not in {None, total}:
        aside = checkpoints.lora_file(run.path, step.produces, job.result.epochs)
    changes = {}
    if attempt.target is not None and attempt.steps_per_epoch is not None:
        changes = _metadata(step.produces, total, total * attempt.steps_per_epoch)
    if attempt.ends_early:
        changes[ENDED_KEY] = f"after epoch {total} of {attempt.schedule_epochs}"
    put(source, target, changes, aside=aside)
    return PlacedLora(path=target, bytes=target.stat().st_size, sha256=sha256_of(target), epochs=total)


def keep_checkpoint(
    run: RunDirectory, step: Step, directory: AttemptDirectory, attempt: Attempt, local_epoch: int
) -> Path | None:
    """Place an intermediate LoRA beside the results before it is removed; None if it is incomplete or not finite.

    Its name and metadata have its epoch counted over all attempts.
    """
    assert step.produces is not None, "only training steps have checkpoints"
    epoch = attempt.epochs_before + local_epoch
    source = checkpoints.lora_file(directory.output, step.produces, local_epoch)
    target = checkpoints.lora_file(run.path, step.produces, epoch)
    if target.exists():
        return target
    changes = {}
    if attempt.epochs_before and attempt.steps_per_epoch:
        changes = {"ss_epoch": str(epoch), "ss_steps": str(epoch * attempt.steps_per_epoch)}
    if not is_sound(source):
        return None
    try:
        put(source, target, changes)
    except (BrokenFileError, OSError):
        return None
    return target


def loras_of(run: RunDirectory, plan: Plan, state: RunState) -> Mapping[Expert, Mapping[int, Path]]:
    """Return each expert's existing LoRAs beside the results, by epoch: the kept ones and the finished one.

    Their contents are not checked.
    """
    return {
        step.expert: _loras_of(run, plan, step, state.jobs[step.id]) for step in plan.steps if step.expert is not None
    }


def _loras_of(run: RunDirectory, plan: Plan, step: Step, job: Job) -> Mapping[int, Path]:
    name = step.produces or ""
    found = {
        epoch: checkpoints.lora_file(run.path, name, epoch) for epoch in checkpoints.checkpoint_epochs(run.path, name)
    }
    finished = checkpoints.lora_file(run.path, name)
    if job.result is not None and finished.is_file():
        found[job.result.epochs or plan.epochs_of(step.expert)] = finished
    return dict(sorted(found.items()))


def newest_finite_checkpoint(run: RunDirectory, step: Step, job: Job) -> tuple[Attempt, AttemptDirectory, int] | None:
    """Return the newest intermediate LoRA with only finite numbers: attempt, directory, epoch within that attempt."""
    for attempt in reversed(job.attempts):
        directory = run.attempt(step.id, attempt.number)
        for epoch in reversed(checkpoints.checkpoint_epochs(directory.output, step.produces or "")):
            if is_sound(checkpoints.lora_file(directory.output, step.produces or "", epoch)):
                return attempt, directory, epoch
    return None


def _metadata(name: str, epochs: int, steps: int) -> dict[str, str]:
    return {"ss_epoch": str(epochs), "ss_steps": str(steps), "ss_output_name": name, "modelspec.title": name}


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link the file to a second name, or copy it if the disk has no hard links (some network disks)."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}:
            raise
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())


def put(source: Path, target: Path, changes: Mapping[str, str], *, aside: Path | None = None) -> None:
    """Place `source` at `target` atomically, with changed metadata or as the same file.

    Another file that has the name is kept: as `aside`, or as `NAME_earlier` if that is None or taken.
    """
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    if changes:
        rewrite_metadata(source, partial, changes)
    else:
        link_or_copy(source, partial)
    if target.exists() and sha256_of(target) != sha256_of(partial):
        _keep(target, itertools.chain([aside], _earlier(aside)) if aside is not None else _earlier(target))
    partial.replace(target)
    # rename does nothing if both names are already one file, and leaves the old name
    partial.unlink(missing_ok=True)
    sync_directory(target.parent)


def _keep(file: Path, names: Iterable[Path]) -> None:
    """Give the file the first of these names that is free or already its own."""
    digest = sha256_of(file)
    for name in names:
        if not name.exists():
            link_or_copy(file, name)
            return
        if sha256_of(name) == digest:
            return


def _earlier(path: Path) -> Iterator[Path]:
    yield path.with_stem(f"{path.stem}_earlier")
    for number in itertools.count(2):
        yield path.with_stem(f"{path.stem}_earlier-{number}")

"""Removable files: found without changes, removed one by one under their owners' locks."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from wan_train.base.errors import BadInputError, NotReadyError, WanTrainError
from wan_train.base.locks import held
from wan_train.base.settings import Settings
from wan_train.engine import checkpoints
from wan_train.provision import leftovers, workspace
from wan_train.provision.leftovers import Whose, bytes_on_disk, find_leftovers
from wan_train.run.directory import HIDDEN, RunDirectory, all_runs
from wan_train.run.follow import read_run
from wan_train.run.plan import Plan
from wan_train.run.state import Job, JobState, RunState
from wan_train.run.step_commands import command_of

_LATER = "Watch it: `wan-train runs`."
_REMOVING = f"{HIDDEN}removing-"
"""A run gets this prefix before its files are deleted, so that a partial run is never taken for a run."""


class Kind(StrEnum):
    """Why something may be removed."""

    STATE = "state"
    """A training state from an earlier attempt of a finished run. Another attempt has the latest one."""
    REHEARSAL = "rehearsal"
    RUN = "run"
    """A run that was named, or that failed or was stopped long ago and has no LoRA."""
    HALF = "half"
    """The rest of a run that a killed `clean` left."""
    DOWNLOAD = "download"


@dataclass(frozen=True, slots=True, kw_only=True)
class Junk:
    """A path that may be removed. `run` is the run it belongs to; `bytes` is what its removal frees."""

    kind: Kind
    path: Path
    bytes: int
    run: RunDirectory | None = None
    loras: int = 0
    """The number of finished LoRAs removed with it."""


def find_junk(settings: Settings, *, named: Sequence[RunDirectory], older_than: float | None, now: float) -> list[Junk]:
    """Find everything that may be removed. With `named`, only these runs, including their results.

    `older_than` is in seconds since the end of a run. Raises BadInputError for a named run that is unfinished,
    unreadable, needed by an unfinished run, or not a real directory in the runs directory.
    """
    runs = settings.runs
    known: dict[Path, tuple[Plan, RunState]] = {}
    for run in all_runs(runs):
        if _is_ours(run.path, runs) and (records := _read(run)) is not None:
            known[run.path] = records
    alive = [plan for plan, state in known.values() if not state.is_over]
    if named:
        return [_named(run, runs, known.get(run.path), alive) for run in named]
    found: list[Junk] = []
    for path, (plan, state) in known.items():
        if state.finished is None or _is_needed(path, alive):
            continue
        run = RunDirectory(path)
        loras = sum(job.result is not None for job in state.jobs.values())
        is_old = older_than is not None and now - state.finished.at > older_than
        if not plan.trainer.is_real:
            found.append(Junk(kind=Kind.REHEARSAL, path=path, bytes=bytes_on_disk(path), run=run))
        elif is_old and not loras and state.finished.exit_code:
            found.append(Junk(kind=Kind.RUN, path=path, bytes=bytes_on_disk(path), run=run))
        elif all(job.state is JobState.SUCCEEDED for job in state.jobs.values()):
            found += _earlier_states(run, plan, state)
    found += [Junk(kind=Kind.HALF, path=path, bytes=bytes_on_disk(path)) for path in _halves(runs)]
    parts = [each for each in find_leftovers(settings.trainer_dir) if each.whose is not Whose.USER]
    return [*found, *(Junk(kind=Kind.DOWNLOAD, path=each.path, bytes=each.bytes) for each in parts)]


def remove(junk: Junk, settings: Settings) -> None:
    """Remove it unless it is now in use; raises WanTrainError or OSError."""
    match junk.kind:
        case Kind.DOWNLOAD:
            with workspace.locked(settings.workspace):
                leftovers.remove(junk.path)
        case Kind.HALF:
            leftovers.remove(junk.path)
        case Kind.STATE | Kind.REHEARSAL | Kind.RUN:
            assert junk.run is not None, "these kinds belong to a run"
            with _unused(junk.run):
                if junk.kind is Kind.STATE:
                    leftovers.remove(junk.path)
                    return
                hidden = junk.path.with_name(f"{_REMOVING}{junk.path.name}")
                junk.path.rename(hidden)
                leftovers.remove(hidden)


def _named(run: RunDirectory, runs: Path, known: tuple[Plan, RunState] | None, alive: Sequence[Plan]) -> Junk:
    if not _is_ours(run.path, runs):
        raise BadInputError(
            f"{run.path} is not a directory in {runs}, so it was not removed",
            hint="Remove it by hand, or use --runs-dir.",
        )
    if known is None:
        raise BadInputError(f"the records of {run.run_id} cannot be read", hint=f"Look at {run.path}.")
    _, state = known
    if not state.is_over:
        raise BadInputError(
            f"{run.run_id} is not finished, so it was not removed",
            hint=f"End it first: `wan-train stop --now {run.run_id}`.",
        )
    if _is_needed(run.path, alive):
        raise BadInputError(f"an unfinished run uses files of {run.run_id}", hint="See which: `wan-train runs`.")
    loras = sum(job.result is not None for job in state.jobs.values())
    return Junk(kind=Kind.RUN, path=run.path, bytes=bytes_on_disk(run.path), run=run, loras=loras)


def _earlier_states(run: RunDirectory, plan: Plan, state: RunState) -> Iterator[Junk]:
    """States nothing will resume from: all but those of the newest attempt and of the one with the latest state."""
    for step in plan.steps:
        if Path(step.id).name != step.id:
            continue  # not one of our steps: a foreign plan must not lead outside the run
        job = state.jobs[step.id]
        kept = _kept(job)
        for attempt in job.attempts:
            output = run.attempt(step.id, attempt.number).output
            # A directory between the run and the state could also be a link to anywhere.
            if attempt.number in kept or not all(map(_is_directory, (*output.parents[:2], output))):
                continue
            for path in filter(_is_directory, checkpoints.state_dirs(output, step.produces or "")):
                yield Junk(kind=Kind.STATE, path=path, bytes=bytes_on_disk(path), run=run)


def _kept(job: Job) -> set[int]:
    saved = [(each.last_state.epoch, each.number) for each in job.attempts if each.last_state is not None]
    return {number for _, number in sorted(saved)[-1:]} | {each.number for each in job.attempts[-1:]}


def _read(run: RunDirectory) -> tuple[Plan, RunState] | None:
    try:
        return read_run(run)
    except (WanTrainError, OSError):
        return None  # unknown, so it stays


def _is_needed(path: Path, alive: Sequence[Plan]) -> bool:
    """Whether an unfinished run names a file of this one, such as a LoRA to continue or its pictures."""
    below = f"{path}{os.sep}"
    commands = (command_of(plan, step) for plan in alive for step in plan.steps)
    words = (word for command in commands for word in (*command.argv, command.cwd))
    return any(below in word or word == str(path) for word in words)


def _is_ours(path: Path, runs: Path) -> bool:
    return _is_directory(path) and path.parent.resolve() == runs.resolve()


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _halves(runs: Path) -> list[Path]:
    return sorted(path for path in runs.glob(f"{_REMOVING}*") if _is_directory(path)) if runs.is_dir() else []


@contextmanager
def _unused(run: RunDirectory) -> Iterator[None]:
    """Hold the run's own lock; raises NotReadyError when its supervisor holds it, or the run was resumed."""
    with ExitStack() as stack:
        try:
            stack.enter_context(held(run.lock))
        except BlockingIOError:
            raise NotReadyError(f"{run.run_id} is running again, so it was not removed", hint=_LATER) from None
        known = _read(run)
        if known is None or not known[1].is_over:
            raise NotReadyError(f"{run.run_id} is not finished any more, so it was not removed", hint=_LATER)
        yield

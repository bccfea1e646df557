"""Which files of a run are still to be uploaded, and whether the box may be destroyed, from records and file sizes.

It is cheap enough to call every few seconds. It contacts no target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from wan_train.base.errors import WanTrainError
from wan_train.base.text import one_line
from wan_train.base.units import count
from wan_train.engine.failures import Cause
from wan_train.run.directory import RunDirectory
from wan_train.run.duties import Duties, read_duties
from wan_train.run.follow import read_run
from wan_train.run.plan import Plan, StepKind
from wan_train.run.state import JobState, RunState
from wan_train.upload.content import Extra, Item, ItemKind, ready
from wan_train.upload.destinations import Target, parse_all
from wan_train.upload.transfers import Failed, TargetState, read_states

_HOPELESS = frozenset({Cause.NAN_LOSS, Cause.SETTING})
"""After these, no checkpoint is resumed; the newest LoRA with finite numbers is kept and uploaded."""
_LOOK_SECONDS = 5.0


class Stage(StrEnum):
    """The state of the upload to one target."""

    WAITING = "waiting"
    """Nothing is ready yet."""
    PENDING = "pending"
    SENDING = "sending"
    FAILED = "failed"
    """The last attempt failed. One of the run's own targets is retried at `next_try`."""
    VERIFIED = "verified"
    """Every ready file is there, by the target's own checksums."""


_OPEN = frozenset({Stage.PENDING, Stage.SENDING, Stage.FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetStatus:
    """One target of a run. `ready` and `verified` count files; `bytes` is the size of the verified ones."""

    target: Target
    stage: Stage
    ready: int = 0
    verified: int = 0
    bytes: int = 0
    failed: Failed | None = None
    next_try: float | None = None
    """The time of the next automatic retry. None if there is none, as for a target used only by hand."""
    where: str | None = None
    """The folder of the LoRAs at the target; None until one is verified."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """The state of all uploads of a run."""

    pending: bool = False
    """A ready file is not verified yet."""
    due: bool = False
    """The same, and an upload may be tried now."""
    unverified: tuple[str, ...] = ()
    """The reasons why not all results are safe elsewhere."""


class RecordedUploads:
    """The recorded uploads of runs, read at most every few seconds. Raises nothing."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[float, Duties, Uploaded]] = {}

    def look(self, run: RunDirectory, duties: Duties, now: float, *, fresh: bool) -> Uploaded:
        """Return the state, up to some seconds old unless `fresh`. Unreadable records make nothing safe or due."""
        seen = self._seen.get(run.path)
        if not fresh and seen is not None and 0 <= now - seen[0] < _LOOK_SECONDS and seen[1] == duties:
            return seen[2]
        found = _uploaded(run, duties, now)
        self._seen[run.path] = now, duties, found
        return found


def _uploaded(run: RunDirectory, duties: Duties, now: float) -> Uploaded:
    targets, extras = duties.uploads, duties.upload_extras
    try:
        return Uploaded(
            pending=any(status.stage in _OPEN for status in statuses(run, targets, extras)),
            due=due(run, targets, extras, now=now),
            unverified=unverified(run, targets, extras),
        )
    except (WanTrainError, OSError) as error:
        return Uploaded(unverified=(f"the uploads of {run.run_id} are unknown: {one_line(str(error))}",))


def verified_at(run: RunDirectory) -> Mapping[str, bool]:
    """Return, for each target of a run, whether every ready file is verified there. Raise what `statuses` raises."""
    duties = read_duties(run)
    if duties is None:
        return {}
    found = statuses(run, duties.uploads, duties.upload_extras)
    return {str(status.target): status.stage is Stage.VERIFIED for status in found}


def due(run: RunDirectory, targets: Sequence[str], extras: Sequence[str] = (), *, now: float) -> bool:
    """Whether a target lacks files and its pause after a failure is over.

    Raise what `RunDirectory.read_plan` raises, and BadInputError for an invalid target.
    """
    if not targets:
        return False
    plan, state = read_run(run)
    items, states = ready(run, plan, state, extras), read_states(run)
    return any(
        missing(items, known) and known.may_try(now)
        for known in (states.get(str(target), TargetState()) for target in parse_all(targets))
    )


def unverified(run: RunDirectory, targets: Sequence[str], extras: Sequence[str] = ()) -> tuple[str, ...]:
    """Return why destroying the box would lose data of this run, one clause a reason.

    Empty only if every target has every file by its own checksum, and no checkpoint is left to resume from.
    """
    plan, state = read_run(run)
    reasons = list(_unfinished(plan, state))
    if not targets:
        reasons.append("no upload target is set")
    items, states = ready(run, plan, state, extras), read_states(run)
    if Extra.DATASET in extras and state.is_over and not any(item.kind is ItemKind.DATASET for item in items):
        reasons.append("the dataset can no longer be read")
    for target in parse_all(targets):
        known = states.get(str(target), TargetState())
        left = missing(items, known)
        if left:
            why = f": {known.failed.reason}" if known.failed is not None else ""
            reasons.append(f"{target} lacks {count(len(left), 'file')}{why}")
    return tuple(reasons)


def statuses(run: RunDirectory, targets: Sequence[str], extras: Sequence[str] = ()) -> tuple[TargetStatus, ...]:
    """Return the status of each target."""
    if not targets:
        return ()
    plan, state = read_run(run)
    items, states = ready(run, plan, state, extras), read_states(run)
    duties = read_duties(run)
    owed = duties.uploads if duties is not None else ()
    return tuple(
        status_of(target, items, states.get(str(target), TargetState()), is_owed=str(target) in owed)
        for target in parse_all(targets)
    )


def of_run(run: RunDirectory, plan: Plan, state: RunState) -> tuple[TargetStatus, ...]:
    """Return every target of a run: those of its duties, and those with files uploaded by hand.

    Raise CorruptRecordError or BadInputError for unreadable records.
    """
    duties, states = read_duties(run), read_states(run)
    owed = duties.uploads if duties is not None else ()
    by_hand = [target for target, known in states.items() if known.verified]
    if not owed and not by_hand:
        return ()
    items = ready(run, plan, state, duties.upload_extras if duties is not None else ())
    return tuple(
        status_of(target, items, states.get(str(target), TargetState()), is_owed=str(target) in owed)
        for target in parse_all([*owed, *by_hand])
    )


def status_of(target: Target, items: Sequence[Item], known: TargetState, *, is_owed: bool) -> TargetStatus:
    left = missing(items, known)
    there = [item for item in items if item not in left]
    if not items:
        stage = Stage.WAITING
    elif not left:
        stage = Stage.VERIFIED
    elif known.failed is not None:
        stage = Stage.FAILED
    else:
        stage = Stage.SENDING if known.began is not None else Stage.PENDING
    lora = next((known.verified[item.name] for item in there if item.kind is ItemKind.LORA), None)
    return TargetStatus(
        target=target,
        stage=stage,
        ready=len(items),
        verified=len(there),
        bytes=sum(item.size for item in there),
        failed=known.failed if left else None,
        next_try=known.failed.not_before if left and known.failed is not None and is_owed else None,
        where=lora.where.rpartition("/")[0] if lora is not None else None,
    )


def missing(items: Sequence[Item], known: TargetState) -> tuple[Item, ...]:
    """Return the items whose current version the target is not known to have."""
    return tuple(item for item in items if not known.has(item.name, item.size, item.mtime_ns))


def _unfinished(plan: Plan, state: RunState) -> Sequence[str]:
    """Return what else of a run exists only on this box, besides the files to upload."""
    if not state.is_over:
        return ["the run has not ended"]
    reasons = []
    if state.supervisor is not None and state.supervisor.is_alive():
        reasons.append("its report is being written")
    for step in plan.steps:
        job = state.jobs.get(step.id)
        if step.kind is not StepKind.TRAIN or job is None or job.state is JobState.SUCCEEDED:
            continue
        saved = [attempt.last_state for attempt in job.attempts if attempt.last_state is not None]
        found = job.diagnosis
        if saved and not (job.state is JobState.FAILED and found is not None and found.cause in _HOPELESS):
            epoch = max(state.epoch for state in saved)
            reasons.append(f"{step.id} can be resumed from its checkpoint of epoch {epoch}, which is only on this box")
    return reasons

"""What the guardian does next: a pure function of what it sees of the box."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from wan_train.base.clock import Moment, backoff, is_later, seconds_between
from wan_train.base.host import ProcessIdentity
from wan_train.run.box_ending import Ending, Phase
from wan_train.run.duties import Duties, Then
from wan_train.run.events import StopMode

RESTART_SECONDS = 10.0
"""Restart a supervisor that has been gone this long. Doubles with every restart that did not last."""
_LONGEST_RESTART_SECONDS = 40.0
UNBORN_SECONDS = 50.0
"""The same for a run that never had a supervisor: the command that starts it needs time."""
MOST_RESTARTS = 5
SAVING_SECONDS = 600.0
"""Time to reach the next checkpoint once the time limit has passed."""
STOPPING_SECONDS = 120.0
"""Time to stop at once after that. A run that is not over by then hangs."""
REPORT_SECONDS = 150.0
"""Longest wait for the supervisor of a finished run, which writes the report."""
UPLOAD_SECONDS = 5400.0
"""Longest wait, before the box is ended, for a server that does not take the results."""
LATE_UPLOAD_SECONDS = 900.0
"""The same past the time limit."""
LAST_UPLOAD_SECONDS = 86_400.0
"""The same for a box that stays on."""
RECHECK_SECONDS = 120.0
"""Repeat an accepted order if the box still runs after this long."""
_LONGEST_PAUSE_SECONDS = 300.0
_FIRST_PAUSE_SECONDS = 5.0
_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """A request to stop a run at the time limit, first made `seconds` ago."""

    seconds: float
    mode: StopMode


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedRun:
    """A run with duties, as the guardian sees it."""

    run_id: str
    duties: Duties
    is_over: bool
    has_supervisor: bool
    gone_seconds: float = 0.0
    """How long there has been no supervisor."""
    is_unborn: bool = False
    """No supervisor ever took it over."""
    is_resuming: bool = False
    """It was over before it got these duties, so a command is about to resume it."""
    restarts: int = 0
    """Counted since a restart last succeeded."""
    elapsed: float = 0.0
    """Seconds since the start."""
    saving: Saving | None = None
    settled_seconds: float = 0.0
    """Seconds since it was first seen settled."""
    kept_at: float | None = None
    """`elapsed` when a person cancelled the ending."""
    has_ended: bool = False
    """Its ending was carried out."""
    unverified: tuple[str, ...] = ()
    """Why its results are not all safe elsewhere, in words."""
    upload_pending: bool = False
    """Something is ready and not verified yet."""
    upload_due: bool = False
    """The same, and it may be tried now."""
    is_uploading: bool = False
    has_messages: bool = False
    """Messages are still to be sent."""

    @property
    def limit(self) -> float | None:
        return None if self.duties.max_hours is None else self.duties.max_hours * _HOUR

    @property
    def is_late(self) -> bool:
        return self.limit is not None and self.elapsed >= self.limit

    @property
    def is_lost(self) -> bool:
        """Whether its supervisors keep dying, so that it never ends by itself."""
        return not self.is_over and not self.has_supervisor and self.restarts >= MOST_RESTARTS

    @property
    def is_settled(self) -> bool:
        """Whether its training will produce nothing more."""
        if self.is_over:
            if self.is_resuming and self.elapsed < UNBORN_SECONDS:
                return False
            return not self.has_supervisor or self.settled_seconds >= REPORT_SECONDS
        return self.is_lost or hangs(self.saving)

    @property
    def wants_ending(self) -> bool:
        """Whether it wants the box ended. A cancelled ending is wanted again at the time limit."""
        if self.duties.then is Then.NOTHING or self.has_ended:
            return False
        return self.kept_at is None or (self.limit is not None and self.is_late and self.kept_at < self.limit)

    @property
    def may_want_ending(self) -> bool:
        """Whether it wants an ending now, or will at the time limit."""
        waits = self.kept_at is not None and self.limit is not None and self.kept_at < self.limit
        return self.wants_ending or (self.duties.then is not Then.NOTHING and not self.has_ended and waits)

    @property
    def waits_for_upload(self) -> bool:
        if not self.upload_pending:
            return False
        if self.duties.then is Then.NOTHING:
            patience = LAST_UPLOAD_SECONDS
        else:
            patience = LATE_UPLOAD_SECONDS if self.is_late else UPLOAD_SECONDS
        return self.settled_seconds < patience


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """A run, or a measurement, that works on this box and has no duties."""

    run_id: str
    saving: Saving | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """All that a decision depends on."""

    now: Moment
    runs: tuple[GuardedRun, ...] = ()
    others: tuple[Other, ...] = ()
    ending: Ending | None = None
    kept_by: str | None = None
    """Who asked to keep the box on, since the countdown began."""
    first_process: ProcessIdentity | None = None
    is_acting: bool = False
    """An order to the provider, or the user's command, is in progress."""
    unsafe: tuple[str, ...] = ()
    """Results of runs without duties that would be lost with the box, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRun:
    run_id: str
    mode: StopMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Record the ending as it is now; None means that none is decided."""

    ending: Ending | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """A person keeps the box on, so the ending of these runs is cancelled."""

    ending: Ending
    run_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CarryOut:
    """End the box now."""

    ending: Ending


@dataclass(frozen=True, slots=True, kw_only=True)
class HasEnded:
    """The ending of these runs was carried out and must not be repeated."""

    run_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The duties of this run are done."""

    run_id: str


Action = Restart | StopRun | Upload | Record | Keep | CarryOut | HasEnded | Release


def decide(box: Box) -> list[Action]:
    """Return all actions due now, for any box. Repeating an action is harmless."""
    actions: list[Action] = []
    for run in box.runs:
        actions += _care(run)
    if any(run.is_late and run.wants_ending for run in box.runs):
        actions += _save_all(box)
    actions += _end(box)
    actions += [Release(run_id=run.run_id) for run in box.runs if _is_released(run)]
    return actions


def chosen(box: Box) -> tuple[Then, tuple[str, ...], str]:
    """Return the ending of the box, its command, and why. Stop wins over destroy, and both over a command.

    A stop keeps the disk; what a command does is unknown. A box is destroyed only if no run wants it stopped and
    every result on it is safe elsewhere.
    """
    wanting = [run for run in box.runs if run.wants_ending]
    wanted = {run.duties.then for run in wanting}
    why = _why(wanting)
    if Then.STOP in wanted:
        return Then.STOP, (), why
    if Then.DESTROY in wanted:
        risks = [reason for run in box.runs for reason in _risks(run)] + list(box.unsafe)
        if not risks:
            return Then.DESTROY, (), f"{why}; every result is safe elsewhere"
        more = f", and {len(risks) - 1} more" if len(risks) > 1 else ""
        return Then.STOP, (), f"{why}; stopped and not destroyed, because {risks[0]}{more}"
    command = next((run.duties.command for run in reversed(wanting) if run.duties.command), ())
    return (Then.COMMAND, command, why) if command else (Then.NOTHING, (), why)


def pause_after(tries: int) -> float:
    """Seconds between two tries to end the box."""
    return backoff(tries + 1, first=_FIRST_PAUSE_SECONDS, longest=_LONGEST_PAUSE_SECONDS)


def _care(run: GuardedRun) -> Iterator[Action]:
    """What one run needs: a supervisor, an upload."""
    gone = not run.is_over and not run.has_supervisor and not run.is_settled
    patience = (
        UNBORN_SECONDS
        if run.is_unborn
        else backoff(run.restarts + 1, first=RESTART_SECONDS, longest=_LONGEST_RESTART_SECONDS)
    )
    if gone and run.gone_seconds >= patience:
        yield Restart(run_id=run.run_id)
    if run.upload_due and not run.is_uploading:
        yield Upload(run_id=run.run_id)


def _save_all(box: Box) -> Iterator[Action]:
    """At the time limit, make every run on the box save and stop."""
    working: list[GuardedRun | Other] = [*(run for run in box.runs if not run.is_over), *box.others]
    for each in working:
        if each.saving is None:
            yield StopRun(run_id=each.run_id, mode=StopMode.AFTER_STATE)
        elif each.saving.mode is StopMode.AFTER_STATE and each.saving.seconds >= SAVING_SECONDS:
            yield StopRun(run_id=each.run_id, mode=StopMode.NOW)


def _end(box: Box) -> Iterator[Action]:
    ending = box.ending
    if ending is not None and ending.phase is not Phase.CANCELLED and ending.life != box.first_process:
        # The box restarted. An accepted ending was carried out; any other is decided anew, with its full grace period.
        if ending.phase is Phase.ASKED:
            yield HasEnded(run_ids=_ended_with(box, ending))
        yield Record(ending=None)
        return
    if ending is None or ending.phase is Phase.CANCELLED:
        if _is_due(box):
            yield Record(ending=_new(box))
        return
    match ending.phase:
        case Phase.COUNTDOWN | Phase.ENDING:
            yield from _continue(box, ending)
        case Phase.ASKED:
            yield from _recheck(box, ending)
        case _:
            assert_never(ending.phase)


def _continue(box: Box, ending: Ending) -> Iterator[Action]:
    """Continue a countdown, or an ending that has not succeeded yet."""
    if box.kept_by is not None:
        kept = replace(ending, phase=Phase.CANCELLED, cancelled_by=box.kept_by, changed=box.now.at)
        wanting = tuple(run.run_id for run in box.runs if run.wants_ending)
        yield Keep(ending=kept, run_ids=wanting)
        return
    if box.is_acting:
        return
    if not _is_due(box):
        yield Record(ending=None)  # another run works, or new results are to be uploaded
        return
    then, command, because = chosen(box)
    now = replace(ending, then=then, command=command, because=because)
    if ending.phase is Phase.COUNTDOWN and seconds_between(ending.decided, box.now) < ending.grace_seconds:
        if now != ending:
            yield Record(ending=now)
        return
    if ending.phase is Phase.ENDING and _since_change(box, ending) < pause_after(ending.tries):
        return
    yield CarryOut(ending=replace(now, phase=Phase.ENDING, tried=box.now, changed=box.now.at))


def _recheck(box: Box, ending: Ending) -> Iterator[Action]:
    """Repeat an accepted order if the box still runs. A command that succeeded is not repeated.

    A run started on the box since then cancels the old order.
    """
    if ending.then is Then.COMMAND or _is_working(box):
        yield HasEnded(run_ids=_ended_with(box, ending))
        yield Record(ending=None)
    elif not box.is_acting and _since_change(box, ending) >= RECHECK_SECONDS:
        yield CarryOut(ending=replace(ending, tried=box.now, changed=box.now.at))


def _ended_with(box: Box, ending: Ending) -> tuple[str, ...]:
    """The runs this ending was for, except those resumed since: they get an ending of their own."""
    resumed = {run.run_id for run in box.runs if is_later(run.duties.began, ending.decided)}
    return tuple(run_id for run_id in ending.runs if run_id not in resumed)


def _since_change(box: Box, ending: Ending) -> float:
    return seconds_between(ending.tried or ending.decided, box.now)


def _is_due(box: Box) -> bool:
    """Whether a run wants an ending, and nothing is working, uploading or waiting."""
    wanting = any(run.wants_ending for run in box.runs)
    uploads = any(run.waits_for_upload for run in box.runs)
    return wanting and not _is_working(box) and not uploads


def _is_working(box: Box) -> bool:
    """Whether a run works or waits on the box. At the time limit, hanging runs do not count."""
    limit = any(run.is_late and run.wants_ending for run in box.runs)
    others = any(not (limit and hangs(other.saving)) for other in box.others)
    return others or any(not run.is_settled for run in box.runs)


def _new(box: Box) -> Ending:
    wanting = [run for run in box.runs if run.wants_ending]
    grace = max(run.duties.grace_seconds for run in wanting)
    then, command, because = chosen(box)
    return Ending(
        then=then,
        command=command,
        runs=tuple(run.run_id for run in wanting),
        because=because,
        decided=box.now,
        grace_seconds=grace,
        due=box.now.at + grace,
        life=box.first_process,
        changed=box.now.at,
    )


def _why(wanting: Sequence[GuardedRun]) -> str:
    late = [run for run in wanting if run.is_late]
    if late:
        return f"{late[0].run_id} reached its --max-hours {late[0].duties.max_hours:g}"
    lost = [run for run in wanting if run.is_lost]
    return f"{lost[0].run_id} cannot be resumed" if lost else "the last run is over"


def _risks(run: GuardedRun) -> Sequence[str]:
    """Why results of a run would be lost with the box."""
    if not run.duties.uploads:
        return (f"{run.run_id} has no upload",)
    return run.unverified


def _is_released(run: GuardedRun) -> bool:
    return (
        run.is_settled
        and not run.may_want_ending
        and not run.waits_for_upload
        and not run.is_uploading
        and not run.has_messages
    )


def hangs(saving: Saving | None) -> bool:
    """Whether a run did not stop in time after an order to stop at once."""
    return saving is not None and saving.mode is StopMode.NOW and saving.seconds >= SAVING_SECONDS + STOPPING_SECONDS

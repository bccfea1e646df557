"""The state of one guarded run, kept in `guard.json` so that another guardian can continue."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from wan_train.base import codec, locks
from wan_train.base.clock import Moment, seconds_between
from wan_train.base.errors import WanTrainError
from wan_train.base.files import write_whole
from wan_train.base.host import ProcessIdentity
from wan_train.guardian.decisions import GuardedRun, Saving
from wan_train.guardian.effects import say
from wan_train.run.directory import RunDirectory
from wan_train.run.duties import Duties, read_duties
from wan_train.run.events import StopMode
from wan_train.run.follow import RunFollower

_LASTED_SECONDS = 600.0
"""A restart has succeeded once its supervisor has lived this long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A run at one moment."""

    is_over: bool
    has_supervisor: bool
    is_unborn: bool = False
    finished: float | None = None
    """When the run ended, in Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The guardian's memory of the start `began`. A resume by a person is a new start, with an empty record."""

    began: Moment
    looked: Moment
    elapsed: float
    """Seconds from `began` to `looked`, as a running sum: neither a clock change nor a reboot lowers it."""
    gone_since: Moment | None = None
    restarts: int = 0
    restarted: Moment | None = None
    saving_since: Moment | None = None
    saving_mode: StopMode = StopMode.AFTER_STATE
    settled_since: Moment | None = None
    kept_at: float | None = None
    has_ended: bool = False
    ordered: ProcessIdentity | None = None
    """The box's first process when its end was accepted. A different one now means that the box restarted."""
    is_released: bool = False
    """Whether its duties are done."""


def first_record(duties: Duties, now: Moment) -> RunRecord:
    return RunRecord(began=duties.began, looked=now, elapsed=seconds_between(duties.began, now))


def record_after(
    record: RunRecord, duties: Duties, seen: Seen, now: Moment, *, first_process: ProcessIdentity | None
) -> RunRecord:
    """Return the record after another look at the run."""
    if record.began != duties.began:
        record = first_record(duties, now)
    elapsed = record.elapsed + seconds_between(record.looked, now)
    gone = not seen.has_supervisor and not seen.is_over
    lasted = seen.has_supervisor and _seconds(record.restarted, now) >= _LASTED_SECONDS
    record = replace(
        record,
        looked=now,
        elapsed=elapsed,
        gone_since=(record.gone_since or now) if gone else None,
        restarts=0 if lasted else record.restarts,
        is_released=False,
        has_ended=record.has_ended or (record.ordered is not None and record.ordered != first_process),
    )
    settled = seen.is_over or guarded_run(duties, seen, record, now, run_id="").is_settled
    return replace(record, settled_since=(record.settled_since or now) if settled else None)


def guarded_run(duties: Duties, seen: Seen, record: RunRecord, now: Moment, *, run_id: str) -> GuardedRun:
    """The run as `decide` sees it, without its uploads and messages."""
    return GuardedRun(
        run_id=run_id,
        duties=duties,
        is_over=seen.is_over,
        has_supervisor=seen.has_supervisor,
        is_unborn=seen.is_unborn,
        is_resuming=seen.finished is not None and seen.finished < duties.began.at,
        gone_seconds=_seconds(record.gone_since, now),
        restarts=record.restarts,
        elapsed=record.elapsed,
        saving=saving(record.saving_since, record.saving_mode, now),
        settled_seconds=_seconds(record.settled_since, now),
        kept_at=record.kept_at,
        has_ended=record.has_ended,
    )


def saving(since: Moment | None, mode: StopMode, now: Moment) -> Saving | None:
    return None if since is None else Saving(seconds=seconds_between(since, now), mode=mode)


def read_record(run: RunDirectory) -> RunRecord | None:
    """The saved record; None if it is missing or damaged. Raises OSError."""
    try:
        return codec.from_json(run.guard.read_bytes(), RunRecord, where=str(run.guard))
    except (FileNotFoundError, codec.CorruptRecordError):
        return None


def write_record(run: RunDirectory, record: RunRecord) -> None:
    """Raises OSError."""
    write_whole(run.guard, codec.to_json(record, indent=1) + "\n")


def _seconds(since: Moment | None, now: Moment) -> float:
    return 0.0 if since is None else seconds_between(since, now)


_WRITE_SECONDS = 60.0
_PATIENCE_SECONDS = 60.0
"""An OSError, such as too many open files, may pass. After this time, what cannot be read counts as damaged."""


class RunTracker:
    """Never raises. A run with damaged records is over once its lock is free; its results never count as safe."""

    def __init__(self, run: RunDirectory, first_process: ProcessIdentity | None) -> None:
        self.run = run
        self._first_process = first_process
        self.duties: Duties | None = None
        """As last read; None before, and for a run without duties."""
        self.is_unread = False
        """Whether it could not be read yet; the next look tries again."""
        self.damage: str | None = None
        """Why its records cannot be read, in words."""
        self._follower = RunFollower(run)
        self._seen = Seen(is_over=False, has_supervisor=True)
        """As last seen. Until the first look succeeds, the run counts as working."""
        self._failing_since: Moment | None = None
        self._record: RunRecord | None = None
        self._is_record_read = False
        self._written: RunRecord | None = None

    @property
    def is_there(self) -> bool:
        """Whether the run still exists."""
        return self.run.plan.is_file()

    def look(self, now: Moment) -> GuardedRun | None:
        """The run as it is now; None if it has no duties, or while it `is_unread`."""
        was_unread, self.is_unread = self.is_unread, False
        try:
            self.duties = read_duties(self.run)
            self._read_record(now)
        except OSError as error:
            self.is_unread = not self._is_record_read
            if self.is_unread and not was_unread:
                say(f"{self.run.run_id} cannot be read yet, retrying: {error}")
        except codec.CorruptRecordError as error:
            if self.duties is None:  # else the duties read before stay
                say(f"{self.run.run_id} is not watched: {error}")
        if self.duties is None or self.is_unread:
            return None
        seen = self._see(now)
        self._record = record_after(
            self._record or first_record(self.duties, now), self.duties, seen, now, first_process=self._first_process
        )
        return guarded_run(self.duties, seen, self._record, now, run_id=self.run.run_id)

    def note_restart(self, now: Moment) -> None:
        if self._record is not None:
            restarts = self._record.restarts + 1
            self._record = replace(self._record, restarts=restarts, restarted=now, gone_since=None)

    def note_stop(self, mode: StopMode, now: Moment) -> None:
        if self._record is not None:
            since = self._record.saving_since or now
            self._record = replace(self._record, saving_since=since, saving_mode=mode)

    def note_kept(self) -> None:
        if self._record is not None:
            self._record = replace(self._record, kept_at=self._record.elapsed)

    def note_ordered(self) -> None:
        """Remember that this run ended the box, so that it does not end it again after a restart."""
        if self._record is not None:
            self._record = replace(self._record, ordered=self._first_process)

    def note_ended(self) -> None:
        if self._record is not None:
            self._record = replace(self._record, has_ended=True)

    def note_released(self) -> None:
        if self._record is not None:
            self._record = replace(self._record, is_released=True)

    def save(self) -> None:
        """Save the record if it is news. After a failed write, such as on a full disk, the next round retries."""
        if self._record is None or not _is_news(self._record, self._written):
            return
        with suppress(OSError):
            write_record(self.run, self._record)
            self._written = self._record

    def _read_record(self, now: Moment) -> None:
        """Read once what an earlier guardian remembered. Raises OSError while that may pass."""
        if self._is_record_read:
            return
        try:
            self._record = read_record(self.run)
        except OSError:
            if not self._fails_for_long(now):
                raise
        self._is_record_read = True

    def _see(self, now: Moment) -> Seen:
        try:
            _, state = self._follower.read()
        except (WanTrainError, OSError) as error:
            self.damage = str(error)
            if isinstance(error, OSError) and not self._fails_for_long(now):
                return self._seen
            lives = locks.is_locked(self.run.lock)
            return Seen(is_over=not lives, has_supervisor=lives)
        self.damage, self._failing_since = None, None
        supervisor = state.supervisor
        self._seen = Seen(
            is_over=state.is_over,
            has_supervisor=supervisor is not None and supervisor.is_alive(),
            is_unborn=supervisor is None,
            finished=state.finished.at if state.finished is not None else None,
        )
        return self._seen

    def _fails_for_long(self, now: Moment) -> bool:
        """Whether reading has failed for so long that the error will not pass."""
        self._failing_since = self._failing_since or now
        return seconds_between(self._failing_since, now) >= _PATIENCE_SECONDS


def _is_news(memory: RunRecord, written: RunRecord | None) -> bool:
    """Whether to write the record: at once if it changed, once a minute if only its times did."""
    if written is None or seconds_between(written.looked, memory.looked) >= _WRITE_SECONDS:
        return True
    return memory != replace(written, looked=memory.looked, elapsed=memory.elapsed)

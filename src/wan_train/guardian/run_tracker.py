"""Follows one guarded run: reads its records in each round and keeps the record about it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from wan_train.base import codec, locks
from wan_train.base.errors import WanTrainError
from wan_train.base.host import ProcessIdentity
from wan_train.base.moment import Moment, seconds_between
from wan_train.guardian import run_record
from wan_train.guardian.decisions import GuardedRun
from wan_train.guardian.run_record import RunRecord, Seen
from wan_train.run.directory import RunDirectory
from wan_train.run.duties import Duties, read_duties
from wan_train.run.events import StopMode
from wan_train.run.follow import RunFollower

_WRITE_SECONDS = 60.0


class RunTracker:
    """Raises nothing. A run with damaged records is over once no supervisor holds its lock, and it is never safe."""

    def __init__(self, run: RunDirectory, life: ProcessIdentity | None) -> None:
        """`life` is the box's first process."""
        self.run = run
        self._life = life
        self.duties: Duties | None = None
        """As last read; None before, and for a run without duties."""
        self.damage: str | None = None
        """Why its records cannot be read, in words."""
        self._follower = RunFollower(run)
        self._record = run_record.read_record(run)
        self._written: RunRecord | None = None

    @property
    def is_there(self) -> bool:
        """Whether the run was not removed."""
        return self.run.plan.is_file()

    def look(self, now: Moment) -> GuardedRun | None:
        """The run as it is now, None while it has no duties."""
        with suppress(codec.CorruptRecordError, OSError):  # then those that were read before hold
            self.duties = read_duties(self.run)
        if self.duties is None:
            return None
        seen = self._see()
        self._record = run_record.after(
            self._record or run_record.first(self.duties, now), self.duties, seen, now, life=self._life
        )
        return run_record.guarded_run(self.duties, seen, self._record, now, run_id=self.run.run_id)

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
        """The box goes down because of this run, and not again after it came back."""
        if self._record is not None:
            self._record = replace(self._record, ordered=self._life)

    def note_ended(self) -> None:
        if self._record is not None:
            self._record = replace(self._record, has_ended=True)

    def note_released(self) -> None:
        if self._record is not None:
            self._record = replace(self._record, is_released=True)

    def save(self) -> None:
        """Write down what is remembered, where it is news; a full disk waits for the next time."""
        if self._record is None or not _is_news(self._record, self._written):
            return
        with suppress(OSError):
            run_record.write_record(self.run, self._record)
            self._written = self._record

    def _see(self) -> Seen:
        try:
            _, state = self._follower.read()
        except (WanTrainError, OSError) as error:
            self.damage = str(error)
            lives = locks.is_locked(self.run.lock)
            return Seen(is_over=not lives, has_supervisor=lives)
        self.damage = None
        supervisor = state.supervisor
        return Seen(
            is_over=state.is_over,
            has_supervisor=supervisor is not None and supervisor.is_alive(),
            is_unborn=supervisor is None,
            finished=state.finished.at if state.finished is not None else None,
        )


def _is_news(memory: RunRecord, written: RunRecord | None) -> bool:
    """The hours alone are written once a minute."""
    if written is None or seconds_between(written.looked, memory.looked) >= _WRITE_SECONDS:
        return True
    return memory != replace(written, looked=memory.looked, elapsed=memory.elapsed)

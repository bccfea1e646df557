"""What a view shows: the records of one run, read together."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from wan_train.engine.output import last_words
from wan_train.printable import redact, visible
from wan_train.run.directory import RunDirectory
from wan_train.run.events import Event
from wan_train.run.journal import JournalReader
from wan_train.run.live import Live, read_live
from wan_train.run.plan import Plan
from wan_train.run.progress import read_tail
from wan_train.run.state import JobState, RunState, fold, initial

TAIL_LINES = 8
"""Log lines shown of a failed step: a Python error with its last frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One run at one moment. `tails` has the last log lines of failed steps by step id, safe to print."""

    run: RunDirectory
    plan: Plan
    state: RunState
    live: Live | None
    supervisor_alive: bool
    """Also true before a supervisor has taken the run over."""
    tails: Mapping[str, tuple[str, ...]]
    disk_free: int | None = None
    """Bytes free where the run is; None when it cannot be told."""
    supervisor_said: str | None = None
    """The last line that a supervisor printed, safe to print: normally it prints nothing."""

    @property
    def has_supervisor(self) -> bool:
        """Whether a supervisor looks after the run at this moment."""
        return self.state.supervisor is not None and self.supervisor_alive


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuNow:
    """A GPU before a run begins. Memory in bytes; `busy_because` is None when it is free."""

    label: str
    name: str
    used_bytes: int
    total_bytes: int
    busy_because: str | None = None


class RunReader:
    """Reads a run again and again: the plan once, of the journal only what is new.

    Raises what RunDirectory.read_plan raises, and CorruptRecordError for a damaged journal.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._plan = run.read_plan()
        self._state = initial(self._plan)
        self._journal = JournalReader(run.events)
        self._tails: dict[str, tuple[str, ...]] = {}

    def refresh(self) -> tuple[RunView, list[Event]]:
        """The run now, and the events since the last call."""
        # The supervisor is asked before the journal is read: one that ends in between has written its last event.
        alive = self._state.supervisor is None or self._state.supervisor.is_alive()
        events = list(self._journal.new_events())
        before = self._state.supervisor
        for event in events:
            self._state = fold(self._state, event)
        if self._state.supervisor is not None and self._state.supervisor != before:
            alive = self._state.supervisor.is_alive()
        self._read_tails()
        view = RunView(
            run=self._run,
            plan=self._plan,
            state=self._state,
            live=read_live(self._run),
            supervisor_alive=alive,
            tails=dict(self._tails),
            disk_free=_disk_free(self._run),
            supervisor_said=_last_line(self._run) if not alive else None,
        )
        return view, events

    def _read_tails(self) -> None:
        for job in self._state.jobs.values():
            attempt = job.attempt
            if job.state is not JobState.FAILED or attempt is None or job.step in self._tails:
                continue
            log = self._run.attempt(job.step, attempt.number).log
            lines = last_words(read_tail(log), TAIL_LINES)
            self._tails[job.step] = tuple(visible(redact(line)) for line in lines)


def _disk_free(run: RunDirectory) -> int | None:
    try:
        return shutil.disk_usage(run.path).free
    except OSError:
        return None


def _last_line(run: RunDirectory) -> str | None:
    lines = last_words(read_tail(run.supervisor_log), 1)
    return visible(redact(lines[-1])) if lines else None

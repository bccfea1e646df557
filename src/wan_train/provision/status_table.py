"""Where every step of a provision stands: written by the steps' threads, read as values by whoever shows it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum

_RATE_SECONDS = 10.0
"""A rate is that of the last seconds, not of the whole download."""
_FIRST_RATE_SECONDS = 2.0
_FIRST_RATE_BYTES = 100_000
"""What came in less time, or is less than this, is no rate: nobody should read `14 h left` while a download begins."""
_SAMPLE_SECONDS = 0.1


class Phase(StrEnum):
    """How far a step is in this call."""

    READY = "ready"
    """It was there before."""
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    """What it needs failed."""
    ENDED = "ended"
    """The user ended the provision in its middle, or before it began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One step at one moment.

    `needs` are ids of steps it waits for, `turn_after` the id of the one before it in the line to the network. `done`
    and `total` in bytes (0 when the step counts none), `rate` in bytes a second over the last ten seconds, 0 while
    there is none; `fetched` in bytes that came over the network in this call. `worked` are the seconds of work up to
    `since`, by the monotonic clock, from when on it is at work now; waiting does not count. `remarks` are what the user
    should still read at the end.
    """

    id: str
    title: str
    phase: Phase
    detail: str = ""
    needs: tuple[str, ...] = ()
    turn_after: str | None = None
    done: int = 0
    total: int = 0
    rate: float = 0.0
    fetched: int = 0
    worked: float = 0.0
    since: float | None = None
    remarks: tuple[str, ...] = ()
    warns: bool = False
    """It was there, and something about it will hurt later."""

    def seconds(self, now: float) -> float:
        """How long it has been at work, 0 before."""
        return self.worked + (0.0 if self.since is None else max(0.0, now - self.since))

    @property
    def seconds_left(self) -> float | None:
        """What its bytes still take at the rate of now; None while there is no rate."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A line that a step said, `at` seconds since 1970; a failure may have several lines."""

    at: float
    title: str
    text: str


@dataclass(slots=True)
class Board:
    """All steps in order. Methods may be called from any thread."""

    clock: Callable[[], float] = time.monotonic
    _rows: dict[str, Row] = field(default_factory=dict)
    _samples: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)
    _said: deque[Said] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(
        self, step: str, title: str, phase: Phase, *, detail: str = "", total: int = 0, warns: bool = False
    ) -> None:
        with self._lock:
            self._rows[step] = Row(id=step, title=title, phase=phase, detail=detail, total=total, warns=warns)

    def rows(self) -> tuple[Row, ...]:
        now = self.clock()
        with self._lock:
            return tuple(replace(row, rate=self._rate(row, now)) for row in self._rows.values())

    def take_said(self) -> list[Said]:
        """What was said since the last call. Whoever prints does it in a thread of its own: a step must not fail
        because the reader of a pipe left.
        """
        with self._lock:
            taken = list(self._said)
            self._said.clear()
        return taken

    def begin(self, step: str) -> None:
        """It is at work, from now on or again."""
        with self._lock:
            row = replace(self._rows[step], phase=Phase.RUNNING, detail="", needs=(), turn_after=None)
            self._rows[step] = replace(row, since=self.clock())

    def wait(self, step: str, *, needs: tuple[str, ...] = (), turn_after: str | None = None) -> None:
        """It waits for other steps or for its turn; the seconds of waiting are no work."""
        with self._lock:
            row = self._rows[step]
            changed = replace(row, worked=row.seconds(self.clock()), since=None)
            self._rows[step] = replace(changed, phase=Phase.WAITING, needs=needs, turn_after=turn_after)

    def say(self, step: str, line: str) -> None:
        """One line about what a step does now."""
        with self._lock:
            self._put(replace(self._rows[step], detail=line), line)

    def remark(self, step: str, line: str) -> None:
        """One line that is still true and worth reading when all is over."""
        with self._lock:
            row = self._rows[step]
            self._put(replace(row, remarks=(*row.remarks, line)), line)

    def progress(self, step: str, done: int, total: int) -> None:
        """Bytes that are there, of all; says nothing by itself."""
        now = self.clock()
        with self._lock:
            before = self._rows[step]
            self._rows[step] = replace(before, done=done, total=total)
            samples = self._samples.setdefault(step, deque())
            if samples and done < samples[-1][1]:
                samples.clear()  # it began anew
            if len(samples) > 1 and now - samples[-2][0] < _SAMPLE_SECONDS:
                samples.pop()
            samples.append((now, done))
            while len(samples) > 1 and samples[1][0] < now - _RATE_SECONDS:
                samples.popleft()

    def fetched(self, step: str, count: int) -> None:
        """Add bytes that came over the network."""
        with self._lock:
            self._rows[step] = replace(self._rows[step], fetched=self._rows[step].fetched + count)

    def end(self, step: str, phase: Phase, line: str) -> None:
        with self._lock:
            row = self._rows[step]
            over = replace(row, worked=row.seconds(self.clock()), since=None, needs=(), turn_after=None)
            self._put(replace(over, phase=phase, detail=line), line)

    def _put(self, row: Row, text: str) -> None:
        self._rows[row.id] = row
        self._said.append(Said(at=time.time(), title=row.title, text=text))

    def _rate(self, row: Row, now: float) -> float:
        samples = self._samples.get(row.id)
        if row.phase is not Phase.RUNNING or not samples or now - samples[-1][0] > _RATE_SECONDS:
            return 0.0
        first, before = samples[0]
        seconds, came = now - first, row.done - before
        return came / seconds if seconds >= _FIRST_RATE_SECONDS and came >= _FIRST_RATE_BYTES else 0.0

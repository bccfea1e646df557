"""The status of each step of a provision: written by the steps' threads, read as values by the view."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum


class Phase(StrEnum):
    """The progress of a step in this call."""

    READY = "ready"
    """It was ready before this call."""
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    """A step that it needs failed."""
    ENDED = "ended"
    """The user ended the provision before the step finished or began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One step at one moment.

    `needs` are IDs of steps it waits for. `done` and `total` are bytes (0 if the step counts none); `fetched` is the
    bytes downloaded in this call. `since` is when its current work began, on the monotonic clock, and `worked` is the
    seconds of work before that; waiting does not count. `remarks` are still worth reading at the end.
    """

    id: str
    title: str
    phase: Phase
    detail: str = ""
    needs: tuple[str, ...] = ()
    done: int = 0
    total: int = 0
    fetched: int = 0
    worked: float = 0.0
    since: float | None = None
    remarks: tuple[str, ...] = ()
    warns: bool = False
    """It was ready, but may cause problems later."""

    def seconds(self, now: float) -> float:
        """Seconds of work so far."""
        return self.worked + (0.0 if self.since is None else max(0.0, now - self.since))


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A line of a step, `at` seconds since 1970; a failure may have several lines."""

    at: float
    title: str
    text: str


@dataclass(slots=True)
class StatusTable:
    """All steps in order. Methods may be called from any thread."""

    clock: Callable[[], float] = time.monotonic
    _rows: dict[str, Row] = field(default_factory=dict)
    _messages: list[Message] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, row: Row) -> None:
        with self._lock:
            self._rows[row.id] = row

    def rows(self) -> tuple[Row, ...]:
        with self._lock:
            return tuple(self._rows.values())

    def take_messages(self) -> list[Message]:
        """Messages since the last call. Only the thread that prints takes them: a closed pipe must not fail a step."""
        with self._lock:
            taken, self._messages = self._messages, []
        return taken

    def change(self, step: str, change: Callable[[Row], Row], *, message: str | None = None) -> None:
        """Replace a row by the result of `change`."""
        with self._lock:
            row = self._rows[step] = change(self._rows[step])
            if message is not None:
                self._messages.append(Message(at=time.time(), title=row.title, text=message))

    def begin(self, step: str) -> None:
        now = self.clock()
        self.change(step, lambda row: replace(row, phase=Phase.RUNNING, detail="", needs=(), since=now))

    def end(self, step: str, phase: Phase, line: str) -> None:
        def over(row: Row) -> Row:
            worked = row.seconds(self.clock())
            return replace(row, phase=phase, detail=line, needs=(), worked=worked, since=None)

        self.change(step, over, message=line)

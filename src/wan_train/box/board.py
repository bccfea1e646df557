"""Where every step of a provision stands: written by the steps' threads, read as one value by whoever shows it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

_RATE_SECONDS = 10.0
"""A rate is that of the last seconds, not of the whole download."""

Hear = Callable[[str, str], None]
"""Told (title of the step, line) whenever a step says something."""


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
    """The user ended the provision in its middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One step at one moment.

    `done` and `total` in bytes (0 when the step counts none), `rate` in bytes a second over the last ten seconds,
    `fetched` in bytes that came over the network in this call; `began` and `ended` by the monotonic clock.
    """

    id: str
    title: str
    phase: Phase
    detail: str = ""
    done: int = 0
    total: int = 0
    rate: float = 0.0
    fetched: int = 0
    began: float | None = None
    ended: float | None = None

    def seconds(self, now: float) -> float:
        """How long it has been at work, 0 before."""
        return 0.0 if self.began is None else (self.ended or now) - self.began


@dataclass(slots=True)
class Board:
    """All steps in order. Methods may be called from any thread."""

    _rows: dict[str, Row] = field(default_factory=dict)
    _samples: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _hear: list[Hear] = field(default_factory=list)

    def enter(self, step: str, title: str, phase: Phase, *, detail: str = "", total: int = 0) -> None:
        with self._lock:
            self._rows[step] = Row(id=step, title=title, phase=phase, detail=detail, total=total)

    def rows(self) -> tuple[Row, ...]:
        now = time.monotonic()
        with self._lock:
            return tuple(replace(row, rate=self._rate(row, now)) for row in self._rows.values())

    def listen(self, hear: Hear) -> None:
        self._hear.append(hear)

    def begin(self, step: str) -> None:
        self._change(step, phase=Phase.RUNNING, began=time.monotonic())

    def say(self, step: str, line: str) -> None:
        """One line about what a step does now."""
        self._change(step, detail=line)
        self._tell(step, line)

    def progress(self, step: str, done: int, total: int) -> None:
        """Bytes that are there, of all; says nothing by itself."""
        with self._lock:
            self._rows[step] = replace(self._rows[step], done=done, total=total)
            samples = self._samples.setdefault(step, deque())
            now = time.monotonic()
            samples.append((now, done))
            while len(samples) > 1 and samples[1][0] < now - _RATE_SECONDS:
                samples.popleft()

    def fetched(self, step: str, count: int) -> None:
        """Add bytes that came over the network."""
        with self._lock:
            self._rows[step] = replace(self._rows[step], fetched=self._rows[step].fetched + count)

    def end(self, step: str, phase: Phase, line: str) -> None:
        self._change(step, phase=phase, detail=line, ended=time.monotonic())
        self._tell(step, line)

    def _change(self, step: str, **changes: object) -> None:
        with self._lock:
            self._rows[step] = replace(self._rows[step], **changes)  # type: ignore[arg-type]  # names come from this class

    def _tell(self, step: str, line: str) -> None:
        for hear in self._hear:
            hear(self._rows[step].title, line)

    def _rate(self, row: Row, now: float) -> float:
        samples = self._samples.get(row.id)
        if row.phase is not Phase.RUNNING or not samples:
            return 0.0
        first, before = samples[0]
        return max(0.0, row.done - before) / (now - first) if now > first else 0.0


def unfinished(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.phase in {Phase.WAITING, Phase.RUNNING}]

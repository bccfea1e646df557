"""Signals as facts to look at, so that what is at work can be ended in order instead of in the middle of a line."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

HANGUP_EXIT = 128 + signal.SIGHUP


@dataclass(slots=True)
class Signals:
    """Signals that arrived and were not handled yet."""

    interrupted: bool = False
    terminated: bool = False
    hung_up: bool = False

    @property
    def any(self) -> bool:
        return self.interrupted or self.terminated or self.hung_up


@contextmanager
def caught() -> Iterator[Signals]:
    """Collect INT, TERM and HUP instead of dying from them. One that was ignored at start stays ignored (nohup)."""
    signals = Signals()

    def note(number: int, _frame: FrameType | None) -> None:
        match number:
            case signal.SIGINT:
                signals.interrupted = True
            case signal.SIGTERM:
                signals.terminated = True
            case _:
                signals.hung_up = True

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, note)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

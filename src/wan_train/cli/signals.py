"""Signals as values to poll, so that running work ends in order."""

from __future__ import annotations

import signal
import sys
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


def settle() -> None:
    """Undo what was inherited and would break us: blocked signals, lost exit codes, a deaf Ctrl-C at a terminal.

    Where nobody can press Ctrl-C an ignored INT stays ignored, as a shell means it for its background jobs, and so
    does an ignored HUP (nohup).
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and sys.stdin.isatty():
        signal.signal(signal.SIGINT, signal.default_int_handler)


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

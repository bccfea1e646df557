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
    """Signals that arrived and are not handled yet."""

    interrupted: bool = False
    terminated: bool = False
    hung_up: bool = False

    @property
    def any(self) -> bool:
        return self.interrupted or self.terminated or self.hung_up


def settle() -> None:
    """Undo inherited settings that would break us: blocked signals, lost exit codes, an ignored Ctrl-C at a terminal.

    Without a terminal an ignored INT stays ignored: a shell sets it for background jobs. An ignored HUP stays
    ignored too (nohup).
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and sys.stdin.isatty():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def caught() -> Iterator[Signals]:
    """Collect INT, TERM and HUP instead of dying from them. Ignored signals stay ignored (nohup)."""
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

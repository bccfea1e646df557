"""Time, behind a protocol: wall time for records, monotonic time for durations; and pauses between retries."""

from __future__ import annotations

import time
from typing import Protocol

_MOST_DOUBLINGS = 30


class Clock(Protocol):
    """`now` is seconds since 1970 and may jump; `monotonic` never goes back."""

    def now(self) -> float: ...

    def monotonic(self) -> float: ...


class SystemClock:
    """The clock of this machine."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


def backoff(failures: int, *, first: float, longest: float) -> float:
    """Seconds to wait after so many failures in a row, from 1: each pause is twice the last one."""
    return min(longest, first * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))

"""Time: clocks behind a protocol, pauses between retries, moments that outlive a clock that is set back."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from wan_train.base.host import boot_id

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """`at` is seconds since 1970 and may jump; `uptime` is seconds on the monotonic clock of the boot `boot_id`."""

    at: float
    boot_id: str
    uptime: float


def moment(clock: Clock) -> Moment:
    return Moment(at=clock.now(), boot_id=boot_id(), uptime=clock.monotonic())


def seconds_between(earlier: Moment, later: Moment) -> float:
    """Never negative. Within one boot the wall clock does not count; over a reboot it has to be believed.

    After a reboot at least the time since it has passed, however far the wall clock was set back.
    """
    if earlier.boot_id == later.boot_id:
        return max(0.0, later.uptime - earlier.uptime)
    return max(0.0, later.at - earlier.at, later.uptime)


def is_later(one: Moment, other: Moment) -> bool:
    """Whether `one` came after `other`; over a reboot the wall clock has to be believed."""
    return one.uptime > other.uptime if one.boot_id == other.boot_id else one.at > other.at

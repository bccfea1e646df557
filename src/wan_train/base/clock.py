"""Clocks behind a protocol, pauses between retries, and moments that survive a change of the wall clock."""

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
    """Return the seconds to wait after that many `failures` in a row, from 1; each pause doubles, up to `longest`."""
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
    """Return the seconds from `earlier` to `later`, never negative.

    Within one boot the wall clock does not count. Across a reboot it must be trusted, but the result is at least
    the uptime since then, however far the wall clock was set back.
    """
    if earlier.boot_id == later.boot_id:
        return max(0.0, later.uptime - earlier.uptime)
    return max(0.0, later.at - earlier.at, later.uptime)


def is_later(one: Moment, other: Moment) -> bool:
    """Whether `one` came after `other`; across a reboot this trusts the wall clock."""
    return one.uptime > other.uptime if one.boot_id == other.boot_id else one.at > other.at

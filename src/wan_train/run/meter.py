"""What a run has cost so far: all its time over all attempts, including waiting, at the price of each hour.

A run pays from when its first supervisor takes it over until it is over, and again once it is resumed. Time in which
none of its processes was alive (the box was off, or they died) costs nothing. Runs that are alive on one box at
the same time share its price equally.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from wan_train.box.rental import PriceSource

_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """Dollars and seconds counted until `since`, which is None while the meter is stopped.

    `unpriced` seconds were counted since the supervisor started, without a known price. The first price applies to
    them too.
    """

    seconds: float = 0.0
    dollars: float = 0.0
    unpriced: float = 0.0
    since: float | None = None
    per_hour: float | None = None
    source: PriceSource | None = None
    runs: int = 1
    rental_ends: float | None = None

    @property
    def dollars_per_second(self) -> float | None:
        """This run's share; None without a price."""
        return None if self.per_hour is None else self.per_hour / self.runs / _HOUR

    def at(self, now: float) -> Meter:
        """Return the meter at a later moment. A wall clock that was set back adds nothing."""
        if self.since is None:
            return self
        passed = max(0.0, now - self.since)
        rate = self.dollars_per_second
        return replace(
            self,
            seconds=self.seconds + passed,
            dollars=self.dollars + passed * (rate or 0.0),
            unpriced=self.unpriced + (passed if rate is None else 0.0),
            since=now,
        )

    def spent(self, now: float) -> float | None:
        """Dollars until `now`; None without a price."""
        return None if self.per_hour is None else self.at(now).dollars

    def started(self, now: float, *, idle_since: float | None) -> Meter:
        """Return the meter, counting from `now`. If it was already counting, the time since `idle_since` is omitted."""
        before = self if self.since is None else self.at(now if idle_since is None else min(now, idle_since))
        return replace(before, since=now, unpriced=0.0)

    def stopped(self, now: float) -> Meter:
        return replace(self.at(now), since=None)

    def priced(
        self, now: float, *, per_hour: float, source: PriceSource, runs: int, rental_ends: float | None
    ) -> Meter:
        """Return the meter with a price that applies from `now` on, and to the time counted without one."""
        until = self.at(now)
        priced = replace(until, per_hour=per_hour, source=source, runs=max(1, runs), rental_ends=rental_ends)
        return replace(
            priced, unpriced=0.0, dollars=until.dollars + until.unpriced * (priced.dollars_per_second or 0.0)
        )

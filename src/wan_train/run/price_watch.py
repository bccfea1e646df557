"""The current price per hour: asks Vast during the run, and counts the runs that share the box."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from wan_train.base.clock import Clock
from wan_train.base.errors import NotReadyError
from wan_train.base.settings import Settings
from wan_train.box.rental import PriceSource, Rental
from wan_train.box.vast import Asking, Vast, VastError
from wan_train.gpu.leases import Lease, LeaseHolder, LeaseRoom
from wan_train.run.events import PriceSet
from wan_train.run.meter import Meter

_ASK_SECONDS = 600.0
"""At any time, a host may change the end of a rental, and another renter may change the lowest bid."""
_COUNT_SECONDS = 5.0
_PAYS = "meter-"


def runs_that_pay(room: LeaseRoom) -> int:
    """Return the number of live runs on this box, which share its price. Raises NotReadyError."""
    return len(room.holders(_PAYS))


class PriceWatch:
    """Watches the price without blocking: nothing waits for it."""

    def __init__(
        self, run_id: str, room: LeaseRoom, settings: Settings, clock: Clock, environ: Mapping[str, str]
    ) -> None:
        self._clock = clock
        self._room = room
        self._given = settings.price
        self._vast = Vast.of_this_box(environ, settings.vast_url)
        self._asking: Asking | None = None
        self._rental: Rental | None = None
        self._next_question = 0.0
        self._next_count = 0.0
        self._runs = 1
        self.problem: str | None = None
        """Why Vast reported no price."""
        self._share: Lease | None = None
        with suppress(NotReadyError):  # then other runs do not count this one
            self._share = room.try_take(f"{_PAYS}{run_id}", LeaseHolder(run_id=run_id))

    def look(self, meter: Meter) -> PriceSet | None:
        """Return the price from now on if it differs from the meter's. A given price holds until another is given."""
        self._ask()
        self._count()
        earlier = meter.per_hour if meter.source is PriceSource.GIVEN else None
        given = self._given if self._given is not None else earlier
        rental = self._rental
        if given is not None:
            per_hour, source = given, PriceSource.GIVEN
        elif rental is not None:
            per_hour, source = rental.per_hour, PriceSource.VAST
        else:
            return None
        found = PriceSet(
            at=self._clock.now(),
            per_hour=per_hour,
            source=source,
            runs=self._runs,
            rental_ends=rental.ends if rental is not None else None,
        )
        known = (meter.per_hour, meter.source, meter.runs, meter.rental_ends)
        return None if known == (found.per_hour, found.source, found.runs, found.rental_ends) else found

    def close(self) -> None:
        if self._share is not None:
            self._room.forget(self._share)
            self._share = None

    def _ask(self) -> None:
        if self._vast is None:
            return
        if self._asking is None and self._clock.monotonic() >= self._next_question:
            self._asking = Asking(self._vast)
            self._next_question = self._clock.monotonic() + _ASK_SECONDS
        answer = self._asking.answer if self._asking is not None else None
        if answer is None:
            return
        self._asking = None
        if isinstance(answer, VastError):
            if str(answer) != self.problem:
                print(f"no price from Vast: {answer}", flush=True)  # noqa: T201  stdout is supervisor.log
            self.problem = str(answer)
        else:
            self._rental, self.problem = answer, None

    def _count(self) -> None:
        if self._clock.monotonic() < self._next_count:
            return
        self._next_count = self._clock.monotonic() + _COUNT_SECONDS
        with suppress(NotReadyError):
            self._runs = max(1, runs_that_pay(self._room))

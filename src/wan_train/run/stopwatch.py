"""Measures the speed of one attempt from repeated looks at its progress."""

from __future__ import annotations

from dataclasses import dataclass

_FEWEST = 20
"""Steps from which a speed is worth keeping: the first ones warm up."""
_SHORTEST_SECONDS = 2.0
"""Of looks a second apart, a shorter time says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one step or item, of everything else in the attempt but pauses, and of it after the last step."""

    units: int
    per_unit: float
    beside: float
    after: float = 0.0


@dataclass(slots=True)
class Stopwatch:
    """Looks at a count that grows; `now` is monotonic seconds."""

    paused: float = 0.0
    pauses: int = 0
    _first: tuple[float, int] | None = None
    _last: tuple[float, int] | None = None
    _looked: float | None = None
    _was_paused: bool = False

    def look(self, count: int | None, now: float, *, paused: bool = False) -> None:
        """`paused`: the work rests (samples are made), so this time counts for no step."""
        if self._first is not None and self._looked is not None and self._was_paused:
            self.paused += now - self._looked
            self.pauses += not paused
        self._was_paused, self._looked = paused, now
        if not count:
            return
        if self._first is None:
            self._first = (now, count)
        if self._last is None or count > self._last[1]:
            self._last = (now, count)

    def timing(self, seconds: float, *, made: int = 0) -> Timing | None:
        """Of an attempt that took so many seconds and made so much in all; None where it made nothing.

        Nobody saw when the last steps were made: the count at the end may be more than that of the last look.
        """
        if self._first is None or self._last is None:
            return Timing(units=made, per_unit=0.0, beside=seconds) if made else None
        (begun, first), (ended, last) = self._first, self._last
        worked, units = ended - begun - self.paused, max(last, made)
        per_unit = worked / (last - first) if last - first >= _FEWEST and worked >= _SHORTEST_SECONDS else 0.0
        after = (self._looked or ended) - ended - (units - last) * per_unit
        return Timing(
            units=units,
            per_unit=per_unit,
            beside=max(0.0, seconds - units * per_unit - self.paused),
            after=max(0.0, after),
        )

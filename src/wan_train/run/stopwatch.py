"""Times one attempt from looks at its progress."""

from __future__ import annotations

from dataclasses import dataclass

_FEWEST = 20
"""Steps from which a speed is worth keeping: the first ones warm up."""
_SHORTEST_SECONDS = 2.0
"""Of looks a second apart, a shorter time says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one step or item, of all pauses for samples, and of everything else in the attempt."""

    units: int
    per_unit: float
    beside: float


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
        """`paused`: the work rests (samples are made), so that this time is nobody's step."""
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

    def timing(self, seconds: float) -> Timing | None:
        """Of an attempt that took so many seconds in all; None where it made too little."""
        if self._first is None or self._last is None:
            return None
        (begun, first), (ended, last) = self._first, self._last
        worked = ended - begun - self.paused
        per_unit = worked / (last - first) if last - first >= _FEWEST and worked >= _SHORTEST_SECONDS else 0.0
        return Timing(units=last, per_unit=per_unit, beside=max(0.0, seconds - last * per_unit - self.paused))

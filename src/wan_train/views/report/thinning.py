"""Long series made short for a drawing, without losing what the eye would see."""

from __future__ import annotations

from collections.abc import Sequence

Pair = tuple[float, float]


def extremes(series: Sequence[Pair], most: int) -> list[Pair]:
    """At most `most` (even, at least 4) of the points: the first, the last, and of each stretch the lowest and highest.

    A drawing that is no wider than `most` / 2 pixels looks the same, spikes included. The values are finite.
    """
    if len(series) <= most:
        return list(series)
    inner = series[1:-1]
    stretches = most // 2 - 1
    kept = [series[0]]
    for index in range(stretches):
        stretch = inner[index * len(inner) // stretches : (index + 1) * len(inner) // stretches]
        lowest = min(range(len(stretch)), key=lambda place: stretch[place][1])
        highest = max(range(len(stretch)), key=lambda place: stretch[place][1])
        kept += [stretch[place] for place in sorted({lowest, highest})]
    return [*kept, series[-1]]


def evenly(series: Sequence[Pair], most: int) -> list[Pair]:
    """At most `most` (at least 2) of the points, the first and the last among them; for what is smooth already."""
    if len(series) <= most:
        return list(series)
    return [series[index * (len(series) - 1) // (most - 1)] for index in range(most)]

"""The losses of one training as a view needs them: any part of them at once, their trend, a line of blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, groupby, pairwise
from statistics import fmean, variance

from wan_train.run.curves import Curve, LossSource
from wan_train.views.lines import Span

_LEAST_STEPS, _LEAST_EPOCHS = 20, 8
"""Values that a quarter of the training must hold before its mean says anything: steps, or epochs of an average."""
_STANDARD_ERRORS = 2.0
_BLOCKS = "▁▂▃▄▅▆▇█"
_BAD = "✗"
_MIDDLE = _BLOCKS[3]
_OUTLIERS = 0.05
"""The share of columns at either end of the scale that may lie beyond it: one spike must not flatten all else."""
_FLAT = 1e-3


class Trend(StrEnum):
    """Where the loss is going; part of the JSON contract."""

    FALLING = "falling"
    FLAT = "flat"
    RISING = "rising"


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The loss of each step of one training, summed up so that every part's mean costs nothing.

    `sums[i]` and `counts[i]` are over the finite ones of the first `i` steps. `average` is the smoothed loss at the
    newest step where the source is single steps, else the trainer's own average; None when it is not finite.
    """

    source: LossSource
    step: int
    newest: float
    average: float | None
    trend: Trend | None
    rate: float | None
    """Learning rate of the newest step; None where nobody tells it."""
    sums: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def bad(self) -> int:
        """Steps whose loss is not finite."""
        return len(self.counts) - 1 - self.counts[-1]


def losses_of(curve: Curve, steps_per_epoch: int) -> Losses | None:
    """The losses of a curve; None before its first step."""
    points, source = curve.points, curve.source
    if not points or source is None:
        return None
    values = [point.loss for point in points]
    finite = [value if math.isfinite(value) else 0.0 for value in values]
    match source:
        case LossSource.TENSORBOARD:
            direction = trend(values, least=_LEAST_STEPS)
        case LossSource.PROGRESS_LINE:
            # The trainer averages over an epoch: only values an epoch apart are independent of each other.
            direction = trend(values[:: -max(1, steps_per_epoch)][::-1], least=_LEAST_EPOCHS)
    return Losses(
        source=source,
        step=points[-1].step,
        newest=values[-1],
        average=curve.final_loss,
        trend=direction,
        rate=next((point.lr for point in reversed(points) if point.lr is not None), None),
        sums=(0.0, *accumulate(finite)),
        counts=(0, *accumulate(int(math.isfinite(value)) for value in values)),
    )


def trend(values: Sequence[float], *, least: int) -> Trend | None:
    """The newest quarter of independent values against the quarter before it.

    FLAT when their means differ by no more than twice the standard error of the difference (Welch): nothing that
    stands out from the noise. None when a quarter holds fewer than `least` finite values.
    """
    finite = [value for value in values if math.isfinite(value)]
    quarter = len(finite) // 4
    if quarter < max(2, least):
        return None
    before, newest = finite[-2 * quarter : -quarter], finite[-quarter:]
    difference = fmean(newest) - fmean(before)
    error = math.sqrt((variance(before) + variance(newest)) / quarter)
    if abs(difference) <= _STANDARD_ERRORS * error or difference == 0:
        return Trend.FLAT
    return Trend.FALLING if difference < 0 else Trend.RISING


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparkline:
    """The whole training so far in a few columns, each the mean of equally many steps; the first is the oldest.

    `low` and `high` are the losses of the lowest and the highest block.
    """

    text: str
    low: float
    high: float

    def spans(self) -> Iterator[Span]:
        """Its pieces; a column that holds a step without a finite loss is marked."""
        for is_bad, piece in groupby(self.text, key=_BAD.__eq__):
            yield Span("".join(piece), "bold red" if is_bad else "cyan")


def sparkline(losses: Losses, columns: int) -> Sparkline | None:
    """At most `columns` blocks; None when no step has a finite loss."""
    steps = len(losses.counts) - 1
    columns = max(1, min(columns, steps))
    edges = [index * steps // columns for index in range(columns + 1)]
    means: list[float | None] = []
    for begin, end in pairwise(edges):
        count = losses.counts[end] - losses.counts[begin]
        whole = count == end - begin
        means.append((losses.sums[end] - losses.sums[begin]) / count if whole else None)
    known = sorted(mean for mean in means if mean is not None)
    if not known:
        return None
    low = known[math.floor(_OUTLIERS * (len(known) - 1))]
    high = known[math.ceil((1 - _OUTLIERS) * (len(known) - 1))]
    return Sparkline(text="".join(_block(mean, low, high) for mean in means), low=low, high=high)


def _block(mean: float | None, low: float, high: float) -> str:
    if mean is None:
        return _BAD
    if high - low <= _FLAT * abs(high):
        return _MIDDLE
    place = (mean - low) / (high - low)
    return _BLOCKS[round(min(1.0, max(0.0, place)) * (len(_BLOCKS) - 1))]

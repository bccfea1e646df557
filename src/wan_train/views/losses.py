"""The losses of one training: their trend, their sparkline, and their line in the live view."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, groupby, pairwise
from statistics import fmean, variance

from wan_train.base.units import count
from wan_train.run.curves import Curve, LossSource
from wan_train.run.progress import Progress
from wan_train.views.formatting import loss as loss_text
from wan_train.views.lines import Span, width_of

SOURCES = {
    LossSource.TENSORBOARD: "per step, TensorBoard",
    LossSource.PROGRESS_LINE: "moving average, progress line",
}

_LEAST_STEPS, _LEAST_EPOCHS = 20, 8
"""The fewest values in a quarter of the training for a trend: steps, or epochs of a moving average."""
_STANDARD_ERRORS = 2.0
_BLOCKS = "▁▂▃▄▅▆▇█"
_BAD = "✗"
_MIDDLE = _BLOCKS[3]
_OUTLIERS = 0.05
"""The share of columns that may lie beyond either end of the scale, so that one spike does not flatten the rest."""
_FLAT = 1e-3
_FEW_BLOCKS, _MANY_BLOCKS, _MOST_BLOCKS = 12, 30, 60


class Trend(StrEnum):
    """The direction of the loss; part of the JSON contract."""

    FALLING = "falling"
    FLAT = "flat"
    RISING = "rising"


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The loss of each step of one training, as running sums that give the mean of any part in constant time.

    `sums[i]` and `counts[i]` cover the finite losses of the first `i` steps. `average` is the smoothed loss at the
    newest step, or the trainer's own average if that is the source; None when it is not finite.
    """

    source: LossSource
    step: int
    newest: float
    average: float | None
    trend: Trend | None
    rate: float | None
    """Learning rate of the newest step; None when unknown."""
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
    """Compare the newest quarter of independent values with the quarter before it.

    FLAT when their means differ by no more than twice the standard error of the difference (Welch). None when a
    quarter holds fewer than `least` finite values.
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
    """The training so far in a few columns, each the mean of equally many steps; the first is the oldest.

    `low` and `high` are the losses of the lowest and the highest block.
    """

    text: str
    low: float
    high: float

    def spans(self) -> Iterator[Span]:
        """The sparkline in pieces; columns with a loss that is not finite are marked."""
        for is_bad, piece in groupby(self.text, key=_BAD.__eq__):
            yield Span("".join(piece), "bold red" if is_bad else "cyan")


def sparkline(losses: Losses, columns: int) -> Sparkline | None:
    """At most `columns` blocks; None when no step has a finite loss."""
    steps = len(losses.counts) - 1
    columns = max(1, min(columns, steps))
    edges = [index * steps // columns for index in range(columns + 1)]
    means: list[float | None] = []
    for begin, end in pairwise(edges):
        finite = losses.counts[end] - losses.counts[begin]
        whole = finite == end - begin
        means.append((losses.sums[end] - losses.sums[begin]) / finite if whole else None)
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


_TREND_STYLES = {Trend.FALLING: "green", Trend.FLAT: "", Trend.RISING: "yellow"}


def loss_line(losses: Losses | None, progress: Progress | None, room: int) -> tuple[Span, ...]:
    """The loss from the first step to the newest, its trend and its source, or nothing when there is no loss yet.

    `progress` is None for a training that is over.
    """
    if losses is not None:
        return _drawn(losses, room, is_over=progress is None)
    if progress is None:
        return ()
    if not progress.loss_is_finite:
        return (Span("the loss is not finite", "bold red"),)
    if progress.loss is None:
        return ()
    return (Span("loss ", "dim"), Span(loss_text(progress.loss)), _source(LossSource.PROGRESS_LINE, short=False))


def _drawn(losses: Losses, room: int, *, is_over: bool) -> tuple[Span, ...]:
    head, number = Span("loss ", "dim"), () if is_over else tuple(_number(losses))
    full, short = (_source(losses.source, short=short) for short in (False, True))
    source = full if room - width_of((head, *number, full)) >= _FEW_BLOCKS else short
    blocks = room - width_of((head, *number, source))
    drawn = sparkline(losses, max(_FEW_BLOCKS, min(_MOST_BLOCKS, blocks)))
    if drawn is None:
        return (head, *number, source)
    scale = Span(f" · scale {loss_text(drawn.low)} to {loss_text(drawn.high)}", "dim")
    if blocks - width_of([scale]) >= _MANY_BLOCKS:
        fewer = sparkline(losses, min(_MOST_BLOCKS, blocks - width_of([scale])))
        return (head, *(fewer or drawn).spans(), *number, source, scale)
    return (head, *drawn.spans(), *number, source)


def _number(losses: Losses) -> Iterator[Span]:
    if losses.average is not None:
        smooth = " smoothed" if losses.source is LossSource.TENSORBOARD else ""
        yield Span(f" {loss_text(losses.average)}{smooth}")
    if losses.trend is not None and losses.average is not None:
        yield Span(", ")
        yield Span(losses.trend.value, _TREND_STYLES[losses.trend])
    if losses.bad:
        yield Span(f" · {count(losses.bad, 'step')} not finite", "bold red")


def _source(source: LossSource, *, short: bool) -> Span:
    text = SOURCES[source]
    return Span(f" · {text.partition(',')[0] if short else text}", "dim")

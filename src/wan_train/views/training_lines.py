"""What the live view tells of one training: where it is, its loss, and what a crash would cost."""

from __future__ import annotations

from collections.abc import Iterator

from wan_train.run.curves import LossSource
from wan_train.run.plan import Step
from wan_train.run.progress import Progress
from wan_train.run.state import Job
from wan_train.views import formatting
from wan_train.views import run_status as facts
from wan_train.views.lines import Span, width_of
from wan_train.views.losses import Losses, Trend, sparkline
from wan_train.views.model import RunView

SOURCES = {
    LossSource.TENSORBOARD: "per step, TensorBoard",
    LossSource.PROGRESS_LINE: "moving average, progress line",
}
_FEW_BLOCKS, _MANY_BLOCKS, _MOST_BLOCKS = 12, 30, 60
_TREND_STYLES = {Trend.FALLING: "green", Trend.FLAT: "", Trend.RISING: "yellow"}


def figures(view: RunView, step: Step, progress: Progress) -> Iterator[str]:
    """Epoch, step and recent speed."""
    if progress.epoch is not None:
        yield f"epoch {progress.epoch}/{progress.epochs or facts.epochs(view, step)}"
    yield f"step {progress.step}/{progress.steps or facts.planned_steps(view, step)}"
    if progress.seconds_per_step is not None:
        yield formatting.pace(progress.seconds_per_step)


def saved(job: Job, now: float) -> str:
    """From where the training would go on after a crash: everything newer would have to be trained again."""
    state, epochs = facts.newest_state(job), facts.epochs_saved(job)
    unusable = facts.unusable_state(job)
    but = f"; that of epoch {unusable.epoch} does not count: {formatting.safe(unusable.why)}" if unusable else ""
    if state is not None and state.epoch == epochs:
        return f"state of epoch {epochs}, {formatting.duration(now - state.at)} old{but}"
    if epochs:
        return f"state of epoch {epochs}{but}"
    if unusable is not None:
        return (
            f"no state to resume from: that of epoch {unusable.epoch} does not count, {formatting.safe(unusable.why)}"
        )
    return "no state saved yet"


def loss_line(view: RunView, step: Step, progress: Progress | None, room: int) -> tuple[Span, ...]:
    """The loss from the first step to the newest, where it is going and where the numbers come from; or nothing.

    `progress` is None for a training that is over.
    """
    losses = view.losses.get(step.id)
    if losses is not None:
        return _drawn(losses, room, is_over=progress is None)
    if progress is None:
        return ()
    if not progress.loss_is_finite:
        return (Span("the loss is not finite", "bold red"),)
    if progress.loss is None:
        return ()
    return (Span("loss ", "dim"), Span(formatting.loss(progress.loss)), _source(LossSource.PROGRESS_LINE, short=False))


def _drawn(losses: Losses, room: int, *, is_over: bool) -> tuple[Span, ...]:
    head, number = Span("loss ", "dim"), () if is_over else tuple(_number(losses))
    full, short = (_source(losses.source, short=short) for short in (False, True))
    source = full if room - width_of((head, *number, full)) >= _FEW_BLOCKS else short
    blocks = room - width_of((head, *number, source))
    drawn = sparkline(losses, max(_FEW_BLOCKS, min(_MOST_BLOCKS, blocks)))
    if drawn is None:
        return (head, *number, source)
    scale = Span(f" · scale {formatting.loss(drawn.low)} to {formatting.loss(drawn.high)}", "dim")
    if blocks - width_of([scale]) >= _MANY_BLOCKS:
        fewer = sparkline(losses, min(_MOST_BLOCKS, blocks - width_of([scale])))
        return (head, *(fewer or drawn).spans(), *number, source, scale)
    return (head, *drawn.spans(), *number, source)


def _number(losses: Losses) -> Iterator[Span]:
    if losses.average is not None:
        smooth = " smoothed" if losses.source is LossSource.TENSORBOARD else ""
        yield Span(f" {formatting.loss(losses.average)}{smooth}")
    if losses.trend is not None and losses.average is not None:
        yield Span(", ")
        yield Span(losses.trend.value, _TREND_STYLES[losses.trend])
    if losses.bad:
        yield Span(f" · {formatting.count(losses.bad, 'step')} not finite", "bold red")


def _source(source: LossSource, *, short: bool) -> Span:
    text = SOURCES[source]
    return Span(f" · {text.partition(',')[0] if short else text}", "dim")

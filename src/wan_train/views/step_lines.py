"""The lines of one step on the live view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import assert_never

from wan_train.run.curves import LossSource
from wan_train.run.events import CachesUpToDate
from wan_train.run.plan import Step, StepKind
from wan_train.run.progress import Progress
from wan_train.run.state import Job, JobState
from wan_train.views import formatting
from wan_train.views import run_status as facts
from wan_train.views.lines import Keep, ScreenLine, Span, bar, line, width_of
from wan_train.views.losses import Losses, Trend, sparkline
from wan_train.views.model import RunView

_MARKS: dict[JobState, tuple[str, str, str]] = {
    JobState.WAITING: ("○", "waiting", "dim"),
    JobState.RUNNING: ("▶", "running", "cyan"),
    JobState.STOPPING: ("▶", "stopping", "yellow"),
    JobState.BACKOFF: ("○", "retrying", "yellow"),
    JobState.SUCCEEDED: ("✓", "finished", "green"),
    JobState.FAILED: ("✗", "failed", "bold red"),
    JobState.STOPPED: ("✗", "stopped", "yellow"),
    JobState.SKIPPED: ("✗", "skipped", "yellow"),
}

_WORD_WIDTH = 9
_WIDE = 110
_NARROW = 72
_WAIT_LINES = 3
_ETA_WIDTH = len("23 h 59 min left")


def step_lines(view: RunView, step: Step, job: Job, now: float, width: int) -> Iterator[ScreenLine]:
    """The step's line, and more lines about it where there is more to tell."""
    mark, word, style = _MARKS[job.state]
    names = max(formatting.columns(formatting.safe(step.id)) for step in view.plan.steps)
    head = (
        Span(f"{mark} {formatting.pad(word, _WORD_WIDTH)}", style),
        Span(formatting.pad(formatting.safe(step.id), names + 2), "" if job.state is JobState.WAITING else "bold"),
    )
    start = 2 + _WORD_WIDTH + names + 2
    place = _Place(
        view=view,
        step=step,
        job=job,
        now=now,
        head=head,
        room=max(8, width - start),
        indent=start if width >= _WIDE else 2 + _WORD_WIDTH if width >= _NARROW else 4,
        width=width,
    )
    match job.state:
        case JobState.WAITING | JobState.BACKOFF:
            return _waiting(place)
        case JobState.RUNNING | JobState.STOPPING:
            return _running(place)
        case JobState.SUCCEEDED:
            return _done(place)
        case JobState.FAILED:
            return _failed(place)
        case JobState.STOPPED:
            return iter((place.first(formatting.cut(_stopped(view, job, now), place.room)),))
        case JobState.SKIPPED:
            return iter((place.first(formatting.cut(formatting.safe(job.reason or ""), place.room)),))
        case _:
            assert_never(job.state)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A step and where on the screen it is told: `room` columns right of its `head`, further lines from `indent` on."""

    view: RunView
    step: Step
    job: Job
    now: float
    head: tuple[Span, ...]
    room: int
    indent: int
    width: int

    def first(self, *parts: Span | str) -> ScreenLine:
        return ScreenLine(line(*self.head, *parts), Keep.ALWAYS)

    def more(self, *parts: Span | str, keep: Keep = Keep.DETAIL) -> ScreenLine:
        return ScreenLine(line(" " * self.indent, *parts), keep)

    def below(self, piece: Span) -> ScreenLine:
        """Goes on under what the first line says."""
        return ScreenLine(line(" " * (self.width - self.room), piece), Keep.DETAIL)

    def flowed(self, parts: Sequence[str], style: str = "dim") -> Iterator[ScreenLine]:
        for text in formatting.flow(parts, self.width - self.indent):
            yield self.more(Span(text, style))


def _waiting(place: _Place) -> Iterator[ScreenLine]:
    pieces = list(formatting.wrap(formatting.safe(facts.waits_for(place.view, place.job) or ""), place.room))
    if len(pieces) > _WAIT_LINES:
        pieces = [*pieces[: _WAIT_LINES - 1], formatting.cut(" ".join(pieces[_WAIT_LINES - 1 :]), place.room)]
    yield place.first(Span(pieces[0], "dim"))
    yield from (place.below(Span(piece, "dim")) for piece in pieces[1:])
    if facts.epochs_saved(place.job):
        yield place.more(Span(checkpoint_age(place.job, place.now), "dim"))


def _running(place: _Place) -> Iterator[ScreenLine]:
    view, step, job, now = place.view, place.step, place.job, place.now
    progress = facts.progress_of(view, step.id) or Progress()
    done, total = _position(view, step, progress)
    if done is None or not total or progress.stage is not None:
        yield from _starting(place, progress)
        return
    going_on = view.supervisor_alive and job.state is JobState.RUNNING
    found = facts.time_left(view, step, job, now) if going_on else None
    eta = f"{formatting.duration(found.seconds)} left" if found is not None else ""
    if step.kind is StepKind.TRAIN and done >= total:
        eta = "saving …"
    # The same room for every step, so that bars can be compared by eye.
    tail = f"  {min(100, 100 * done // total):>3} %  {formatting.pad(eta, _ETA_WIDTH)}"
    yield place.first(*bar(done, total, place.room - formatting.columns(tail)), tail)
    where = list(_where(job))
    match step.kind:
        case StepKind.CACHE_LATENTS | StepKind.CACHE_TEXT:
            spent = formatting.duration(facts.spent(view, job, now) or 0)
            yield from place.flowed([f"{done}/{total} items", spent, *where])
        case StepKind.TRAIN:
            yield from place.flowed([*_figures(view, step, progress), *where, checkpoint_age(job, now)])
            yield from _loss(place, progress)


def _starting(place: _Place, progress: Progress) -> Iterator[ScreenLine]:
    """What happens before the first step, and after a resume what is known all the same."""
    view, step, job, now = place.view, place.step, place.job, place.now
    stage = f"{formatting.safe(progress.stage)} …" if progress.stage else "starting …"
    waited = formatting.duration(facts.spent_by_attempt(job, now) or 0)
    yield place.first(formatting.cut(" · ".join((f"{stage}  {waited}", *_where(job))), place.room))
    if step.kind is not StepKind.TRAIN or len(job.attempts) < 2:  # noqa: PLR2004  the first one has no past
        return
    known = [checkpoint_age(job, now)]
    found = facts.time_left(view, step, job, now)
    if found is not None and found.per_step is not None and view.supervisor_alive:
        known.append(
            f"about {formatting.duration(found.seconds)} left at its earlier {formatting.pace(found.per_step)}"
        )
    yield from place.flowed(known)
    yield from _loss(place, progress)


def _loss(place: _Place, progress: Progress | None) -> Iterator[ScreenLine]:
    spans = loss_line(place.view, place.step, progress, place.width - place.indent)
    if spans:
        yield place.more(*spans, keep=Keep.LOSS)


def _position(view: RunView, step: Step, progress: Progress) -> tuple[int | None, int | None]:
    if step.kind is StepKind.TRAIN:
        return progress.step, progress.steps or facts.planned_steps(view, step)
    expected = facts.expected_caches(view, step)
    if progress.cached is None or expected is None:
        return progress.cached, None
    return min(progress.cached, expected), expected


def _where(job: Job) -> Iterator[str]:
    attempt = job.attempt
    if attempt is None:
        return
    if attempt.gpu_label:
        yield formatting.safe(attempt.gpu_label)
    if attempt.number > 1:
        yield f"attempt {attempt.number}"


def _done(place: _Place) -> Iterator[ScreenLine]:
    yield place.first(formatting.cut(" · ".join(_outcome(place.view, place.job, place.now)), place.room))
    if place.step.id in place.view.losses:
        yield from _loss(place, None)


def _outcome(view: RunView, job: Job, now: float) -> Iterator[str]:
    if isinstance(job.caches, CachesUpToDate):
        yield f"caches are up to date: {job.caches.items:,} of {job.caches.items:,}"
        return
    yield formatting.duration(facts.spent(view, job, now) or 0)
    if job.loss is not None:
        yield f"final loss {formatting.loss(job.loss)}"
    if job.result is not None:
        yield formatting.file_size(job.result.bytes)


def _stopped(view: RunView, job: Job, now: float) -> str:
    attempt = job.attempt
    if attempt is None:
        return "never began"
    after = f"after {formatting.duration(facts.spent(view, job, now) or 0)}"
    saved = attempt.last_state
    if saved is None:
        return after
    return f"{after}, state of epoch {saved.epoch} kept" if saved.epoch else f"{after}, state kept"


def _failed(place: _Place) -> Iterator[ScreenLine]:
    view, job, now, width = place.view, place.job, place.now, place.width
    diagnosis = job.diagnosis
    meaning = diagnosis.meaning if diagnosis is not None else "it failed"
    advice = diagnosis.advice if diagnosis is not None else ""
    after = formatting.duration(facts.spent(view, job, now) or 0)
    first, *others = formatting.wrap(formatting.safe(f"{meaning} (after {after})"), place.room)
    yield place.first(Span(first, "red"))
    yield from (place.below(Span(piece, "red")) for piece in others)
    yield from (place.more(piece) for piece in formatting.wrap(formatting.safe(advice), width - place.indent) if piece)
    log = facts.log_of(view, job)
    if log is not None:
        yield place.more(Span(formatting.cut_front(formatting.safe(log), width - place.indent), "dim"))
    for text in view.tails.get(job.step, ()):
        yield ScreenLine(line("    │ ", Span(formatting.cut(formatting.safe(text), width - 6), "dim")), Keep.TAIL)


SOURCES = {
    LossSource.TENSORBOARD: "per step, TensorBoard",
    LossSource.PROGRESS_LINE: "moving average, progress line",
}
_FEW_BLOCKS, _MANY_BLOCKS, _MOST_BLOCKS = 12, 30, 60
_TREND_STYLES = {Trend.FALLING: "green", Trend.FLAT: "", Trend.RISING: "yellow"}


def _figures(view: RunView, step: Step, progress: Progress) -> Iterator[str]:
    """Epoch, step and recent speed."""
    if progress.epoch is not None:
        yield f"epoch {progress.epoch}/{progress.epochs or facts.epochs(view, step)}"
    yield f"step {progress.step}/{progress.steps or facts.planned_steps(view, step)}"
    if progress.seconds_per_step is not None:
        yield formatting.pace(progress.seconds_per_step)


def checkpoint_age(job: Job, now: float) -> str:
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

"""The lines of one step on the live view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import assert_never

from wan_train.base.units import duration, file_size
from wan_train.run.events import CachesUpToDate
from wan_train.run.plan import Step, StepKind
from wan_train.run.progress import Progress
from wan_train.run.state import Job, JobState
from wan_train.views import run_status
from wan_train.views.formatting import (
    STATE_NAMES,
    columns,
    cut,
    cut_front,
    flow,
    loss,
    pace,
    pad,
    safe,
    wrap,
)
from wan_train.views.lines import Keep, ScreenLine, Span, bar, line
from wan_train.views.losses import loss_line
from wan_train.views.model import RunView

_MARKS: dict[JobState, tuple[str, str]] = {
    JobState.WAITING: ("○", "dim"),
    JobState.RUNNING: ("▶", "cyan"),
    JobState.STOPPING: ("▶", "yellow"),
    JobState.BACKOFF: ("○", "yellow"),
    JobState.SUCCEEDED: ("✓", "green"),
    JobState.FAILED: ("✗", "bold red"),
    JobState.STOPPED: ("✗", "yellow"),
    JobState.SKIPPED: ("✗", "yellow"),
}
_WORD_WIDTH = 9
_WIDE = 110
_NARROW = 72
_WAIT_LINES = 3
_ETA_WIDTH = len("23 h 59 min left")


def step_lines(view: RunView, step: Step, job: Job, now: float, width: int) -> Iterator[ScreenLine]:
    """The step's line, and more lines with its details."""
    mark, style, word = *_MARKS[job.state], STATE_NAMES[job.state]
    if run_status.is_lost(view, job):
        mark, style, word = "✗", "red", run_status.RunStatus.LOST.value
    names = max(columns(safe(step.id)) for step in view.plan.steps)
    head = (
        Span(f"{mark} {pad(word, _WORD_WIDTH)}", style),
        Span(pad(safe(step.id), names + 2), "" if job.state is JobState.WAITING else "bold"),
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
            return _finished(place)
        case JobState.FAILED:
            return _failed(place)
        case JobState.STOPPED:
            return iter((place.first(cut(_stopped(view, job, now), place.room)),))
        case JobState.SKIPPED:
            return iter((place.first(cut(safe(job.reason or ""), place.room)),))
        case _:
            assert_never(job.state)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A step and its layout: `room` columns to the right of `head`; further lines start at column `indent`."""

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

    def first_paragraph(self, pieces: Sequence[str], style: str) -> Iterator[ScreenLine]:
        """Text beside the head; further lines are indented to where it starts."""
        yield self.first(Span(pieces[0], style))
        for piece in pieces[1:]:
            yield ScreenLine(line(" " * (self.width - self.room), Span(piece, style)), Keep.DETAIL)

    def flowed(self, parts: Sequence[str]) -> Iterator[ScreenLine]:
        for text in flow(parts, self.width - self.indent):
            yield self.more(Span(text, "dim"))

    def loss(self, progress: Progress | None) -> Iterator[ScreenLine]:
        spans = loss_line(self.view.losses.get(self.step.id), progress, self.width - self.indent)
        if spans:
            yield self.more(*spans, keep=Keep.LOSS)

    def spent(self) -> str:
        return duration(run_status.spent(self.view, self.job, self.now) or 0)


def _waiting(place: _Place) -> Iterator[ScreenLine]:
    pieces = list(wrap(safe(run_status.waits_for(place.view, place.job) or ""), place.room))
    if len(pieces) > _WAIT_LINES:
        pieces = [*pieces[: _WAIT_LINES - 1], cut(" ".join(pieces[_WAIT_LINES - 1 :]), place.room)]
    yield from place.first_paragraph(pieces, "dim")
    if run_status.epochs_saved(place.job):
        yield place.more(Span(_checkpoint(place.job, place.now), "dim"))


def _running(place: _Place) -> Iterator[ScreenLine]:
    view, step, job, now = place.view, place.step, place.job, place.now
    progress = run_status.progress_of(view, step.id) or Progress()
    done, total = _position(view, step, progress)
    if done is None or not total or progress.stage is not None:
        yield from _starting(place, progress)
        return
    is_watched = view.supervisor_alive and job.state is JobState.RUNNING
    left = run_status.time_left(view, step, job, now) if is_watched else None
    eta = f"{duration(left.seconds)} left" if left is not None else ""
    if step.kind is StepKind.TRAIN and done >= total:
        eta = "saving …"
    # The same width for every step, so that bars can be compared.
    tail = f"  {min(100, 100 * done // total):>3} %  {pad(eta, _ETA_WIDTH)}"
    yield place.first(*bar(done, total, place.room - columns(tail)), tail)
    if step.kind is not StepKind.TRAIN:
        yield from place.flowed([f"{done}/{total} items", place.spent(), *_where(job)])
        return
    yield from place.flowed(
        [*_training(view, step, progress), *_where(job), _checkpoint(job, now), *_learning(view, step, job)]
    )
    yield from place.loss(progress)


def _starting(place: _Place, progress: Progress) -> Iterator[ScreenLine]:
    """The stage before the first step. From the second attempt on, also the checkpoint and the time left."""
    view, step, job, now = place.view, place.step, place.job, place.now
    stage = f"{safe(progress.stage)} …" if progress.stage else "starting …"
    waited = duration(run_status.spent_by_attempt(job, now) or 0)
    yield place.first(cut(" · ".join((f"{stage}  {waited}", *_where(job))), place.room))
    if step.kind is not StepKind.TRAIN or len(job.attempts) < 2:  # a first attempt has no checkpoint
        return
    known = [_checkpoint(job, now)]
    left = run_status.time_left(view, step, job, now)
    if left is not None and left.per_step is not None and view.supervisor_alive:
        known.append(f"about {duration(left.seconds)} left at the earlier {pace(left.per_step)}")
    yield from place.flowed(known)
    yield from place.loss(progress)


def _position(view: RunView, step: Step, progress: Progress) -> tuple[int | None, int | None]:
    if step.kind is StepKind.TRAIN:
        return progress.step, progress.steps or run_status.planned_steps(view, step)
    expected = run_status.expected_caches(view, step)
    if progress.cached is None or expected is None:
        return progress.cached, None
    return min(progress.cached, expected), expected


def _training(view: RunView, step: Step, progress: Progress) -> Iterator[str]:
    if progress.epoch is not None:
        total = view.state.schedule_epochs(view.plan, step)
        epochs = progress.epochs or run_status.epochs(view, step)
        yield f"epoch {progress.epoch}/{epochs}" + (f" (of {total})" if epochs < total else "")
    yield f"step {progress.step}/{progress.steps or run_status.planned_steps(view, step)}"
    if progress.seconds_per_step is not None:
        yield pace(progress.seconds_per_step)


def _where(job: Job) -> Iterator[str]:
    attempt = job.attempt
    if attempt is None:
        return
    if attempt.gpu_label:
        yield safe(attempt.gpu_label)
    if attempt.number > 1:
        yield f"attempt {attempt.number}"


def _checkpoint(job: Job, now: float) -> str:
    """The checkpoint to resume from after a crash."""
    state, epochs = run_status.newest_state(job), run_status.epochs_saved(job)
    unusable = run_status.unusable_state(job)
    but = f"; that of epoch {unusable.epoch} is not usable: {safe(unusable.why)}" if unusable else ""
    if not epochs:
        return f"no checkpoint yet{but}"
    age = f", {duration(now - state.at)} old" if state is not None and state.epoch == epochs else ""
    return f"checkpoint of epoch {epochs}{age}{but}"


def _learning(view: RunView, step: Step, job: Job) -> Iterator[str]:
    if job.movements:
        yield run_status.learning_text(view, step, job.movements[-1])


def _finished(place: _Place) -> Iterator[ScreenLine]:
    job = place.job
    if isinstance(job.caches, CachesUpToDate):
        parts = [f"caches are up to date: {job.caches.items:,} of {job.caches.items:,}"]
    else:
        parts = [place.spent()]
        parts += [f"final loss {loss(job.loss)}"] if job.loss is not None else []
        parts += [file_size(job.result.bytes)] if job.result is not None else []
    yield place.first(cut(" · ".join(parts), place.room))
    yield from place.loss(None)


def _stopped(view: RunView, job: Job, now: float) -> str:
    attempt = job.attempt
    if attempt is None:
        return "never started"
    after = f"after {duration(run_status.spent(view, job, now) or 0)}"
    saved = attempt.last_state
    if saved is None:
        return after
    return f"{after}, checkpoint of epoch {saved.epoch} kept" if saved.epoch else f"{after}, checkpoint kept"


def _failed(place: _Place) -> Iterator[ScreenLine]:
    view, job, room = place.view, place.job, place.width - place.indent
    found = job.diagnosis
    meaning, advice = (safe(found.meaning), safe(found.advice)) if found is not None else ("unknown error", "")
    yield from place.first_paragraph(list(wrap(f"{meaning} (after {place.spent()})", place.room)), "red")
    yield from (place.more(piece) for piece in wrap(advice, room) if piece)
    log = run_status.log_of(view, job)
    if log is not None:
        yield place.more(Span(cut_front(safe(log), room), "dim"))
    for text in view.tails.get(job.step, ()):
        yield ScreenLine(line("    │ ", Span(cut(safe(text), place.width - 6), "dim")), Keep.TAIL)

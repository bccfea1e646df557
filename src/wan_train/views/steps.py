"""The lines of one step on the live view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import assert_never

from wan_train.run.events import CachesUpToDate
from wan_train.run.plan import Step, StepKind
from wan_train.run.progress import Progress
from wan_train.run.state import Job, JobState
from wan_train.views import standing as facts
from wan_train.views import words
from wan_train.views.lines import Line, Span, bar, line
from wan_train.views.model import RunView

_MARKS: dict[JobState, tuple[str, str, str]] = {
    JobState.WAITING: ("○", "wait", "dim"),
    JobState.RUNNING: ("▶", "run", "cyan"),
    JobState.STOPPING: ("▶", "ending", "yellow"),
    JobState.BACKOFF: ("○", "retry", "yellow"),
    JobState.SUCCEEDED: ("✓", "done", "green"),
    JobState.FAILED: ("✗", "FAILED", "bold red"),
    JobState.STOPPED: ("✗", "stopped", "yellow"),
    JobState.SKIPPED: ("✗", "skipped", "yellow"),
}
Head = tuple[Span, ...]

_WORD_WIDTH = 9
_WIDE = 100
_NARROW = 72
_WAIT_LINES = 3
_ETA_WIDTH = len("23 h 59 min left")


def step_lines(
    view: RunView, step: Step, job: Job, now: float, width: int
) -> tuple[Line, Sequence[Line], Sequence[Line]]:
    """The step's first line, more lines about it, and log lines."""
    mark, word, style = _MARKS[job.state]
    names = max(words.columns(words.safe(step.id)) for step in view.plan.steps)
    head = (
        Span(f"{mark} {words.pad(word, _WORD_WIDTH)}", style),
        Span(words.pad(words.safe(step.id), names + 2), "" if job.state is JobState.WAITING else "bold"),
    )
    start = 2 + _WORD_WIDTH + names + 2
    room = max(8, width - start)
    indent = start if width >= _WIDE else 2 + _WORD_WIDTH if width >= _NARROW else 4
    match job.state:
        case JobState.WAITING | JobState.BACKOFF:
            return _waiting(view, job, head, room, start)
        case JobState.RUNNING | JobState.STOPPING:
            return _running(view, step, job, now, head, room=room, indent=indent, width=width)
        case JobState.SUCCEEDED:
            return line(*head, words.cut(" · ".join(_outcome(job, now)), room)), (), ()
        case JobState.FAILED:
            return _failed(view, job, now, head, room=room, indent=indent, width=width)
        case JobState.STOPPED:
            return line(*head, words.cut(_stopped(job, now), room)), (), ()
        case JobState.SKIPPED:
            return line(*head, words.cut(words.safe(job.reason or ""), room)), (), ()
        case _:
            assert_never(job.state)


def _waiting(view: RunView, job: Job, head: Head, room: int, start: int) -> tuple[Line, Sequence[Line], Sequence[Line]]:
    pieces = list(words.wrap(words.safe(facts.waits_for(view, job) or ""), room))
    if len(pieces) > _WAIT_LINES:
        pieces = [*pieces[: _WAIT_LINES - 1], words.cut(" ".join(pieces[_WAIT_LINES - 1 :]), room)]
    more = [line(" " * start, Span(piece, "dim")) for piece in pieces[1:]]
    return line(*head, Span(pieces[0], "dim")), more, ()


def _running(
    view: RunView, step: Step, job: Job, now: float, head: Head, *, room: int, indent: int, width: int
) -> tuple[Line, Sequence[Line], Sequence[Line]]:
    progress = facts.progress(view, step.id) or Progress()
    done, total = _position(view, step, progress)
    spent = words.duration(facts.spent(job, now) or 0)
    place = _place(job)
    if done is None or not total or progress.stage is not None:
        stage = f"{words.safe(progress.stage)} …" if progress.stage else "starting …"
        waited = words.duration(facts.spent_by_attempt(job, now) or 0)
        return line(*head, words.cut(f"{stage}  {waited}{place}", room)), (), ()
    going_on = view.supervisor_alive and job.state is JobState.RUNNING
    left = progress.eta_seconds if going_on and step.kind is StepKind.TRAIN else None
    eta = f"{words.duration(left)} left" if left is not None else ""
    # The same room for every step, so that bars can be compared by eye.
    tail = f"  {min(100, 100 * done // total):>3} %  {words.pad(eta, _ETA_WIDTH)}"
    first = line(*head, *bar(done, total, room - words.columns(tail)), tail)
    match step.kind:
        case StepKind.CACHE_LATENTS | StepKind.CACHE_TEXT:
            details = [f"{done}/{total} items", spent]
        case StepKind.TRAIN:
            details = list(_training(view, progress))
    if place:
        details.append(place.removeprefix(" · "))
    longer = [*details, f"{spent} so far"]
    if step.kind is StepKind.TRAIN and words.columns(" · ".join(longer)) <= width - indent:
        details = longer
    style = "dim" if progress.loss_is_finite else "red"
    return first, [line(" " * indent, Span(text, style)) for text in words.flow(details, width - indent)], ()


def _position(view: RunView, step: Step, progress: Progress) -> tuple[int | None, int | None]:
    if step.kind is StepKind.TRAIN:
        return progress.step, progress.steps or view.plan.steps_per_expert
    expected = facts.expected_caches(view, step)
    if progress.cached is None or expected is None:
        return progress.cached, None
    return min(progress.cached, expected), expected


def _training(view: RunView, progress: Progress) -> Iterator[str]:
    if progress.epoch is not None:
        yield f"epoch {progress.epoch}/{progress.epochs or facts.epochs(view)}"
    yield f"step {progress.step}/{progress.steps or view.plan.steps_per_expert}"
    if not progress.loss_is_finite:
        yield "loss is not finite"
    elif progress.loss is not None:
        yield f"loss {words.loss(progress.loss)}"
    if progress.seconds_per_step is not None:
        yield words.pace(progress.seconds_per_step)


def _place(job: Job) -> str:
    attempt = job.attempt
    if attempt is None:
        return ""
    where = f" · {words.safe(attempt.gpu_label)}" if attempt.gpu_label else ""
    return where + (f" · attempt {attempt.number}" if attempt.number > 1 else "")


def _outcome(job: Job, now: float) -> Iterator[str]:
    if isinstance(job.caches, CachesUpToDate):
        yield f"caches are up to date: {job.caches.items:,} of {job.caches.items:,}"
        return
    yield words.duration(facts.spent(job, now) or 0)
    if job.loss is not None:
        yield f"final loss {words.loss(job.loss)}"
    if job.result is not None:
        yield words.file_size(job.result.bytes)


def _stopped(job: Job, now: float) -> str:
    attempt = job.attempt
    if attempt is None:
        return "never began"
    after = f"after {words.duration(facts.spent(job, now) or 0)}"
    saved = attempt.last_state
    if saved is None:
        return after
    return f"{after}, state of epoch {saved.epoch} kept" if saved.epoch else f"{after}, state kept"


def _failed(
    view: RunView, job: Job, now: float, head: Head, *, room: int, indent: int, width: int
) -> tuple[Line, Sequence[Line], Sequence[Line]]:
    diagnosis = job.diagnosis
    meaning = diagnosis.meaning if diagnosis is not None else "it failed"
    advice = diagnosis.advice if diagnosis is not None else ""
    after = words.duration(facts.spent(job, now) or 0)
    pieces = list(words.wrap(words.safe(f"{meaning} (after {after})"), room))
    start = width - room
    details = [line(" " * start, Span(piece, "red")) for piece in pieces[1:]]
    margin = " " * indent
    details += [line(margin, piece) for piece in words.wrap(words.safe(advice), width - indent) if piece]
    log = facts.log_of(view, job)
    if log is not None:
        details.append(line(margin, Span(words.cut_front(words.safe(log), width - indent), "dim")))
    tail = [
        line("    │ ", Span(words.cut(words.safe(text), width - 6), "dim")) for text in view.tails.get(job.step, ())
    ]
    return line(*head, Span(pieces[0], "red")), details, tail

"""The result of a run: LoRAs, failures, next commands; and the table of all runs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from wan_train.run import retry
from wan_train.run.plan import Step, StepKind
from wan_train.run.samples import given_up
from wan_train.run.state import Job, JobState
from wan_train.views import formatting
from wan_train.views import run_status as facts
from wan_train.views.lines import Line, Row, Screenful, Span, line, plain, table
from wan_train.views.model import RunView
from wan_train.views.run_status import RunStatus

if TYPE_CHECKING:
    from rich.console import RenderableType

_TEXT_WIDTH = 100
_MOST_CHECKPOINTS = 4
"""More would push what matters from the screen."""


def result_lines(view: RunView) -> RenderableType:
    """What came out of a run, for a terminal; `soft_wrap=True` at printing keeps paths and commands in one piece."""
    return Screenful(lambda width: _result(view, width))


def result_text(view: RunView) -> str:
    """What came out of a run, as plain text; commands stay on one line each."""
    return plain(_result(view, _TEXT_WIDTH))


def _result(view: RunView, width: int) -> Iterator[Line]:
    yield headline(view)
    low = facts.low_disk(view)
    if low is not None:
        yield from (line(Span(piece, "red")) for piece in formatting.wrap(f"{low.meaning}.", width))
    if _done(view) and facts.is_rehearsal(view):
        text = (
            "This was a rehearsal on a tiny stand-in model: the files show that everything works and are no real LoRAs."
        )
        yield from (line(Span(piece, "yellow")) for piece in formatting.wrap(text, width))
    yield line()
    for step, job in facts.steps_of(view):
        yield from _step(view, step, job, width)
    yield from _afterwards(view, width)


def status_lines(view: RunView) -> RenderableType:
    """What `status` says below the view of a run: the files that came out, and the next command."""

    def lines(width: int) -> Iterator[Line]:
        done = _done(view)
        if done:
            yield line()
            yield line(Span("Results", "bold"))
            for _, job in done:
                yield from _whole(formatting.safe(job.result.path if job.result is not None else ""), "")
        if facts.status_of(view) is not RunStatus.LOST:  # of which the view itself says how to resume
            yield from _afterwards(view, width)

    return Screenful(lines)


def _done(view: RunView) -> list[tuple[Step, Job]]:
    return [(step, job) for step, job in facts.steps_of(view) if step.kind is StepKind.TRAIN and job.result is not None]


def _afterwards(view: RunView, width: int) -> Iterator[Line]:
    """How to resume, how to take the results home."""
    low, can_resume = facts.low_disk(view), _can_resume(view)
    match facts.status_of(view):
        case RunStatus.FAILED if low is not None:
            yield line()
            yield from (line(piece) for piece in formatting.wrap(low.advice, width))
            yield line("Then resume from the latest checkpoint:")
        case RunStatus.FAILED if not can_resume:
            yield line()
            text = "`wan-train resume` keeps the settings and cannot help. Start a new run with other ones."
            yield from (line(piece) for piece in formatting.wrap(text, width))
        case RunStatus.FAILED:
            yield line()
            yield line("Once fixed, resume from the latest checkpoint:")
        case RunStatus.STOPPED | RunStatus.LOST:
            yield line()
            yield line("Resume from the latest checkpoint:")
        case _:
            pass
    if can_resume and facts.status_of(view) in {RunStatus.FAILED, RunStatus.STOPPED, RunStatus.LOST}:
        yield from _whole(f"wan-train resume {shlex.quote(formatting.safe(view.run.run_id))}", "")
    done = _done(view)
    if done:
        yield line()
        yield from _next(view, done, width)


def _can_resume(view: RunView) -> bool:
    """Whether any step that failed may do better once what its advice names is done."""
    found = [job.diagnosis for job in view.state.jobs.values() if job.state is JobState.FAILED]
    return any(each is None or retry.resuming_can_help(each) for each in found) or not found


def headline(view: RunView) -> Line:
    took = facts.took(view, view.live.at if view.live is not None else view.plan.created)
    trainings = [job for step, job in facts.steps_of(view) if step.kind is StepKind.TRAIN]
    done = sum(job.result is not None for job in trainings)
    match facts.status_of(view):
        case RunStatus.FINISHED:
            what = "Both LoRAs are" if len(trainings) > 1 else "The LoRA is"
            return line(Span(f"{what} ready after {took}.", "bold green"))
        case RunStatus.FAILED if facts.low_disk(view) is not None:
            return line(Span(f"Stopped after {took}, before the disk was full.", "bold yellow"))
        case RunStatus.FAILED if done:
            return line(
                Span(f"{done} of {len(trainings)} LoRAs is ready after {took}; the other failed.", "bold yellow")
            )
        case RunStatus.FAILED:
            return line(Span(f"No LoRA came out; the run failed after {took}.", "bold red"))
        case RunStatus.STOPPED:
            return line(Span(f"Stopped after {took}.", "bold yellow"))
        case RunStatus.LOST:
            return line(Span("The supervisor died before the run finished.", "bold red"))
        case RunStatus.RUNNING | RunStatus.RETRYING | RunStatus.WAITING | RunStatus.STOPPING:
            return line(Span(f"The run is not over; so far {took}.", "bold"))


def _step(view: RunView, step: Step, job: Job, width: int) -> Iterator[Line]:
    is_training = step.kind is StepKind.TRAIN
    took = facts.spent(view, job, job.attempt.started if job.attempt is not None else 0.0)
    match job.state:
        case JobState.SUCCEEDED if job.result is not None:
            figures = [formatting.file_size(job.result.bytes)]
            figures += [f"final loss {formatting.loss(job.loss)}"] if job.loss is not None else []
            figures += [formatting.duration(took)] if took is not None else []
            yield _head("finished", "green", job, ", ".join(figures))
            yield from _whole(formatting.safe(job.result.path), "bold")
        case JobState.FAILED:
            yield from _failure(view, job, width)
        case JobState.SKIPPED:
            yield _head("skipped", "yellow", job, formatting.safe(job.reason or ""))
        case JobState.STOPPED if is_training:
            yield _head("stopped", "yellow", job, "" if took is None else f"after {formatting.duration(took)}")
        case _:
            pass
    attempt = job.attempt
    if job.result is None and attempt is not None and attempt.last_state is not None:
        saved = attempt.last_state
        epoch = f" (epoch {saved.epoch})" if saved.epoch else ""
        yield line(f"    its newest complete state{epoch}:")
        yield from _whole(formatting.safe(saved.path), "")
    unusable = facts.unusable_state(job)
    if job.result is None and unusable is not None:
        text = f"its state of epoch {unusable.epoch} does not count: {formatting.safe(unusable.why)}"
        yield from (line(f"    {piece}") for piece in formatting.wrap(text, width - 4))
    without = given_up(job)
    if without is not None and without.diagnosis is not None:
        text = f"no samples after attempt {without.number}: {formatting.safe(without.diagnosis.meaning)}"
        yield from (line(f"    {piece}") for piece in formatting.wrap(text, width - 4))
    if job.kept:
        few = len(job.kept) <= _MOST_CHECKPOINTS
        yield line(
            f"    {formatting.count(len(job.kept), 'checkpoint')} kept{'' if few else ', the first and the last'}:"
        )
        for path in job.kept if few else (job.kept[0], job.kept[-1]):
            yield from _whole(formatting.safe(path), "")


def _head(word: str, style: str, job: Job, text: str) -> Line:
    return line(
        Span(formatting.pad(word, 9), style), Span(formatting.safe(job.step), "bold"), f": {text}" if text else ""
    )


def _failure(view: RunView, job: Job, width: int) -> Iterator[Line]:
    found = job.diagnosis
    yield _head("failed", "bold red", job, formatting.safe(found.meaning) if found is not None else "see its log")
    rows = []
    if found is not None:
        rows.append(Row(label="do", value=formatting.safe(found.advice)))
        if found.evidence:
            rows.append(Row(label="seen", value=formatting.cut(formatting.joined_lines(found.evidence), 3 * width)))
    yield from table(rows, width, indent=4)
    log = facts.log_of(view, job)
    if log is not None:
        yield from _whole(formatting.safe(log), "dim")


def _next(view: RunView, done: list[tuple[Step, Job]], width: int) -> Iterator[Line]:
    yield line(Span("Download", "bold"), " (on your own computer; HOST and PORT as for ssh):")
    yield from _whole(f"scp -P PORT {shlex.quote(f'root@HOST:{formatting.safe(view.run.path)}/*.safetensors')} .", "")
    if facts.is_rehearsal(view):
        return
    yield line(Span("ComfyUI", "bold"))
    if len(done) > 1:
        text = (
            "Put both files into models/loras and use two LoRA loaders: the HighNoise file on the high-noise model, "
            "the LowNoise file on the low-noise model."
        )
    else:
        text = "Put the file into models/loras and load it on the model of the same expert (high-noise or low-noise)."
    yield from (line(f"    {piece}") for piece in formatting.wrap(text, width - 4))


def _whole(text: str, style: str) -> Iterator[Line]:
    """Something to be copied: on a line of its own."""
    yield line("    ", Span(text, style), whole=True)


def runs_lines(views: Sequence[RunView]) -> RenderableType:
    """One line for each run: id, state, when it began, what came out."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, show_edge=False)
    for heading in ("RUN", "STATE", "STARTED", "EXPERTS", "RESULTS"):
        shown.add_column(heading, no_wrap=heading != "RESULTS", overflow="ellipsis")
    for view in views:
        loras = sum(job.result is not None for job in view.state.jobs.values())
        came_out = formatting.count(loras, "LoRA") if loras else "none"
        shown.add_row(
            Text(formatting.safe(view.run.run_id)),
            Text(facts.status_of(view)),
            Text(formatting.date_time(view.plan.created)),
            Text(", ".join(spec.expert.value for spec in view.plan.recipe.experts)),
            Text(f"rehearsal, {came_out}" if facts.is_rehearsal(view) else came_out),
        )
    return shown

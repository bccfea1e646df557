"""The result of a run: LoRAs, failures, the next commands; and the table of all runs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from wan_train.base.units import count, dollars, duration, file_size
from wan_train.run import retry
from wan_train.run.plan import Step, StepKind
from wan_train.run.samples import given_up
from wan_train.run.state import Job, JobState, Result
from wan_train.views import preview, run_status
from wan_train.views.cost import cost_basis, cost_of, cost_text, next_budget, stopped_by_budget
from wan_train.views.formatting import (
    STATE_NAMES,
    columns,
    cut,
    date_time,
    joined_lines,
    loss,
    pad,
    safe,
)
from wan_train.views.lines import Line, Row, Screenful, Span, line, plain, table, wrapped
from wan_train.views.model import RunView
from wan_train.views.run_status import RunStatus
from wan_train.views.uploads import download_command, upload_text

if TYPE_CHECKING:
    from rich.console import RenderableType

_TEXT_WIDTH = 100
_MOST_CHECKPOINTS = 4
_ENDED_EARLY = frozenset({RunStatus.FAILED, RunStatus.STOPPED, RunStatus.LOST})
RESUME_CANNOT_HELP = "`wan-train resume` keeps the settings and cannot help. Start a new run with other settings."
_COMFYUI = {
    1: "Put the file into models/loras. Load it on the model of the same expert (high-noise or low-noise).",
    2: "Put both files into models/loras. Use two LoRA loaders: the HighNoise file on the high-noise model, the "
    "LowNoise file on the low-noise model.",
}


def result_lines(view: RunView) -> RenderableType:
    """The result for a terminal. Print it with `soft_wrap=True` to keep paths and commands in one piece."""
    return Screenful(lambda width: _result(view, width))


def result_text(view: RunView) -> str:
    """The result as plain text; paths and commands stay on one line each."""
    return plain(_result(view, _TEXT_WIDTH))


def status_lines(view: RunView) -> RenderableType:
    """What `status` prints below the view of a run: the files, and the next command."""

    def lines(width: int) -> Iterator[Line]:
        results = _results(view)
        if results:
            yield line()
            yield line(Span("Results", "bold"))
            for result in results:
                yield _to_copy(result.path)
        yield from _picked(view)
        yield from preview.of_run(view.run)
        if run_status.status_of(view) is not RunStatus.LOST:  # the view itself then shows how to resume
            yield from _next(view, width)

    return Screenful(lines)


def headline(view: RunView) -> Line:
    took = run_status.took(view, view.live.at if view.live is not None else view.plan.created)
    trainings = sum(step.kind is StepKind.TRAIN for step in view.plan.steps)
    done = len(_results(view))
    match run_status.status_of(view):
        case RunStatus.FINISHED:
            what = "Both LoRAs are" if trainings > 1 else "The LoRA is"
            return line(Span(f"{what} ready after {took}.", "bold green"))
        case RunStatus.FAILED if run_status.low_disk(view) is not None:
            return line(Span(f"Stopped after {took}, before the disk was full.", "bold yellow"))
        case RunStatus.FAILED if done:
            return line(Span(f"{done} of {trainings} LoRAs is ready after {took}; the other failed.", "bold yellow"))
        case RunStatus.FAILED:
            return line(Span(f"Failed after {took}, without a LoRA.", "bold red"))
        case RunStatus.STOPPED:
            why = ", before the budget was reached" if stopped_by_budget(view) else ""
            return line(Span(f"Stopped after {took}{why}.", "bold yellow"))
        case RunStatus.LOST:
            return line(Span("The supervisor died before the run finished.", "bold red"))
        case RunStatus.RUNNING | RunStatus.RETRYING | RunStatus.WAITING | RunStatus.STOPPING:
            return line(Span(f"The run has not finished; {took} so far.", "bold"))


def runs_lines(views: Sequence[RunView], now: float) -> RenderableType:
    """One line for each run: ID, status, start, experts, results, and the dollars spent at `now`. IDs stay whole."""
    costs = [cost_of(view, now) for view in views]
    rows = [("Run", "Status", "Started", "Experts", "Results", "Spent" if any(costs) else "")]
    for view, cost in zip(views, costs, strict=True):
        loras = len(_results(view))
        results = count(loras, "LoRA") if loras else "none"
        rows.append(
            (
                safe(view.run.run_id),
                run_status.status_of(view).value,
                date_time(view.plan.created),
                ", ".join(spec.expert.value for spec in view.plan.recipe.experts),
                f"rehearsal, {results}" if run_status.is_rehearsal(view) else results,
                dollars(cost.spent) if cost is not None else "",
            )
        )
    widths = [max(map(columns, cells)) for cells in zip(*rows, strict=True)]

    def lines(width: int) -> Iterator[Line]:
        shown = range(len(widths)) if width >= sum(widths) + 2 * len(widths) else (0, 1, 3, 4, 5)
        for number, row in enumerate(rows):
            text = "  ".join(pad(row[column], widths[column]) for column in shown)
            yield line(Span(text.rstrip(), "" if number else "dim"), whole=True)

    return Screenful(lines)


def _results(view: RunView) -> list[Result]:
    return [job.result for _, job in run_status.steps_of(view) if job.result is not None]


def _result(view: RunView, width: int) -> Iterator[Line]:
    yield headline(view)
    cost = cost_of(view, view.live.at if view.live is not None else view.plan.created)
    if cost is not None:
        yield line(f"Cost: {cost_text(cost)} ({cost_basis(cost)})")
    if over := stopped_by_budget(view):
        yield from wrapped(over, width, "yellow")
    low = run_status.low_disk(view)
    if low is not None:
        yield from wrapped(f"{low.meaning}.", width, "red")
    if _results(view) and run_status.is_rehearsal(view):
        text = "This was a rehearsal with a tiny model. It shows that everything works; the files are not usable LoRAs."
        yield from wrapped(text, width, "yellow")
    yield line()
    for step, job in run_status.steps_of(view):
        yield from _step(view, step, job, width)
    yield from _picked(view)
    yield from _uploads(view)
    yield from _next(view, width)


def _picked(view: RunView) -> Iterator[Line]:
    for each in view.picks:
        yield line()
        yield line(Span(f"Picked: {each.epochs}", "bold"))
        for file in each.files:
            yield _to_copy(file.path, "bold")


def _next(view: RunView, width: int) -> Iterator[Line]:
    """How to resume, and how to get the results home."""
    status, low, resume = run_status.status_of(view), run_status.low_disk(view), resume_command(view)
    if status in _ENDED_EARLY:
        yield line()
        if resume is None:
            yield from wrapped(RESUME_CANNOT_HELP, width)
        else:
            first = "Once fixed, resume" if status is RunStatus.FAILED and low is None else "Resume"
            if status is RunStatus.FAILED and low is not None:
                yield from wrapped(low.advice, width)
            yield from wrapped(f"{first} {resumes_from(view)}:", width)
            yield _to_copy(resume)
    done = len(_results(view))
    if status is RunStatus.FINISHED and run_status.ended_early(view):
        yield line()
        yield line("Train the rest of the epochs, under the same learning rate:")
        yield _to_copy(f"wan-train resume {shlex.quote(safe(view.run.run_id))} --until all")
    if done:
        yield line()
        yield from _download(view)
        if not run_status.is_rehearsal(view):
            yield line(Span("ComfyUI", "bold"))
            yield from wrapped(_COMFYUI[min(done, 2)], width, indent=4)


def _uploads(view: RunView) -> Iterator[Line]:
    if view.uploads:
        yield line()
        yield line(Span("Uploads", "bold"))
        for each in view.uploads:
            yield line(f"  {upload_text(each)}", whole=True)


def _download(view: RunView) -> Iterator[Line]:
    """The commands that download from upload targets, and from this box if its address is known or needed."""
    known = view.shell
    is_at_home = view.plan.run_dir != view.run.path
    commands = [command for each in view.uploads if (command := download_command(each)) is not None]
    if is_at_home and not commands:
        return  # the run was copied here from the box that trained it
    unknown = "" if known is not None or commands else "; HOST and PORT as for ssh"
    yield line(Span("Download", "bold"), f" (on your own computer{unknown}):")
    for command in commands:
        yield _to_copy(safe(command))
    if not is_at_home and (known is not None or not commands):
        host, port = (known.host, known.port) if known is not None else ("HOST", "PORT")
        source = f"root@{f'[{host}]' if ':' in host else host}:{safe(view.run.path)}/*.safetensors"
        yield _to_copy(f"scp -P {port} {shlex.quote(source)} .")


def resume_command(view: RunView) -> str | None:
    """The command that resumes a run; None if it cannot continue any training."""
    left = [
        step
        for step, job in run_status.steps_of(view)
        if step.kind is StepKind.TRAIN and job.state is not JobState.SUCCEEDED
    ]
    if left and not any(_can_continue(view, step) for step in left):
        return None
    budget = f" --budget {next_budget(view):g}" if stopped_by_budget(view) else ""
    return f"wan-train resume {shlex.quote(safe(view.run.run_id))}{budget}"


def _can_continue(view: RunView, step: Step) -> bool:
    """Whether a resumed run could finish a step: neither it nor a step that it needs failed for good."""
    jobs = view.state.jobs
    failed = [jobs[each].diagnosis for each in (step.id, *step.needs) if jobs[each].state is JobState.FAILED]
    return all(each is None or retry.resuming_can_help(each) for each in failed)


def resumes_from(view: RunView) -> str:
    """Where a resumed run starts, in words."""
    trainings = [view.state.jobs[step.id] for step in view.plan.steps if step.kind is StepKind.TRAIN]
    has_checkpoint = any(run_status.epochs_saved(job) or run_status.newest_state(job) for job in trainings)
    return "from the latest checkpoint" if has_checkpoint else "from the beginning: no checkpoint was saved"


def _step(view: RunView, step: Step, job: Job, width: int) -> Iterator[Line]:
    attempt, result = job.attempt, job.result
    spent = run_status.spent(view, job, attempt.started if attempt is not None else 0.0)
    took = duration(spent) if spent is not None else None
    match job.state:
        case JobState.SUCCEEDED if result is not None:
            early = run_status.early_end(view, step)
            parts = [file_size(result.bytes), f"final loss {loss(job.loss)}" if job.loss is not None else None, took]
            yield _head("green", job, ", ".join(part for part in parts if part is not None))
            if early is not None:
                yield line(f"    ended {early}")
            yield _to_copy(result.path, "bold")
        case JobState.FAILED:
            yield from _failure(view, job, width)
        case JobState.SKIPPED:
            yield _head("yellow", job, safe(job.reason or ""))
        case JobState.STOPPED if step.kind is StepKind.TRAIN:
            yield _head("yellow", job, "" if took is None else f"after {took}")
        case _:
            pass
    if result is None and attempt is not None and attempt.last_state is not None:
        saved = attempt.last_state
        yield line(f"    latest checkpoint{f' (epoch {saved.epoch})' if saved.epoch else ''}:")
        yield _to_copy(saved.path)
    unusable = run_status.unusable_state(job)
    if result is None and unusable is not None:
        text = f"The checkpoint of epoch {unusable.epoch} is not usable: {safe(unusable.why)}"
        yield from wrapped(text, width, indent=4)
    without = given_up(job)
    if without is not None and without.diagnosis is not None:
        text = f"No samples after attempt {without.number}: {safe(without.diagnosis.meaning)}"
        yield from wrapped(text, width, indent=4)
    if job.kept:
        few = len(job.kept) <= _MOST_CHECKPOINTS
        yield line(f"    {count(len(job.kept), 'LoRA')} of earlier epochs{'' if few else ', the first and the last'}:")
        for path in job.kept if few else (job.kept[0], job.kept[-1]):
            yield _to_copy(path)


def _head(style: str, job: Job, text: str) -> Line:
    name = Span(pad(STATE_NAMES[job.state], len("finished") + 1), style)
    return line(name, Span(safe(job.step), "bold"), f": {text}" if text else "")


def _failure(view: RunView, job: Job, width: int) -> Iterator[Line]:
    found = job.diagnosis
    yield _head("bold red", job, safe(found.meaning) if found is not None else "unknown error")
    if found is not None:
        rows = [Row(label="Fix", value=safe(found.advice))]
        if found.evidence:
            rows.append(Row(label="Error", value=cut(joined_lines(found.evidence), 3 * width)))
        yield from table(rows, width, indent=4)
    log = run_status.log_of(view, job)
    if log is not None:
        yield _to_copy(log, "dim")


def _to_copy(text: object, style: str = "") -> Line:
    """A path or a command, on a line of its own."""
    return line("    ", Span(safe(text), style), whole=True)

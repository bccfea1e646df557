"""The live view of a run as a pure function of its records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from wan_train.views import formatting
from wan_train.views import run_status as facts
from wan_train.views.eta import ends_at
from wan_train.views.gpu_lines import gpu_lines, label_width
from wan_train.views.lines import Keep, Line, ScreenLine, Span, line, lowered, to_rich, width_of
from wan_train.views.model import RunView
from wan_train.views.recent_events import happened
from wan_train.views.run_status import Standing
from wan_train.views.step_lines import step_lines

if TYPE_CHECKING:
    from rich.console import Group

_STALE_SECONDS = 15.0
"""The supervisor writes its observations every second or so; older ones are said to be old."""
_MOST_WARNINGS = 4
KEYS = line(
    *(
        part
        for key, what in (("d", "leave"), ("s", "stop"), ("l", "logs"), ("?", "help"), ("Ctrl-C", "asks"))
        for part in (Span(key, "bold"), Span(f" {what}   ", "dim"))
    )
)
_FULL_BYTES = 1_000_000
"""With less than this not even the journal is sure of its next lines."""


def render(
    view: RunView,
    now: float,
    width: int,
    *,
    height: int | None = None,
    ascii_only: bool = False,
) -> Group:
    """The run at `now` (seconds since 1970) in at most `width` columns.

    `height` is that of a live screen, which also gets a line that tells the keys; None to print once.
    """
    from rich.console import Group

    rows = screen(view, now, width, height=height)
    return Group(*(to_rich(row, width, ascii_only=ascii_only) for row in rows))


def screen(
    view: RunView, now: float, width: int, *, height: int | None = None, footer: Line = KEYS
) -> tuple[Line, ...]:
    """The same as lines not yet drawn; `footer` is the last one of a live screen."""
    rows = list(_rows(view, now, width))
    if height is None:
        return tuple(row.line for row in rows)
    if not view.state.is_over:
        rows += [ScreenLine(line(), Keep.BLANK), ScreenLine(footer, Keep.ALWAYS)]
    return tuple(row.line for row in lowered(rows, max(1, height)))


def _rows(view: RunView, now: float, width: int) -> Iterator[ScreenLine]:
    yield ScreenLine(_title(view, now, width), Keep.ALWAYS)
    yield ScreenLine(_subtitle(view, width), Keep.DETAIL)
    yield ScreenLine(line(), Keep.BLANK)
    for step, job in facts.steps(view):
        yield from step_lines(view, step, job, now, width)
    if not view.state.is_over and view.supervisor_alive:
        yield from _surroundings(view, width)
    told = list(happened(view, width))
    if told:
        yield ScreenLine(line(), Keep.BLANK)
        yield from told
    yield from _remarks(view, now, width)


def _title(view: RunView, now: float, width: int) -> Line:
    state = facts.standing(view)
    since = formatting.duration(facts.elapsed(view, now))
    match state:
        case Standing.RUNNING | Standing.RETRYING | Standing.WAITING | Standing.STOPPING:
            end = ends_at(view, now)
            when = f" · ends about {formatting.moment(end, now)}" if end is not None else ""
            style = "cyan" if state in {Standing.RUNNING, Standing.WAITING} else "yellow"
            right = Span(f"{state} {since}{when}", style)
        case Standing.FINISHED:
            right = Span(f"finished in {formatting.duration(facts.worked(view, now))}", "green")
        case Standing.FAILED | Standing.STOPPED:
            right = Span(f"{state} after {formatting.duration(facts.worked(view, now))}", "red")
        case Standing.LOST:
            right = Span("lost", "red")
    mark = "REHEARSAL " if facts.is_rehearsal(view) else ""
    room = width - width_of([right]) - len(mark) - 2
    title = formatting.cut(formatting.safe(view.plan.answers.title), max(4, room))
    gap = " " * max(2, width - width_of([right]) - len(mark) - formatting.columns(title))
    return line(Span(mark, "yellow"), Span(title, "bold"), gap, right)


def _subtitle(view: RunView, width: int) -> Line:
    plan = view.plan
    experts = " and ".join(f"{spec.expert.value}-noise" for spec in plan.recipe.experts)
    parts = [formatting.safe(plan.run_id), plan.recipe.task.value, experts, _trainer(view)]
    while len(parts) > 1 and formatting.columns(" · ".join(parts)) > width:
        parts.pop()
    return line(Span(" · ".join(parts), "dim"))


def _trainer(view: RunView) -> str:
    trainer = view.plan.trainer
    return "embedded trainer" if facts.is_rehearsal(view) else f"musubi-tuner {formatting.safe(trainer.version)}"


def _surroundings(view: RunView, width: int) -> Iterator[ScreenLine]:
    live = view.live
    if live is None:
        return
    if live.gpus:
        yield ScreenLine(line(), Keep.BLANK)
    for gpu_line in gpu_lines(view, width):
        yield ScreenLine(gpu_line, Keep.GPU)
    if live.disk_free_bytes is not None:
        low = live.disk_free_bytes < view.plan.disk.total
        text = f"{formatting.pad('disk', label_width(view) + 2)}{formatting.file_size(live.disk_free_bytes)} free"
        yield ScreenLine(line(Span(text, "yellow" if low else "dim")), Keep.DISK)


def _remarks(view: RunView, now: float, width: int) -> Iterator[ScreenLine]:
    remarks: list[tuple[str, str]] = []
    live = view.live
    over = view.state.is_over
    if live is not None and not over:
        if live.gpu_problem:
            remarks.append((f"GPUs: {formatting.safe(live.gpu_problem)}", "red"))
        remarks += [(f"warning: {formatting.safe(warning)}", "yellow") for warning in live.warnings[:_MOST_WARNINGS]]
        if len(live.warnings) > _MOST_WARNINGS:
            remarks.append((f"and {formatting.count(len(live.warnings) - _MOST_WARNINGS, 'more warning')}", "yellow"))
        if view.disk_free is not None and view.disk_free < _FULL_BYTES:
            remarks.append(
                (
                    f"The disk of {formatting.safe(view.run.path)} is full. Training resumes once there is room.",
                    "red",
                )
            )
            remarks.append(("`wan-train runs` lists old runs, whose directories may be removed.", ""))
        elif view.supervisor_alive and now - live.at > _STALE_SECONDS:
            age = formatting.duration(now - live.at)
            remarks.append(
                (
                    f"These figures are {age} old: the supervisor has written nothing since. See supervisor.log.",
                    "yellow",
                )
            )
    if lost := facts.dead_supervisor(view):
        said = f"it said {lost.evidence} (in {formatting.safe(view.run.supervisor_log)})" if lost.evidence else None
        remarks.append((f"{lost.meaning}; trainers may still run.", "red"))
        remarks.append((f"Why: {said or 'killed, or the machine restarted'}", ""))
        remarks.append(("Resume it, trainers that still run included:", ""))
        remarks.append((formatting.safe(lost.advice), ""))
    if low := facts.low_disk(view):
        remarks.append((f"{low.meaning}. {low.advice}", "red"))
    if remarks:
        yield ScreenLine(line(), Keep.BLANK)
    for text, style in remarks:
        keep = Keep.ALWAYS if style == "red" else Keep.WARNING
        yield from (ScreenLine(line(Span(piece, style)), keep) for piece in formatting.wrap(text, width))

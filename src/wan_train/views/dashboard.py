"""The live view of a run as a pure function of its records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from wan_train.gpu.free import why_busy
from wan_train.gpu.model import Gpu
from wan_train.run.events import CheckpointKept, Event, ResultPlaced, StepFailed, StepRefused
from wan_train.run.plan import Devices
from wan_train.views import event_lines, formatting
from wan_train.views import run_status as facts
from wan_train.views.lines import Keep, Line, ScreenLine, Span, line, lowered, to_rich, width_of
from wan_train.views.model import RunView
from wan_train.views.run_status import RunStatus
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
    for step, job in facts.steps_of(view):
        yield from step_lines(view, step, job, now, width)
    if not view.state.is_over and view.supervisor_alive:
        yield from _surroundings(view, width)
    told = list(recent_event_lines(view, width))
    if told:
        yield ScreenLine(line(), Keep.BLANK)
        yield from told
    yield from _remarks(view, now, width)


def _title(view: RunView, now: float, width: int) -> Line:
    state = facts.status_of(view)
    since = formatting.duration(facts.elapsed(view, now))
    match state:
        case RunStatus.RUNNING | RunStatus.RETRYING | RunStatus.WAITING | RunStatus.STOPPING:
            end = facts.ends_at(view, now)
            when = f" · ends about {formatting.moment(end, now)}" if end is not None else ""
            style = "cyan" if state in {RunStatus.RUNNING, RunStatus.WAITING} else "yellow"
            right = Span(f"{state} {since}{when}", style)
        case RunStatus.FINISHED:
            right = Span(f"finished in {formatting.duration(facts.worked(view, now))}", "green")
        case RunStatus.FAILED | RunStatus.STOPPED:
            right = Span(f"{state} after {formatting.duration(facts.worked(view, now))}", "red")
        case RunStatus.LOST:
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


_NAMES_FROM = 70
"""Columns below which there is no room for the cards' names."""


def gpu_lines(view: RunView, width: int) -> Iterator[Line]:
    """One line for each GPU that the run may use."""
    gpus = view.live.gpus if view.live is not None else ()
    labels = [formatting.pad(facts.label_of(view, gpu), label_width(view) + 2) for gpu in gpus]
    if view.plan.devices is Devices.CPU_SLOTS:
        for gpu, label in zip(gpus, labels, strict=True):
            yield line(label, _whose(view, gpu))
        return
    names = [formatting.cut(formatting.gpu_name(gpu.name), max(12, width // 4)) for gpu in gpus]
    memories = [formatting.gpu_memory(gpu.used_bytes, gpu.total_bytes) for gpu in gpus]
    name_width = max((formatting.columns(name) for name in names), default=0)
    memory_width = max((len(memory) for memory in memories), default=0)
    for gpu, label, name, memory in zip(gpus, labels, names, memories, strict=True):
        figures = [memory.rjust(memory_width)]
        if _taken(view, gpu) is None:  # else the name of the run needs the room
            figures += [f"{gpu.utilization:>3} % busy"] if gpu.utilization is not None else []
            figures += [f"{gpu.temperature} °C"] if gpu.temperature is not None else []
        shown_name = Span(formatting.pad(name, name_width + 2), "dim") if width >= _NAMES_FROM else ""
        yield line(label, shown_name, "  ".join(figures), "  ", _whose(view, gpu))


def label_width(view: RunView) -> int:
    """Columns of the widest label, that of the disk included."""
    gpus = view.live.gpus if view.live is not None else ()
    return max([len("disk"), *(formatting.columns(facts.label_of(view, gpu)) for gpu in gpus)])


def _whose(view: RunView, gpu: Gpu) -> Span:
    user = facts.user_of(view, gpu)
    if user is not None:
        return Span(formatting.safe(user))
    taken = _taken(view, gpu)
    if taken is not None:
        return Span(f"taken by {formatting.safe(taken)}", "dim")
    return Span("idle" if why_busy(gpu) is None else "used by others", "dim")


def _taken(view: RunView, gpu: Gpu) -> str | None:
    return view.live.taken.get(gpu.uuid) if view.live is not None else None


_MOST_EVENTS = 4
_MOST_EVENT_LINES = 2
"""Of one event; the journal and the plain lines have all of it."""


def recent_event_lines(view: RunView, width: int) -> Iterator[ScreenLine]:
    """What a person would want to know that recent_event_lines, newest last; nothing while nothing did."""
    told = [(event, said) for event in view.recent if (said := _event_text(event, view)) is not None]
    for event, said in told[-_MOST_EVENTS:]:
        clock = formatting.clock(event.at)
        pieces = list(formatting.wrap(said, width - len(clock) - 2))
        if len(pieces) > _MOST_EVENT_LINES:
            rest = " ".join(pieces[_MOST_EVENT_LINES - 1 :])
            pieces = [*pieces[: _MOST_EVENT_LINES - 1], formatting.cut(rest, width - len(clock) - 2)]
        for number, piece in enumerate(pieces):
            yield ScreenLine(
                line(Span(formatting.pad("" if number else clock, len(clock) + 2), "dim"), piece), Keep.EVENT
            )


def _event_text(event: Event, view: RunView) -> str | None:
    match event:
        case CheckpointKept():
            return f"{formatting.safe(event.step)}: LoRA of epoch {event.epoch} kept"
        case ResultPlaced():
            return f"{formatting.safe(event.step)}: LoRA ready ({formatting.file_size(event.bytes)})"
        case StepFailed() | StepRefused():
            return f"{formatting.safe(event.step)}: failed, {formatting.safe(event.diagnosis.meaning)}"
        case _:
            said = event_lines.say(event, view)
            return None if said is None else f"{formatting.safe(said[0])}: {said[1]}"

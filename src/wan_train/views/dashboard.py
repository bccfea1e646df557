"""The live view of a run as a pure function of its records: title, steps, GPUs, recent events, remarks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from wan_train.base.units import duration, file_size
from wan_train.gpu.free import why_busy
from wan_train.gpu.model import Gpu
from wan_train.run.events import CheckpointKept, Event, ResultPlaced, StepFailed, StepRefused
from wan_train.run.plan import Devices
from wan_train.views import run_status
from wan_train.views.box_end import box_end_texts
from wan_train.views.cost import cost_basis, cost_of, cost_text, stopped_by_budget
from wan_train.views.event_lines import event_text, subject
from wan_train.views.formatting import (
    clock,
    columns,
    cut,
    expert_name,
    gpu_memory,
    gpu_name,
    moment,
    pad,
    safe,
    wrap,
)
from wan_train.views.lines import Keep, Line, Screenful, ScreenLine, Span, line, lowered, width_of, wrapped
from wan_train.views.model import RunView
from wan_train.views.run_status import RunStatus
from wan_train.views.step_lines import step_lines
from wan_train.views.uploads import STAGE_STYLES, upload_text

KEYS = line(
    *(
        part
        for key, what in (("d", "leave"), ("s", "stop"), ("l", "logs"), ("?", "help"), ("Ctrl-C", "asks"))
        for part in (Span(key, "bold"), Span(f" {what}   ", "dim"))
    )
)
_STALE_SECONDS = 15.0
"""The supervisor writes its observations every second; older ones are marked."""
_FULL_BYTES = 1_000_000
"""With less free space the journal itself may fail."""
_NAMES_FROM = 70
"""Narrower screens have no space for GPU names."""
_MOST_EVENTS = 4
_MOST_EVENT_LINES = 2


def run_lines(view: RunView, now: float) -> Screenful:
    """The run at `now` (seconds since 1970), to print once."""
    return Screenful(lambda width: screen(view, now, width))


def screen(
    view: RunView, now: float, width: int, *, height: int | None = None, footer: Line | None = None
) -> tuple[Line, ...]:
    """The run at `now` in at most `width` columns.

    `height` is the height of a live screen; None to print once. The last line of a live screen is `footer`, or by
    default the keys until the run is over.
    """
    rows = list(_rows(view, now, width))
    if height is None:
        return tuple(row.line for row in rows)
    last = footer if footer is not None or view.state.is_over else KEYS
    if last is not None:
        rows += [ScreenLine(line(), Keep.BLANK), ScreenLine(last, Keep.ALWAYS)]
    return tuple(row.line for row in lowered(rows, max(1, height)))


def _rows(view: RunView, now: float, width: int) -> Iterator[ScreenLine]:
    yield ScreenLine(_title(view, now, width), Keep.ALWAYS)
    yield ScreenLine(_subtitle(view, width), Keep.DETAIL)
    yield ScreenLine(line(), Keep.BLANK)
    for step, job in run_status.steps_of(view):
        yield from step_lines(view, step, job, now, width)
    devices = chain(_devices(view, width), _cost(view, now), _uploads(view, width))
    for part in (devices, _recent_events(view, width), _remarks(view, now, width)):
        rows = list(part)
        if rows:
            yield ScreenLine(line(), Keep.BLANK)
            yield from rows


def _title(view: RunView, now: float, width: int) -> Line:
    status = run_status.status_of(view)
    match status:
        case RunStatus.RUNNING | RunStatus.RETRYING | RunStatus.WAITING | RunStatus.STOPPING:
            end = run_status.ends_at(view, now)
            when = f" · ends about {moment(end, now)}" if end is not None else ""
            style = "cyan" if status in {RunStatus.RUNNING, RunStatus.WAITING} else "yellow"
            right = Span(f"{status} {duration(run_status.elapsed(view, now))}{when}", style)
        case RunStatus.FINISHED:
            right = Span(f"finished in {duration(run_status.worked(view, now))}", "green")
        case RunStatus.FAILED | RunStatus.STOPPED:
            right = Span(f"{status} after {duration(run_status.worked(view, now))}", "red")
        case RunStatus.LOST:
            right = Span("lost", "red")
    mark = "REHEARSAL " if run_status.is_rehearsal(view) else ""
    room = width - width_of([right]) - len(mark) - 2
    title = cut(safe(view.plan.answers.title), max(4, room))
    gap = " " * max(2, width - width_of([right]) - len(mark) - columns(title))
    return line(Span(mark, "yellow"), Span(title, "bold"), gap, right)


def _subtitle(view: RunView, width: int) -> Line:
    plan = view.plan
    experts = " and ".join(expert_name(spec.expert) for spec in plan.recipe.experts)
    trainer = "embedded trainer" if run_status.is_rehearsal(view) else f"musubi-tuner {safe(plan.trainer.version)}"
    parts = [safe(plan.run_id), plan.recipe.task.value, experts, trainer]
    while len(parts) > 1 and columns(" · ".join(parts)) > width:
        parts.pop()
    return line(Span(" · ".join(parts), "dim"))


def _devices(view: RunView, width: int) -> Iterator[ScreenLine]:
    """The GPUs that the run may use, and the free space of its disk."""
    live = view.live
    if live is None or view.state.is_over or not view.supervisor_alive:
        return
    for gpu_line in gpu_lines(view, width):
        yield ScreenLine(gpu_line, Keep.GPU)
    if live.disk_free_bytes is not None:
        low = live.disk_free_bytes < view.plan.disk.total
        text = f"{pad('disk', _label_width(view) + 2)}{file_size(live.disk_free_bytes)} free"
        yield ScreenLine(line(Span(text, "yellow" if low else "dim")), Keep.DISK)


def _cost(view: RunView, now: float) -> Iterator[ScreenLine]:
    cost = cost_of(view, now)
    if cost is not None:
        head = pad("cost", _label_width(view) + 2)
        yield ScreenLine(line(head, cost_text(cost), Span(f"  {cost_basis(cost)}", "dim")), Keep.GPU)


def _uploads(view: RunView, width: int) -> Iterator[ScreenLine]:
    """One line for each upload target."""
    for number, each in enumerate(view.uploads):
        head = pad("" if number else "upload", _label_width(view) + 2)
        text = Span(cut(upload_text(each), width - len(head)), STAGE_STYLES[each.stage])
        yield ScreenLine(line(head, text), Keep.GPU)


def gpu_lines(view: RunView, width: int) -> Iterator[Line]:
    """One line for each GPU: memory, utilization, temperature, user."""
    gpus = view.live.gpus if view.live is not None else ()
    labels = [pad(run_status.label_of(view, gpu), _label_width(view) + 2) for gpu in gpus]
    if view.plan.devices is Devices.CPU_SLOTS:
        for gpu, label in zip(gpus, labels, strict=True):
            yield line(label, _user(view, gpu))
        return
    names = [cut(gpu_name(gpu.name), max(12, width // 4)) for gpu in gpus]
    memories = [gpu_memory(gpu.used_bytes, gpu.total_bytes) for gpu in gpus]
    name_width = max(map(columns, names), default=0)
    memory_width = max(map(len, memories), default=0)
    for gpu, label, name, memory in zip(gpus, labels, names, memories, strict=True):
        readings = [memory.rjust(memory_width)]
        if _taken(view, gpu) is None:  # the name of another run would need this space
            readings += [f"{gpu.utilization:>3} % busy"] if gpu.utilization is not None else []
            readings += [f"{gpu.temperature} °C"] if gpu.temperature is not None else []
        shown_name = Span(pad(name, name_width + 2), "dim") if width >= _NAMES_FROM else ""
        yield line(label, shown_name, "  ".join(readings), "  ", _user(view, gpu))


def _label_width(view: RunView) -> int:
    gpus = view.live.gpus if view.live is not None else ()
    rows = ["disk", *(["upload"] if view.uploads else [])]
    return max([*map(len, rows), *(columns(run_status.label_of(view, gpu)) for gpu in gpus)])


def _user(view: RunView, gpu: Gpu) -> Span:
    user = run_status.user_of(view, gpu)
    if user is not None:
        return Span(safe(user))
    taken = _taken(view, gpu)
    if taken is not None:
        return Span(f"in use by {safe(taken)}", "dim")
    return Span("idle" if why_busy(gpu) is None else "used by others", "dim")


def _taken(view: RunView, gpu: Gpu) -> str | None:
    return view.live.taken.get(gpu.uuid) if view.live is not None else None


def _recent_events(view: RunView, width: int) -> Iterator[ScreenLine]:
    """The last few events, newest last, cut short; the plain lines show the whole text."""
    shown = [(event, text) for event in view.recent if (text := _event_text(event, view)) is not None]
    for event, text in shown[-_MOST_EVENTS:]:
        at = clock(event.at)
        pieces = list(wrap(text, width - len(at) - 2))
        if len(pieces) > _MOST_EVENT_LINES:
            rest = " ".join(pieces[_MOST_EVENT_LINES - 1 :])
            pieces = [*pieces[: _MOST_EVENT_LINES - 1], cut(rest, width - len(at) - 2)]
        for number, piece in enumerate(pieces):
            yield ScreenLine(line(Span(pad("" if number else at, len(at) + 2), "dim"), piece), Keep.EVENT)


def _event_text(event: Event, view: RunView) -> str | None:
    match event:
        case CheckpointKept():
            return f"{safe(event.step)}: LoRA of epoch {event.epoch} kept"
        case ResultPlaced():
            return f"{safe(event.step)}: LoRA ready ({file_size(event.bytes)})"
        case StepFailed() | StepRefused():
            return f"{safe(event.step)}: failed: {safe(event.diagnosis.meaning)}"
        case _:
            what = event_text(event, view)
            return None if what is None else f"{safe(subject(event))}: {what}"


def _remarks(view: RunView, now: float, width: int) -> Iterator[ScreenLine]:
    for text, style in _remark_texts(view, now):
        keep = Keep.ALWAYS if style in {"red", "bold yellow"} else Keep.WARNING
        yield from (ScreenLine(each, keep) for each in wrapped(text, width, style))


def _remark_texts(view: RunView, now: float) -> Iterator[tuple[str, str]]:
    live = view.live
    if live is not None and not view.state.is_over:
        if live.gpu_problem:
            yield f"GPUs: {safe(live.gpu_problem)}", "red"
        if view.disk_free is not None and view.disk_free < _FULL_BYTES:
            yield f"The disk of {safe(view.run.path)} is full.", "red"
            yield "Free some disk space: `wan-train clean` removes unneeded files. Training then continues.", ""
        elif view.supervisor_alive and now - live.at > _STALE_SECONDS:
            age = duration(now - live.at)
            yield f"The supervisor has written nothing for {age}; these figures are old. See supervisor.log.", "yellow"
    if lost := run_status.dead_supervisor(view):
        left = ", ".join(safe(step) for step in sorted(view.orphans))
        yield f"{lost.meaning}. {f'Still running: {left}' if left else 'None of its programs runs'}.", "red"
        if lost.evidence:
            yield f"Reason: {lost.evidence} (in {safe(view.run.supervisor_log)})", ""
        else:
            yield "Reason: killed, or the machine restarted", ""
        yield "Resume the run; programs that still run are adopted:" if left else "Resume the run:", ""
        yield safe(lost.advice), ""
    if over := stopped_by_budget(view):
        yield over, "yellow"
    cost = cost_of(view, now)
    if live is not None and cost is None and live.price_problem and not view.state.is_over:
        yield f"The cost is unknown: {safe(live.price_problem)}.", "yellow"
    end = run_status.ends_at(view, now)
    if cost is not None and cost.rental_ends is not None and end is not None and cost.rental_ends < end:
        yield f"The rental of this box ends about {moment(cost.rental_ends, now)}, before the run does.", "yellow"
    if low := run_status.low_disk(view):
        yield f"{low.meaning}. {low.advice}", "red"
    yield from box_end_texts(view)

"""The lines about GPUs on the live view: memory, how busy, how warm, whose."""

from __future__ import annotations

from collections.abc import Iterator

from wan_train.gpu.free import why_busy
from wan_train.gpu.model import Gpu
from wan_train.run.plan import Devices
from wan_train.views import formatting
from wan_train.views import run_status as facts
from wan_train.views.lines import Line, Span, line
from wan_train.views.model import RunView

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

"""The last things that happened to a run, in one small list on the live view."""

from __future__ import annotations

from collections.abc import Iterator

from wan_train.run.events import CheckpointKept, Event, ResultPlaced, StepFailed, StepRefused
from wan_train.views import event_lines, formatting
from wan_train.views.lines import Keep, ScreenLine, Span, line
from wan_train.views.model import RunView

_MOST = 4
_MOST_LINES = 2
"""Of one event; the journal and the plain lines have all of it."""


def happened(view: RunView, width: int) -> Iterator[ScreenLine]:
    """What a person would want to know that happened, newest last; nothing while nothing did."""
    told = [(event, said) for event in view.recent if (said := _say(event, view)) is not None]
    for event, said in told[-_MOST:]:
        clock = formatting.clock(event.at)
        pieces = list(formatting.wrap(said, width - len(clock) - 2))
        if len(pieces) > _MOST_LINES:
            rest = " ".join(pieces[_MOST_LINES - 1 :])
            pieces = [*pieces[: _MOST_LINES - 1], formatting.cut(rest, width - len(clock) - 2)]
        for number, piece in enumerate(pieces):
            yield ScreenLine(
                line(Span(formatting.pad("" if number else clock, len(clock) + 2), "dim"), piece), Keep.EVENT
            )


def _say(event: Event, view: RunView) -> str | None:
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

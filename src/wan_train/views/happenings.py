"""The last things that happened to a run, in one small list on the live view."""

from __future__ import annotations

from collections.abc import Iterator

from wan_train.run.events import CheckpointKept, Event, ResultPlaced, StepFailed, StepRefused
from wan_train.views import plain, words
from wan_train.views.lines import Keep, ScreenLine, Span, line
from wan_train.views.model import RunView

_MOST = 4
_MOST_LINES = 2
"""Of one event; the journal and the plain lines have all of it."""


def happened(view: RunView, width: int) -> Iterator[ScreenLine]:
    """What a person would want to know that happened, newest last; nothing while nothing did."""
    told = [(event, said) for event in view.recent if (said := _say(event, view)) is not None]
    for event, said in told[-_MOST:]:
        clock = words.clock(event.at)
        pieces = list(words.wrap(said, width - len(clock) - 2))
        if len(pieces) > _MOST_LINES:
            rest = " ".join(pieces[_MOST_LINES - 1 :])
            pieces = [*pieces[: _MOST_LINES - 1], words.cut(rest, width - len(clock) - 2)]
        for number, piece in enumerate(pieces):
            yield ScreenLine(line(Span(words.pad("" if number else clock, len(clock) + 2), "dim"), piece), Keep.EVENT)


def _say(event: Event, view: RunView) -> str | None:
    match event:
        case CheckpointKept():
            return f"{words.safe(event.step)}: LoRA of epoch {event.epoch} kept"
        case ResultPlaced():
            return f"{words.safe(event.step)}: LoRA ready ({words.file_size(event.bytes)})"
        case StepFailed() | StepRefused():
            return f"{words.safe(event.step)}: failed, {words.safe(event.diagnosis.meaning)}"
        case _:
            said = plain.say(event, view)
            return None if said is None else f"{words.safe(said[0])}: {said[1]}"

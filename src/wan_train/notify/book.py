"""What was sent of a run's messages: one file of records, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from wan_train.base import codec
from wan_train.base.files import append_line

MOST_TRIES = 8
_LONGEST_PAUSE = 600.0


class Mark(StrEnum):
    """What became of one message to one service."""

    CLAIMED = "claimed"
    """It is being sent. Where nothing follows, the sender died: whether it arrived is unknown."""
    SENT = "sent"
    REFUSED = "refused"
    """It did not arrive, for certain."""
    UNCLEAR = "unclear"
    """It may have arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One record. `target` is a target's name, `why` is in our own words: neither holds a secret."""

    at: float
    notice: str
    target: str
    mark: Mark
    why: str | None = None


class Standing(StrEnum):
    """Whether a message is still to be sent to a service."""

    DUE = "due"
    LATER = "later"
    SENT = "sent"
    LOST = "lost"
    """It is never sent again: it may have arrived, or every try failed."""


def standing(entries: Sequence[Entry], notice: str, target: str, *, now: float, pause: float) -> Standing:
    """Where a message stands. `pause` is the seconds before the first retry; each further one waits twice as long."""
    mine = [entry for entry in entries if (entry.notice, entry.target) == (notice, target)]
    if not mine:
        return Standing.DUE
    last = mine[-1]
    match last.mark:
        case Mark.SENT:
            return Standing.SENT
        case Mark.CLAIMED | Mark.UNCLEAR:
            return Standing.LOST
        case Mark.REFUSED:
            tries = sum(entry.mark is Mark.CLAIMED for entry in mine)
            if tries >= MOST_TRIES:
                return Standing.LOST
            wait = min(_LONGEST_PAUSE, pause * 2 ** (tries - 1))
            # A clock that was set back must not make anybody wait: the tries are counted.
            return Standing.LATER if 0 <= now - last.at < wait else Standing.DUE


def read_book(path: Path) -> tuple[Entry, ...]:
    """The records. Raises OSError."""
    return tuple(codec.read_lines(path, Entry))


def enter(path: Path, entry: Entry) -> None:
    """Record it; it is on disk when this returns. Raises OSError."""
    append_line(path, codec.to_json(entry))

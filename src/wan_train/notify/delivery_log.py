"""The log of attempts to send a run's messages (`notices.jsonl`), and the delivery state it implies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from wan_train.base import codec
from wan_train.base.clock import backoff
from wan_train.base.files import append_lines

MOST_TRIES = 8
_LONGEST_PAUSE = 600.0


class Mark(StrEnum):
    """The outcome of sending one message to one service."""

    CLAIMED = "claimed"
    """It is being sent. If no mark follows, the sender died and the outcome is unknown."""
    SENT = "sent"
    REFUSED = "refused"
    """It certainly did not arrive."""
    UNCLEAR = "unclear"
    """It may have arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One record. `target` is a target's name and `why` our own text, so neither holds a secret."""

    at: float
    notice: str
    target: str
    mark: Mark
    why: str | None = None


class DeliveryState(StrEnum):
    """The state of one message at one service."""

    DUE = "due"
    LATER = "later"
    SENT = "sent"
    LOST = "lost"
    """It is never sent again: it may have arrived, or every try failed."""


def delivery_state(entries: Sequence[Entry], notice: str, target: str, *, now: float, pause: float) -> DeliveryState:
    """The state of a message at a service. `pause` is the seconds before the first retry; each retry doubles it."""
    mine = [entry for entry in entries if (entry.notice, entry.target) == (notice, target)]
    if not mine:
        return DeliveryState.DUE
    last = mine[-1]
    match last.mark:
        case Mark.SENT:
            return DeliveryState.SENT
        case Mark.CLAIMED | Mark.UNCLEAR:
            return DeliveryState.LOST
        case Mark.REFUSED:
            tries = sum(entry.mark is Mark.CLAIMED for entry in mine)
            if tries >= MOST_TRIES:
                return DeliveryState.LOST
            wait = backoff(tries, first=pause, longest=_LONGEST_PAUSE)
            # A clock that was set back must not cause a wait; the number of tries is limited anyway.
            return DeliveryState.LATER if 0 <= now - last.at < wait else DeliveryState.DUE


def read_deliveries(path: Path) -> tuple[Entry, ...]:
    """The records. Raises OSError."""
    return tuple(codec.read_lines(path, Entry))


def record(path: Path, entry: Entry) -> None:
    """Append an entry and flush it to disk. Raises OSError."""
    append_lines(path, codec.to_json(entry))

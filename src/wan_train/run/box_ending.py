"""The record of how the box ends: `ENDING.json` in the lease directory, readable by all users."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from wan_train.base import codec
from wan_train.base.clock import Moment, seconds_between
from wan_train.base.files import write_whole
from wan_train.base.host import ProcessIdentity, identify
from wan_train.run.duties import Then

NAME = "ENDING.json"
_FIRST = 1
_KEEP = "KEEP-{}.json"
"""One per user: users cannot replace each other's files there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndWords:
    """Phrases for one way to end the box: `the box is {ended}`, then its disk, and a clause once it was ordered."""

    ended: str
    disk: str
    ordered: str


_BY_COMMAND = EndWords(ended="ended by your command", disk="", ordered="the command that ends the box was run")
END_WORDS: Mapping[Then, EndWords] = {
    Then.STOP: EndWords(
        ended="stopped", disk="; its disk stays and costs a little", ordered="the box was told to stop"
    ),
    Then.DESTROY: EndWords(
        ended="destroyed", disk=", with everything on its disk", ordered="the box was told to destroy itself"
    ),
    Then.COMMAND: _BY_COMMAND,
    Then.NOTHING: _BY_COMMAND,
}


class Phase(StrEnum):
    """The phase an ending is in."""

    COUNTDOWN = "countdown"
    ENDING = "ending"
    """The countdown is over, and the provider or the command is being asked to end the box."""
    ASKED = "asked"
    """The provider accepted, or the command succeeded: the box is going down."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What happens to the box and when. `decided` is when the countdown began, `due` is its end in Unix seconds.

    `runs` are the IDs of the runs that asked for it. `because` says what is done and why, such as why a box that was to
    be destroyed is only stopped.
    """

    then: Then
    runs: tuple[str, ...]
    because: str
    decided: Moment
    grace_seconds: float
    due: float
    phase: Phase = Phase.COUNTDOWN
    command: tuple[str, ...] = ()
    cancelled_by: str | None = None
    """The command or key that cancelled it, as text."""
    tried: Moment | None = None
    tries: int = 0
    """Failed attempts to end the box."""
    problem: str | None = None
    """Why the last attempt did not end the box, as text."""
    by_hand: str | None = None
    """The command to end the box by hand."""
    life: ProcessIdentity | None = None
    """The first process of this box. If it differs, the box has restarted."""
    changed: float | None = None
    """Unix seconds of the last change of phase."""


def seconds_left(ending: Ending, now: Moment) -> float:
    """Return the seconds left in the countdown. Changes of the wall clock have no effect."""
    return max(0.0, ending.grace_seconds - seconds_between(ending.decided, now))


def write_ending(lease_dir: Path, ending: Ending) -> None:
    """Raises OSError."""
    write_whole(lease_dir / NAME, codec.to_json(ending, indent=1) + "\n", mode=0o644)


def read_ending(lease_dir: Path) -> Ending | None:
    """Return the ending, or None. A damaged record counts as none, and the ending is decided again."""
    return codec.read(lease_dir / NAME, Ending)


def ending_of_this_box(lease_dir: Path) -> Ending | None:
    """Return the ending, unless it was decided before the box restarted."""
    ending = read_ending(lease_dir)
    return ending if ending is not None and ending.life == first_process() else None


def first_process() -> ProcessIdentity | None:
    """Return the box's first process, which differs after each start of the box."""
    return identify(_FIRST)


def forget_ending(lease_dir: Path) -> None:
    with suppress(OSError):
        (lease_dir / NAME).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRequest:
    """A request to keep the box on: `by` says how it was made, `decided` which countdown it is about."""

    by: str
    decided: Moment


def ask_to_keep(lease_dir: Path, ending: Ending, *, by: str) -> None:
    """Ask the guardian to cancel an ending; raises OSError."""
    request = codec.to_json(KeepRequest(by=by, decided=ending.decided)) + "\n"
    write_whole(lease_dir / _KEEP.format(os.geteuid()), request, mode=0o644)


def read_keep_request(lease_dir: Path, ending: Ending) -> str | None:
    """Return how a user asked to keep the box on, or None. Requests about an earlier ending do not count."""
    for path in lease_dir.glob(_KEEP.format("*")):
        request: KeepRequest | None = codec.read(path, KeepRequest)
        if request is not None and request.decided == ending.decided:
            return request.by
    return None

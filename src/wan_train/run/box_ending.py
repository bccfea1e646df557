"""The record of the end of the box, which all its users read: `ENDING.json` in the lease directory."""

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
"""One for each user: nobody may replace another's file there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndWords:
    """A way to end the box: `the box is {ended}`, then its disk, and a clause once it was ordered."""

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
    """How far an ending is."""

    COUNTDOWN = "countdown"
    ENDING = "ending"
    """Its time has come, and what ends the box is being asked."""
    ASKED = "asked"
    """The provider accepted, or the command ended well: the box goes down."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What becomes of the box and when. `decided` is when the countdown began, `due` is its end in Unix seconds.

    `runs` are the IDs of the runs whose end it is, `because` says in words what is done and why, such as why a box
    that was to be destroyed is only stopped.
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
    """A command or a key, in words."""
    tried: Moment | None = None
    tries: int = 0
    """That did not end the box."""
    problem: str | None = None
    """Why the last try did not end the box, in words."""
    by_hand: str | None = None
    """The command with which a person ends the box."""
    life: ProcessIdentity | None = None
    """The first process of this box: with another one the box went down and came back."""
    changed: float | None = None
    """Unix seconds of the last change of phase."""


def seconds_left(ending: Ending, now: Moment) -> float:
    """Of the countdown; a wall clock that was set changes nothing."""
    return max(0.0, ending.grace_seconds - seconds_between(ending.decided, now))


def write_ending(lease_dir: Path, ending: Ending) -> None:
    """Raises OSError."""
    write_whole(lease_dir / NAME, codec.to_json(ending, indent=1) + "\n", mode=0o644)


def read_ending(lease_dir: Path) -> Ending | None:
    """None where no ending was decided; a damaged record counts as none, and is decided anew."""
    return codec.read(lease_dir / NAME, Ending)


def ending_of_this_box(lease_dir: Path) -> Ending | None:
    """The ending, unless it was decided before the box went down and came back."""
    ending = read_ending(lease_dir)
    return ending if ending is not None and ending.life == first_process() else None


def first_process() -> ProcessIdentity | None:
    """The box's first process: another one after each start of the box."""
    return identify(_FIRST)


def forget_ending(lease_dir: Path) -> None:
    with suppress(OSError):
        (lease_dir / NAME).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRequest:
    """A person asks to keep the box on: `by` says how they said so, `decided` which countdown they meant."""

    by: str
    decided: Moment


def ask_to_keep(lease_dir: Path, ending: Ending, *, by: str) -> None:
    """Ask the guardian to cancel an ending; raises OSError."""
    request = codec.to_json(KeepRequest(by=by, decided=ending.decided)) + "\n"
    write_whole(lease_dir / _KEEP.format(os.geteuid()), request, mode=0o644)


def read_keep_request(lease_dir: Path, ending: Ending) -> str | None:
    """Who wants to keep the box on in spite of this ending; wishes about an earlier one do not count."""
    for path in lease_dir.glob(_KEEP.format("*")):
        request: KeepRequest | None = codec.read(path, KeepRequest)
        if request is not None and request.decided == ending.decided:
            return request.by
    return None

"""The keys of the live view, as a pure function. `views/overlays.py` has the key help."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum, auto
from typing import assert_never


class Page(Enum):
    """A page of the live view."""

    RUN = auto()
    STOP = auto()
    """The run, with the question whether to stop it."""
    LOGS = auto()
    HELP = auto()


class KeyAction(Enum):
    """A user's request to the run or the view."""

    LEAVE = auto()
    STOP = auto()
    KEEP = auto()
    """Keep the box on."""


# Cursor and function keys send several bytes for one key.
_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Za-z])|[\s\S]")


def keys_in(typed: str) -> Iterator[str]:
    """Split terminal input into single keys."""
    yield from _SEQUENCE.findall(typed)


def press(page: Page, key: str) -> tuple[Page, KeyAction | None]:
    """Return the next page and the user's action, if any."""
    match page:
        case Page.RUN:
            match key.lower():
                case "d" | "q":
                    return page, KeyAction.LEAVE
                case "s":
                    return Page.STOP, None
                case "k":
                    return page, KeyAction.KEEP
                case "l":
                    return Page.LOGS, None
                case "?" | "h":
                    return Page.HELP, None
                case _:
                    return page, None
        case Page.STOP:
            return Page.RUN, KeyAction.STOP if key.lower() == "y" else None
        case Page.LOGS | Page.HELP:
            return Page.RUN, None
        case _:
            assert_never(page)

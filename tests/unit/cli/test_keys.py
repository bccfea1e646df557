"""What each key does in the live view."""

from __future__ import annotations

import pytest

from wan_train.cli.keys import KeyAction, Page, keys_in, press


@pytest.mark.parametrize(
    ("page", "key", "expected"),
    [
        (Page.RUN, "d", (Page.RUN, KeyAction.LEAVE)),
        (Page.RUN, "D", (Page.RUN, KeyAction.LEAVE)),
        (Page.RUN, "s", (Page.STOP, None)),
        (Page.RUN, "l", (Page.LOGS, None)),
        (Page.RUN, "?", (Page.HELP, None)),
        (Page.RUN, "y", (Page.RUN, None)),
        (Page.RUN, "\r", (Page.RUN, None)),
        (Page.STOP, "y", (Page.RUN, KeyAction.STOP)),
        (Page.STOP, "\r", (Page.RUN, None)),
        (Page.STOP, "s", (Page.RUN, None)),
        (Page.STOP, "\x1b", (Page.RUN, None)),
        (Page.LOGS, "d", (Page.RUN, None)),
        (Page.HELP, "s", (Page.RUN, None)),
    ],
)
def test_a_key(page: Page, key: str, expected: tuple[Page, KeyAction | None]) -> None:
    assert press(page, key) == expected


def test_cursor_keys_are_one_key_each() -> None:
    assert list(keys_in("a\x1b[A\x1bOB\x1b[15~\x1bd")) == ["a", "\x1b[A", "\x1bOB", "\x1b[15~", "\x1b", "d"]


@pytest.mark.parametrize("typed", ["\x1b[D", "\x1bOS"])
def test_no_letter_inside_a_cursor_key_is_obeyed(typed: str) -> None:
    page = Page.RUN
    for key in keys_in(typed):
        page, action = press(page, key)
        assert action is None
    assert page is Page.RUN

"""Terminals for the tests of this folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from tty_keys import Start, Terminal

from support.trainers import PROGRAM, ScriptedBox


@pytest.fixture
def terminal(scripted_box: ScriptedBox) -> Iterator[Start]:
    """Starts `wan-train WORDS` (or another program) at a terminal; what was on it is shown when the test fails."""
    opened: list[Terminal] = []

    def start(*words: str, columns: int = 100, program: str = str(PROGRAM), **env: str) -> Terminal:
        opened.append(Terminal(scripted_box, list(words), columns, env, program))
        return opened[-1]

    yield start
    for one in opened:
        one.child.close(force=True)
        sys.stdout.write(f"--- screen ---\n{one.text[-4000:]}\n")

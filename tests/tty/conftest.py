"""Terminals for the tests of this folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tty_keys import Start, Terminal

from support.past_runs import make_box
from support.trainers import PROGRAM, ScriptedBox


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path) -> Iterator[ScriptedBox]:
    """A box with a run that trains as long as the tests of a file last. They look, and leave it as it is."""
    box = make_box(tmp_path_factory.mktemp("endless"), nvml_library)
    box.run_cli(*box.train_words("--epochs", "99999", "--detach"), SCRIPTED_STEP_SECONDS="0.2")
    box.wait_for_event("epoch_ended", step="train-low")
    yield box
    box.close()


@pytest.fixture
def terminal(scripted_box: ScriptedBox) -> Iterator[Start]:
    """Starts `wan-train WORDS` (or another program) at a terminal; what was on it is shown when the test fails."""
    opened: list[Terminal] = []

    def start(
        *words: str, columns: int = 100, program: str = str(PROGRAM), box: ScriptedBox | None = None, **env: str
    ) -> Terminal:
        opened.append(Terminal(box or scripted_box, list(words), columns, env, program))
        return opened[-1]

    yield start
    for one in opened:
        one.child.close(force=True)
        sys.stdout.write(f"--- screen ---\n{one.text[-4000:]}\n")

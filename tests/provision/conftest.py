"""A box of its own for every test that asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import provision_world
import pytest
from provision_world import World

from wan_train.provision.status_table import Board, Phase
from wan_train.provision.work import Work


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = provision_world.make(tmp_path)
    yield made
    made.hub.stop()


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    """A step at work, with the environment of this process."""
    board = Board()
    board.enter("step", "Step", Phase.RUNNING)
    with (tmp_path / "lock").open("w") as lock:
        yield Work(step="step", board=board, log=tmp_path / "logs/step.log", lock=lock.fileno(), ended=Event())

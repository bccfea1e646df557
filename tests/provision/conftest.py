"""A box of its own for every test that asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import provision_world
import pytest
from provision_world import World

from wan_train.provision.status_table import Phase, Row, StatusTable
from wan_train.provision.work import Work


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = provision_world.make(tmp_path)
    yield made
    made.hub.stop()


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    """A step at work, with the environment of this process."""
    table = StatusTable()
    table.add(Row(id="step", title="Step", phase=Phase.RUNNING))
    with (tmp_path / "lock").open("w") as lock:
        yield Work(step="step", table=table, log=tmp_path / "logs/step.log", lock=lock.fileno(), ended=Event())

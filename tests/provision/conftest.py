"""A box of its own for every test that asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import provision_world
import pytest
from provision_world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = provision_world.make(tmp_path)
    yield made
    made.hub.stop()

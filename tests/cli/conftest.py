"""A box for commands that start nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.past_runs import make_box
from support.trainers import ScriptedBox


@pytest.fixture(scope="session")
def quiet_box(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path) -> Iterator[ScriptedBox]:
    """For commands that start nothing: it has no runs before and after every test."""
    box = make_box(tmp_path_factory.mktemp("quiet"), nvml_library)
    yield box
    box.close()

"""A wall clock that is set while a run waits or trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_resume_property import DAY, Interrupted, check


@pytest.mark.parametrize("seconds", [DAY, -DAY, 400 * DAY, -400 * DAY])
@pytest.mark.parametrize("look", [5, 20, 60, 100])
def test_nothing_hangs_and_nothing_is_lost(tmp_path: Path, look: int, seconds: int) -> None:
    world = Interrupted(
        root=tmp_path,
        total=12,
        keep=4,
        batches=2,
        interval=2,
        pace=4,
        kills=[60, 120],
        jumps=[(look, seconds)],
    )
    plan = world.play()
    check(world, plan)
    assert world.killed == 2
    assert world.time - plan.created < 3600

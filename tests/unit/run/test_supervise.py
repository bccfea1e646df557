"""What the supervisor's program does after the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.runs import make_plan
from wan_train.run.directory import RunDirectory
from wan_train.run.supervise import draw_preview


@pytest.mark.parametrize("damage", ["damaged", "gone"])
def test_a_run_that_cannot_be_read_costs_only_its_preview(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(run_dir=tmp_path / "run")
    run = RunDirectory(plan.run_dir)
    run.path.mkdir()
    if damage == "damaged":
        run.write_plan(plan)
        run.events.write_text("no event\n")
    draw_preview(run, plan)
    assert "the preview was not drawn: " in capsys.readouterr().out

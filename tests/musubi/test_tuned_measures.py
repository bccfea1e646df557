"""`wan-train tune` with the real trainer, shrunken and on the CPU: it measures; the speed itself says nothing."""

from __future__ import annotations

import json

import pytest

from musubi.test_wan_train import Box, box
from musubi.trainer import Trainer, text_of

__all__ = ["box"]  # a fixture


@pytest.mark.parametrize("is_own", [True, False], ids=["own caches", "made-up caches"])
def test_candidates_are_measured_with_the_real_trainer(trainer: Trainer, box: Box, is_own: bool) -> None:
    words = ["tune", "--json", "--workspace", str(box.workspace), "--resolution", "64x64", "--minutes", "20"]
    if is_own:
        assert box.call(*box.train("--experts", "high", epochs=1)).returncode == 0
        words += ["--dataset", str(box.pictures)]
    done = box.call(*words)
    assert done.returncode == 0, text_of(done)
    found = json.loads(done.stdout.splitlines()[-1])
    guide, *others = found["rows"]
    assert guide["is_guide"]
    assert guide["outcome"] == "measured"
    assert guide["steps_timed"] == 15
    assert guide["trainer"] == trainer.version
    assert guide["load_seconds"] > 0
    options = {name for row in others for name in row["settings"]}
    assert "persistent_data_loader_workers" in options  # at both versions
    assert ("compile" in options) == (trainer.version == "v0.3.4")
    assert found["fastest"]["outcome"] == "measured"
    assert not box.processes()

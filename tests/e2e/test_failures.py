"""What a failing trainer does to the run, its exit code and what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.nvml import StubGpu
from support.trainers import ScriptedBox


def steps_of(box: ScriptedBox) -> dict[str, dict[str, Any]]:
    status = json.loads(box.run_cli("status", "--json").stdout)
    return {entry["id"]: entry for entry in status["steps"]}


def loras(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("*.safetensors"))


def test_when_one_expert_fails_the_other_goes_on(scripted_box: ScriptedBox) -> None:
    scripted_box.nvml.write([StubGpu()])
    done = scripted_box.train(SCRIPTED_FAULT="die@high@epoch=2")
    assert done.returncode == 5
    assert loras(scripted_box.run()) == ["WAN2.2-LowNoise_cat.safetensors"]
    steps = steps_of(scripted_box)
    assert (steps["train-high"]["state"], steps["train-low"]["state"]) == ("failed", "succeeded")
    assert "a scripted failure" in done.stdout + done.stderr
    assert scripted_box.run_cli("attach").returncode == 5


def test_a_failure_is_named_with_its_cause_and_what_helps(scripted_box: ScriptedBox) -> None:
    """One of them; the others are told apart in tests/unit/run/test_outcome.py and test_supervisor.py."""
    done = scripted_box.train("--experts", "high", SCRIPTED_FAULT="enospc@epoch=2")
    assert done.returncode == 4, done.stdout
    failure = steps_of(scripted_box)["train-high"]["failure"]
    assert failure["cause"] == "disk_full"
    assert "disk is full" in json.dumps(failure)
    assert Path(failure["log"]).is_file()
    assert failure["meaning"] in done.stdout + done.stderr
    assert loras(scripted_box.run()) == []


@pytest.mark.parametrize(
    ("fault", "failed", "words"),
    [
        ("bad_image", "cache-latents", "picture of the dataset cannot be read"),
        ("exit_zero_nothing@text", "cache-text", "caches are missing"),
    ],
)
def test_when_caching_fails_nothing_is_trained(scripted_box: ScriptedBox, fault: str, failed: str, words: str) -> None:
    done = scripted_box.train(SCRIPTED_FAULT=fault)
    assert done.returncode == 4
    steps = steps_of(scripted_box)
    assert steps[failed]["state"] == "failed"
    assert {steps[step]["state"] for step in ("train-high", "train-low")} == {"skipped"}
    assert words in done.stdout + done.stderr
    assert not {"high", "low"} & {entry["place"] for entry in scripted_box.recorded("start")}


def test_hostile_output_neither_stops_a_run_nor_reaches_the_terminal(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train("--experts", "high", SCRIPTED_FAULT="flood,invalid_utf8,ansi,die@epoch=3")
    assert done.returncode == 4
    logs = scripted_box.run_cli("logs", "--step", "train-high")
    status = scripted_box.run_cli("status")
    for output in (done.stdout, done.stderr, logs.stdout, status.stdout):
        assert "\x1b" not in output
        assert "\x9b" not in output
        assert "\x07" not in output
    assert "broken" in logs.stdout, "what cannot be decoded is shown as far as it can"
    assert "a scripted failure" in logs.stdout
    assert {event["epoch"] for event in scripted_box.events("epoch_ended")} == {1, 2}

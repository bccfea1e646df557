"""A budget ends a run in time, with everything saved; more of it lets the run go on."""

from __future__ import annotations

import json

from support.trainers import ScriptedBox

STEPS = {"SCRIPTED_STEP_SECONDS": "0.05", "WAN_TRAIN_PAUSE_SECONDS": "0.1"}
PRICE = ("--price", "360")
"""Ten cents a second."""


def status(box: ScriptedBox) -> dict[str, object]:
    found: dict[str, object] = json.loads(box.run_cli("status", "--json").stdout)
    return found


def test_a_run_stops_before_its_budget_and_goes_on_with_more(scripted_box: ScriptedBox) -> None:
    ended = scripted_box.train("--epochs", "400", "--rank", "1", *PRICE, "--budget", "2.50", **STEPS)
    assert ended.returncode == 7, ended.stdout + ended.stderr
    assert "everything is saved" in ended.stdout
    assert "--budget 5" in ended.stdout
    (reached,) = scripted_box.events("budget_reached")
    assert reached["mode"] == "after_state"
    told = status(scripted_box)
    assert (told["state"], told["exit_code"]) == ("stopped", 7)
    assert told["cost"]["spent"] < 2.5
    for step in ("train-high", "train-low"):
        saved = [event for event in scripted_box.events("state_saved") if event["step"] == step]
        assert saved[-1]["at"] >= reached["at"], "the last thing that each training did was to save"

    refused = scripted_box.run_cli("resume", **STEPS)
    assert refused.returncode == 2
    assert "of its budget of $2.50" in refused.stderr
    again = scripted_box.run_cli("resume", "--budget", "0.10", **STEPS)
    assert again.returncode == 2

    ended = scripted_box.run_cli("resume", "--budget", "5", **STEPS)
    assert ended.returncode == 7, ended.stdout + ended.stderr
    later = status(scripted_box)
    assert told["cost"]["spent"] < later["cost"]["spent"] < 5
    begun = [event for event in scripted_box.events("step_started") if event["step"] == "train-high"]
    assert begun[-1]["epochs_before"] > 0

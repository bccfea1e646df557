"""Time and money of real runs: the price from Vast, the quote of the second run, a budget that ends a run in time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.trainers import ScriptedBox
from support.vast_api import KEY, Mood, vast_api

STEPS = {"SCRIPTED_STEP_SECONDS": "0.05", "WAN_TRAIN_PAUSE_SECONDS": "0.1"}
PRICE = ("--price", "360")
"""Ten cents a second."""


def status(box: ScriptedBox) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(box.run_cli("status", "--json").stdout)
    return found


@pytest.mark.timeout(300)  # two runs of 25 seconds, also on a machine that is busy
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


def test_a_box_of_vasts_knows_its_price(scripted_box: ScriptedBox) -> None:
    with vast_api() as api:
        done = scripted_box.train(**api.environ())
    assert done.returncode == 0
    assert "Cost      $0.93/h from Vast" in done.stdout
    cost = status(scripted_box)["cost"]
    assert (cost["per_hour"], cost["price_source"], cost["total"]) == (0.93, "vast", None)
    assert cost["spent"] == pytest.approx(cost["paid_seconds"] * 0.93 / 3600, abs=1e-5)
    assert "Cost: " in done.stdout


def test_a_provider_in_trouble_is_named_once_and_the_training_goes_on(scripted_box: ScriptedBox) -> None:
    """One trouble; tests/unit/box/test_vast.py has the words of each."""
    said = "Vast answered with status 500"
    with vast_api() as api:
        api.mood = Mood.BREAKS
        done = scripted_box.train(**api.environ())
        assert done.returncode == 0
        assert f"unknown: {said}; --price sets it" in done.stdout
        refused = scripted_box.train("--budget", "3", **api.environ())
        assert refused.returncode == 2
        assert f"which is unknown ({said})" in " ".join(refused.stderr.split())
    assert status(scripted_box)["cost"] is None
    kept = [path for path in scripted_box.root.rglob("*") if path.is_file()]
    assert not [path for path in kept if KEY.encode() in path.read_bytes()]


def test_the_second_run_is_quoted_from_the_first_and_a_budget_below_it_asks(scripted_box: ScriptedBox) -> None:
    words = ("--epochs", "30", "--price", "36")
    first = scripted_box.train(*words, **STEPS)
    assert "known after the first minute" in first.stdout
    planned = scripted_box.train(*words, "--dry-run", "--json", **STEPS)
    quoted = json.loads(planned.stdout)["plan"]["quote"]
    assert quoted["seconds_per_batch"] >= 0.05
    assert quoted["seconds"] >= 90 * 0.05
    assert quoted["without"] == []
    refused = scripted_box.train(*words, "--budget", "0.01", **STEPS)
    assert refused.returncode == 2
    assert "more than its budget of $0.01" in " ".join(refused.stderr.split())
    assert len(scripted_box.run_directories()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--price", "x"), "--price is 'x': must be a number of dollars"),
        (("--price", "-1"), "--price is '-1': must be more than 0 and less than 1,000,000 dollars"),
        (("--price", "1", "--budget", "nan"), "--budget 'nan': must be more than 0 and less than 1,000,000 dollars"),
        (("--budget", "3"), "--budget needs the price of an hour of this box, which is unknown"),
    ],
)
def test_what_is_no_sum_of_money(scripted_box: ScriptedBox, words: tuple[str, ...], said: str) -> None:
    refused = scripted_box.train(*words)
    assert refused.returncode == 2
    assert said in " ".join(refused.stderr.split())
    assert not scripted_box.run_directories()

"""`--until`: an expert ends early under the learning rate of all epochs, and may go on later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.kills import SLOW, kill_everything, saved
from support.trainers import ScriptedBox
from wan_train.engine.tensors import read_header

HIGH, LOW = "WAN2.2-HighNoise_cat", "WAN2.2-LowNoise_cat"
PICTURES = 3
"""Of the box's dataset: steps of one epoch."""


def metadata(box: ScriptedBox, name: str) -> dict[str, str]:
    return dict(read_header(box.run() / f"{name}.safetensors").metadata)


def starts(box: ScriptedBox, step: str) -> list[dict[str, Any]]:
    return [event for event in box.events("step_started") if event["step"] == step]


def loras(box: ScriptedBox) -> set[str]:
    return {path.stem for path in box.run().glob("*.safetensors")}


def check_ended(box: ScriptedBox, name: str, *, epoch: int, of: int) -> None:
    found = metadata(box, name)
    assert (found["ss_epoch"], found["ss_steps"]) == (str(epoch), str(epoch * PICTURES))
    assert found["scripted_epochs_in_all"] == str(epoch)
    assert found["ss_output_name"] == found["modelspec.title"] == name
    assert found.get("wan_train_ended") == (f"after epoch {epoch} of {of}" if epoch < of else None)


def commands(box: ScriptedBox, step: str) -> list[str]:
    return [path.read_text() for path in sorted((box.run() / step).glob("*/command.sh"))]


def test_each_expert_ends_where_it_was_told_and_the_run_goes_on_to_its_whole_schedule(
    scripted_box: ScriptedBox,
) -> None:
    done = scripted_box.train("--epochs", "8", "--until", "5", "--low", "until=3")

    assert done.returncode == 0, done.stderr
    assert "ended after epoch 5 of 8 (--until 5)" in done.stdout
    assert "ended after epoch 3 of 8 (--until 3)" in done.stdout
    check_ended(scripted_box, HIGH, epoch=5, of=8)
    check_ended(scripted_box, LOW, epoch=3, of=8)
    assert all("--max_train_epochs 8" in words for words in commands(scripted_box, "train-high"))
    assert scripted_box.events("state_saved", "result_placed")

    done = scripted_box.run_cli("resume", "--until", "4")
    assert done.returncode == 0, done.stderr
    check_ended(scripted_box, HIGH, epoch=5, of=8)
    check_ended(scripted_box, LOW, epoch=4, of=8)
    assert [each["epochs_before"] for each in starts(scripted_box, "train-low")] == [0, 3]
    assert len(starts(scripted_box, "train-high")) == 1

    done = scripted_box.run_cli("resume", "--epochs", "8")
    assert done.returncode == 0, done.stderr
    assert "ended after" not in done.stdout
    for name in (HIGH, LOW):
        check_ended(scripted_box, name, epoch=8, of=8)
    assert loras(scripted_box) == {HIGH, f"{HIGH}-000005", LOW, f"{LOW}-000003", f"{LOW}-000004"}
    assert [each["schedule_epochs"] for each in starts(scripted_box, "train-low")] == [8, 8, 8]


def test_a_killed_run_still_ends_at_its_epoch(scripted_box: ScriptedBox) -> None:
    words = scripted_box.train_words("--epochs", "9", "--until", "7", "--save-every", "2", "--experts", "high")
    scripted_box.popen_cli(*words, **SLOW)
    saved(scripted_box, "train-high", 2)
    kill_everything(scripted_box)

    done = scripted_box.run_cli("resume", **SLOW)

    assert done.returncode == 0, done.stderr
    check_ended(scripted_box, HIGH, epoch=7, of=9)
    assert loras(scripted_box) == {HIGH, *(f"{HIGH}-{epoch:06d}" for epoch in (2, 4, 6))}


@pytest.mark.parametrize("batches", [None, 2])
def test_where_the_plan_did_not_know_the_steps_the_trainer_says_them(
    scripted_box: ScriptedBox, batches: object
) -> None:
    """As with clips of unknown length: the first attempt is ended at its first step and started again."""
    scripted_box.popen_cli(
        *scripted_box.train_words("--epochs", "60", "--until", "40", "--experts", "high"), SCRIPTED_CACHE_SECONDS="9"
    )
    scripted_box.wait_for_event("step_started")
    kill_everything(scripted_box)
    record = scripted_box.run() / "plan.json"
    plan = json.loads(record.read_text())
    plan["dataset"]["batches_per_epoch"] = batches
    record.write_text(json.dumps(plan))

    done = scripted_box.run_cli("resume", SCRIPTED_STEP_SECONDS="0.05")

    assert done.returncode == 0, done.stderr
    check_ended(scripted_box, HIGH, epoch=40, of=60)
    first, second = starts(scripted_box, "train-high")
    assert (first["epochs_before"], second["epochs_before"], second["saves_at_step"]) == (0, 0, 40 * PICTURES)


def test_status_and_json_say_where_it_ends(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train("--epochs", "8", "--until", "50%", "--experts", "high")
    assert done.returncode == 0, done.stderr
    status = json.loads(scripted_box.run_cli("status", "--json").stdout)
    [high] = [step for step in status["steps"] if step["id"] == "train-high"]
    assert high["ends_early"] == {"epoch": 1, "of_epochs": 8}
    assert high["progress"]["epochs"] == 1
    again = scripted_box.run_cli("resume")
    assert "finished; there is nothing to resume" in again.stderr
    assert "--until all" in again.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--until", "120%"], "--until must be more than 0% and at most 100%, not 120%"),
        (["--until", "0"], "--until must be an epoch from 1"),
        (["--until", "soon"], "--until must be all, an epoch such as 50"),
        (["--until", "9"], "there are only 8 epochs"),
        (["--high", "until=9"], "high-noise expert: --until 9: there are only 8 epochs"),
        (["--until", "3", "--save-every", "4"], "ends after epoch 3, before the first --save-every 4"),
        (["--until", "50%", "--", "--optimizer_type", "Adafactor"], "chooses its own step"),
    ],
)
def test_an_end_that_cannot_be_is_refused_before_anything_starts(
    scripted_box: ScriptedBox, words: list[str], said: str
) -> None:
    done = scripted_box.train("--epochs", "8", *words)

    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert scripted_box.run_directories() == []


def test_a_script_cannot_end_early(scripted_box: ScriptedBox, tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    done = scripted_box.train("--epochs", "8", "--until", "3", "--dry-run", "--script", str(script))
    assert done.returncode == 2, done.stderr
    assert "a script cannot end a training before its schedule does" in done.stderr
    assert not script.exists()
    assert not (tmp_path / "train-files").exists()


def test_samples_that_would_come_after_the_end_are_refused(scripted_box: ScriptedBox, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    done = scripted_box.train("--epochs", "8", "--until", "3", "--sample-prompts", str(prompts), "--sample-every", "4")
    assert done.returncode == 2, done.stderr
    assert "before the first --sample-every 4" in done.stderr


def test_a_run_is_not_extended_to_what_it_has(scripted_box: ScriptedBox) -> None:
    assert scripted_box.train("--epochs", "8", "--until", "5", "--experts", "high").returncode == 0
    refusals = {
        ("--until", "5"): "already has the epochs of --until 5",
        ("--until", "9"): "there are only 8 epochs",
        ("--until", "0%"): "must be more than 0%",
        ("--until", "6", "--epochs", "9"): "cannot be given together",
        ("--epochs", "7"): "--until 7",
        ("--epochs", "5"): "not more than the 5 epochs",
        ("--all", "--until", "7"): "--until cannot be given with it",
    }
    for words, said in refusals.items():
        done = scripted_box.run_cli("resume", *words)
        assert done.returncode == 2, (words, done.stderr)
        assert said in done.stderr, words
    assert len(starts(scripted_box, "train-high")) == 1


def test_a_constant_learning_rate_saves_nothing_and_says_so(scripted_box: ScriptedBox) -> None:
    words = ["--epochs", "8", "--until", "99.65%", "--dry-run", "--", "--lr_scheduler", "constant"]
    done = scripted_box.train(*words)
    assert done.returncode == 0, done.stderr
    assert "only with the last epoch, so --until saves nothing" in " ".join(done.stdout.split())

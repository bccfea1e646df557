"""Runs that were killed, stopped or finished, and `wan-train resume`: the exact epochs, and nothing overwritten."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from support.kills import SLOW, check_whole_training, epochs_reached, kill, kill_everything, saved
from support.nvml import NvmlStub
from support.trainers import ScriptedBox
from wan_train.engine.tensors import BrokenFileError, read_header

HIGH = "WAN2.2-HighNoise_cat"


def supervisor(box: ScriptedBox) -> int:
    return int(box.events("supervisor_started")[-1]["identity"]["pid"])


@pytest.mark.parametrize("words", ["wan_train_network.py", "accelerate.commands.launch", "warden.py"])
def test_a_killed_trainer_launcher_or_warden_costs_one_interval(scripted_box: ScriptedBox, words: str) -> None:
    running = scripted_box.popen_cli(*scripted_box.train_words("--epochs", "5", "--save-every", "1"), **SLOW)
    saved(scripted_box, "train-high", 2)
    kill(pid for pid, line in scripted_box.trainers().items() if words in line)
    assert running.wait() == 0
    assert len(scripted_box.events("retry_scheduled")) == 2
    check_whole_training(scripted_box, 5)
    kept = sorted(path.name for path in scripted_box.run().glob(f"{HIGH}*"))
    assert kept == [*(f"{HIGH}-{epoch:06d}.safetensors" for epoch in range(1, 5)), f"{HIGH}.safetensors"]


def test_a_machine_that_goes_down_twice_and_resume_all(scripted_box: ScriptedBox) -> None:
    scripted_box.popen_cli(*scripted_box.train_words("--epochs", "7", "--save-every", "2"), **SLOW)
    for epoch in (2, 4):
        saved(scripted_box, "train-low", epoch)
        kill_everything(scripted_box)
        done = scripted_box.run_cli("resume", "--all", **SLOW)
        assert done.returncode == 0, done.stderr
        assert scripted_box.run().name in done.stdout
    assert scripted_box.run_cli("attach").returncode == 0
    check_whole_training(scripted_box, 7, interval=2, kills=2)
    for epoch in (2, 4, 6):
        metadata = read_header(scripted_box.run() / f"{HIGH}-{epoch:06d}.safetensors").metadata
        assert (metadata["ss_epoch"], metadata["scripted_epochs_in_all"]) == (str(epoch), str(epoch))
    assert "is resumed" not in scripted_box.run_cli("resume", "--all").stdout


def test_a_run_that_was_killed_before_its_first_state_starts_again_and_says_so(scripted_box: ScriptedBox) -> None:
    scripted_box.popen_cli(*scripted_box.train_words(), **SLOW)
    epochs_reached(scripted_box, "high", 1)
    kill_everything(scripted_box)
    done = scripted_box.run_cli("resume", **SLOW)
    assert done.returncode == 0, done.stderr
    assert "from the beginning" in done.stdout
    check_whole_training(scripted_box, 3, interval=3)


@pytest.mark.parametrize("step", ["cache-latents", "cache-text"])
def test_a_cacher_killed_in_the_middle_of_a_file_leaves_none_that_is_half(scripted_box: ScriptedBox, step: str) -> None:
    box = scripted_box
    slow = {"SCRIPTED_STEP_SECONDS": "0.6", "WAN_TRAIN_PAUSE_SECONDS": "0.1"}
    running = box.popen_cli(*box.train_words("--epochs", "1"), **slow)
    ending = {"cache-latents": "*_wan.safetensors", "cache-text": "*_wan_te.safetensors"}[step]
    box.wait_for(lambda: any(map(_is_half, box.dataset.rglob(ending))), what="a half-written cache")
    kill(
        pid for pid, line in box.trainers().items() if f"wan_{step.replace('-', '_')}" in line and "warden" not in line
    )
    assert running.wait() == 0
    (retry,) = box.events("retry_scheduled")
    assert (retry["step"], retry["diagnosis"]["cause"]) == (step, "interrupted")
    caches = list(box.dataset.rglob("*.safetensors"))
    assert len(caches) == 3 + 3
    assert not any(map(_is_half, caches))


def _is_half(cache: Path) -> bool:
    try:
        read_header(cache)
    except BrokenFileError:
        return True
    return False


def test_a_supervisor_killed_while_it_stops_and_then_resumed(scripted_box: ScriptedBox) -> None:
    box = scripted_box
    # So slow that it is not over before `stop` has begun, however busy the machine is.
    slower = SLOW | {"SCRIPTED_STEP_SECONDS": "0.5", "SCRIPTED_FAULT": "ignore_term"}
    box.train("--epochs", "5", "--save-every", "1", "--detach", **slower)
    saved(box, "train-high", 1)
    pid = supervisor(box)
    box.run_cli("stop", "--now")
    box.wait_for_event("step_stopping")
    kill([pid])
    done = box.run_cli("resume", SCRIPTED_FAULT="", **SLOW)
    assert done.returncode == 0, done.stderr
    check_whole_training(box, 5, interval=2)


def test_a_finished_run_says_so_and_can_be_trained_longer(scripted_box: ScriptedBox) -> None:
    box = scripted_box
    assert box.train("--epochs", "3").returncode == 0
    before = (box.run() / f"{HIGH}.safetensors").read_bytes()
    done = box.run_cli("resume")
    assert done.returncode == 0
    assert "is finished" in done.stderr
    assert box.run_cli("resume", "--epochs", "3").returncode == 2
    done = box.run_cli("resume", "--epochs", "5")
    assert done.returncode == 0, done.stderr
    check_whole_training(box, 5, kills=0)
    assert (box.run() / f"{HIGH}-000003.safetensors").read_bytes() == before


def test_of_two_resumes_at_once_the_second_only_watches(scripted_box: ScriptedBox) -> None:
    box = scripted_box
    box.popen_cli(*box.train_words("--epochs", "4", "--save-every", "1"), **SLOW)
    saved(box, "train-low", 1)
    kill_everything(box)
    both = [box.popen_cli("resume", **SLOW) for _ in range(3)]
    assert [one.wait() for one in both] == [0, 0, 0]
    assert len(box.events("supervisor_started")) == 2
    check_whole_training(box, 4)


def test_checkpoints_asked_for_are_kept_although_no_supervisor_was_there(scripted_box: ScriptedBox) -> None:
    box = scripted_box
    box.train("--epochs", "6", "--save-every", "1", "--detach", **SLOW)
    saved(box, "train-high", 1)
    kill([supervisor(box)])
    for place in ("high", "low"):
        box.wait_for_record("end", place=place)
    assert box.run_cli("attach").returncode == 0
    kept = sorted(path.name for path in box.run().glob(f"{HIGH}-*"))
    assert kept == [f"{HIGH}-{epoch:06d}.safetensors" for epoch in range(1, 6)]
    left = list(box.run().glob("train-high/*/output/*-0*.safetensors"))
    assert len(left) <= 2, left


def test_an_attempt_that_no_journal_knows_is_ended_before_another_begins(scripted_box: ScriptedBox) -> None:
    """A supervisor may be killed between launching a trainer and recording it."""
    box = scripted_box
    box.train("--epochs", "4", "--save-every", "1", "--detach", **SLOW | {"SCRIPTED_STEP_SECONDS": "0.5"})
    epochs_reached(box, "high", 1)
    kill([supervisor(box)])
    journal = box.run() / "events.jsonl"
    whole = [json.loads(line) for line in journal.read_text().splitlines()]
    without = [event for event in whole if event.get("step") != "train-high"]
    journal.write_text("".join(json.dumps(event) + "\n" for event in without))
    assert box.run_cli("resume").returncode == 0
    starts = [entry for entry in box.recorded("start") if entry["place"] == "high"]
    ends = [entry for entry in box.recorded("end") if entry["place"] == "high"]
    assert (len(starts), len(ends)) == (2, 1)
    assert not box.recorded("overlap")


def test_a_run_whose_maker_was_killed_before_its_supervisor_began_is_taken_over(scripted_box: ScriptedBox) -> None:
    scripted_box.train("--detach", **SLOW)
    kill_everything(scripted_box)
    (scripted_box.run() / "events.jsonl").unlink()
    for folder in scripted_box.run().glob("*/1"):
        shutil.rmtree(folder)
    assert scripted_box.run_cli("attach").returncode == 0
    check_whole_training(scripted_box, 3, interval=3)


def test_a_broken_run_keeps_no_other_from_going_on(scripted_box: ScriptedBox) -> None:
    box = scripted_box
    box.popen_cli(*box.train_words("--epochs", "4", "--save-every", "1"), **SLOW)
    saved(box, "train-high", 1)
    kill_everything(box)
    broken = box.runs / "99991231-235959-broken"
    broken.mkdir()
    (broken / "plan.json").write_text('{"schema": 1, "run_id"')
    done = box.run_cli("resume", "--all", **SLOW)
    assert done.returncode != 0
    assert broken.name in done.stderr
    (good,) = [run for run in box.run_directories() if run != broken]
    assert f"{good.name} is resumed" in done.stdout
    assert box.run_cli("attach", good.name).returncode == 0


def test_foreign_locks_and_recycled_pids_are_left_alone(scripted_box: ScriptedBox) -> None:
    """Records of a boot of long ago that name a pid which is now somebody else's."""
    box = scripted_box
    box.popen_cli(*box.train_words("--epochs", "4", "--save-every", "1"), **SLOW)
    saved(box, "train-high", 1)
    kill_everything(box)
    _pretend_other_boot(box.run() / "events.jsonl", os.getpid())
    done = box.run_cli("resume", **SLOW)  # this very process would be killed if a pid were believed
    assert done.returncode == 0, done.stderr
    check_whole_training(box, 4, interval=2)


def _pretend_other_boot(journal: Path, pid: int) -> None:
    def strange(event: dict[str, Any]) -> dict[str, Any]:
        if "identity" in event:
            event["identity"] |= {"pid": pid, "pgid": pid, "boot_id": "a boot of long ago"}
        return event

    events = [strange(json.loads(line)) for line in journal.read_text().splitlines()]
    journal.write_text("".join(json.dumps(event) + "\n" for event in events))


SCHEDULE_FREE = ("--", "--optimizer_type", "schedulefree.AdamWScheduleFree")


def test_a_schedule_free_training_is_resumed_from_its_states(tmp_path: Path, nvml_stub: NvmlStub) -> None:
    """No scheduler.bin is written for such an optimizer."""
    with contextlib.closing(ScriptedBox(tmp_path / "box", nvml_stub, "v0.3.4")) as box:
        box.popen_cli(*box.train_words("--epochs", "6", "--save-every", "1"), *SCHEDULE_FREE, **SLOW)
        saved(box, "train-high", 2)
        assert "no state" not in box.run_cli("status").stdout
        kill_everything(box)
        done = box.run_cli("resume", **SLOW)
        assert done.returncode == 0, done.stderr
        check_whole_training(box, 6)


def test_a_trainer_that_cannot_do_without_a_schedule_is_not_started(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train(*SCHEDULE_FREE)
    assert done.returncode == 2
    assert "cannot train with 'schedulefree.AdamWScheduleFree'" in " ".join(done.stderr.split())
    assert "wan-train provision --engine v0.3.4" in done.stderr
    assert not scripted_box.run_directories()


def test_states_that_do_not_count_are_named_with_the_reason(scripted_box: ScriptedBox) -> None:
    fault = {"SCRIPTED_FAULT": "half_state", "SCRIPTED_STEP_SECONDS": "0.3"}
    scripted_box.popen_cli(*scripted_box.train_words("--epochs", "60", "--save-every", "1"), **fault)
    scripted_box.wait_for_event("state_unusable")
    why = "random_states_0.pkl is missing"
    assert why in " ".join(scripted_box.run_cli("status").stdout.split())
    told = scripted_box.run_cli("stop")
    assert why in told.stderr
    assert "wan-train stop --now" in told.stderr
    assert scripted_box.run_cli("stop", "--now").returncode == 0
    scripted_box.wait_for_event("run_finished")
    assert "random_states_0.pkl is missing" in scripted_box.run_cli("attach").stdout

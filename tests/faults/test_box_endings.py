"""Boxes that end themselves: real runs, a real guardian, Vast on loopback; whatever dies in between."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.trainers import ScriptedBox
from support.vast_api import Mood, VastApi, vast_api
from wan_train.run.box_ending import Phase, read_ending

GRACE = ("--then", "stop", "--grace", "0.02")


@pytest.fixture
def api() -> Iterator[VastApi]:
    with vast_api() as api:
        yield api


def train(box: ScriptedBox, api: VastApi, *words: str, **env: str) -> None:
    done = box.run_cli(*box.train_words(*words, "--detach"), **api.environ(), **env)
    assert done.returncode == 0, done.stderr


def guardians(box: ScriptedBox) -> list[int]:
    """The guardians of this box, without the shells that start them again."""
    return [
        pid
        for pid, words in box.processes().items()
        if "wan_train.guardian.program" in words and not words.startswith("/bin/sh")
    ]


def ended(box: ScriptedBox, api: VastApi) -> None:
    box.wait_for(lambda: not api.is_running, what="the box to be stopped")


@pytest.mark.parametrize(("fault", "exit_code"), [("", 0), ("die@high", 5)])
def test_a_box_is_stopped_in_every_outcome(scripted_box: ScriptedBox, api: VastApi, fault: str, exit_code: int) -> None:
    train(scripted_box, api, *GRACE, SCRIPTED_FAULT=fault)
    ended(scripted_box, api)
    [finished] = scripted_box.events("run_finished")
    assert finished["exit_code"] == exit_code
    scripted_box.wait_for(
        lambda: (ending := read_ending(scripted_box.leases)) is not None and ending.phase is Phase.ASKED,
        what="Vast's state to prove it",
    )


def test_supervisor_and_guardian_are_killed_and_both_come_back(scripted_box: ScriptedBox, api: VastApi) -> None:
    train(scripted_box, api, *GRACE, "--epochs", "20", SCRIPTED_STEP_SECONDS="0.1")
    scripted_box.wait_for_event("epoch_ended", step="train-low")
    [started] = scripted_box.events("supervisor_started")
    scripted_box.wait_for(lambda: guardians(scripted_box), what="a guardian")
    for pid in (started["identity"]["pid"], *guardians(scripted_box)):
        os.kill(pid, signal.SIGKILL)
    ended(scripted_box, api)
    assert len(scripted_box.events("supervisor_started")) > 1
    assert len(list(scripted_box.run().glob("*.safetensors"))) == 2


def test_vast_is_asked_until_it_obeys(scripted_box: ScriptedBox, api: VastApi) -> None:
    api.mood = Mood.BREAKS
    train(scripted_box, api, *GRACE)
    scripted_box.wait_for(
        lambda: (ending := read_ending(scripted_box.leases)) is not None and ending.problem is not None,
        what="the first try",
    )
    told = scripted_box.run_cli("status", "--json", **api.environ())
    assert '"problem": "Vast answered with status 500"' in told.stdout
    assert "vastai stop instance" in told.stdout
    api.mood = Mood.WELL
    ended(scripted_box, api)


def test_a_box_is_destroyed_after_its_results_were_verified_elsewhere(
    scripted_box: ScriptedBox, api: VastApi, tmp_path: Path
) -> None:
    safe = tmp_path / "elsewhere"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # of rclone
    train(scripted_box, api, "--then", "destroy", "--grace", "0", "--upload", f"rclone:{safe}", PATH=path)
    scripted_box.wait_for(lambda: api.destroyed, what="the box to be destroyed")
    assert len(list(safe.rglob("*.safetensors"))) == 2


def test_a_command_of_the_users_ends_the_box_elsewhere(scripted_box: ScriptedBox, tmp_path: Path) -> None:
    mark = tmp_path / "ended here"
    words = scripted_box.train_words("--then", f"run:touch '{mark}'", "--grace", "0", "--detach")
    assert scripted_box.run_cli(*words).returncode == 0
    scripted_box.wait_for(mark.exists, what="the command")
    scripted_box.wait_for(lambda: not guardians(scripted_box), what="the guardian's end: nothing is left to do")


def test_a_person_who_stops_a_run_keeps_its_box(scripted_box: ScriptedBox, api: VastApi) -> None:
    train(scripted_box, api, *GRACE, "--epochs", "500", SCRIPTED_STEP_SECONDS="0.1")
    scripted_box.wait_for_event("epoch_ended", step="train-low")
    run = scripted_box.run().name
    assert scripted_box.run_cli("resume", run, "--then", "nothing", "--detach", **api.environ()).returncode == 0
    scripted_box.run_cli("stop", "--now", run, **api.environ())
    scripted_box.wait_for_event("run_finished")
    scripted_box.wait_for(lambda: not guardians(scripted_box), what="the guardian's end")
    assert api.is_running

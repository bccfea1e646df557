"""A run that comes back on other GPUs than it began on: another box, another card, a person's choice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.kills import SLOW, check_whole_training, kill_everything, saved
from support.nvml import NvmlStub, StubGpu, uuid_of
from support.past_runs import PreparedBoxes
from support.trainers import ScriptedBox

NEW = ("GPU-aaaaaaaa-0000-0000-0000-000000000000", "GPU-bbbbbbbb-0000-0000-0000-000000000000")


def killed_in_mid_training(box: ScriptedBox, *words: str) -> None:
    box.popen_cli(*box.train_words("--epochs", "5", "--save-every", "1", *words), **SLOW)
    saved(box, "train-high", 1)
    kill_everything(box)


@pytest.fixture
def killed_box(prepared_boxes: PreparedBoxes, nvml_stub: NvmlStub) -> Iterator[ScriptedBox]:
    """A box that went down while both experts trained on its two GPUs."""
    box = prepared_boxes.box("killed-in-mid-training", nvml_stub, killed_in_mid_training)
    yield box
    box.close()


def gpus_since(box: ScriptedBox, records: int) -> set[str]:
    """The GPUs of the trainers that were started after that many records."""
    return {entry["gpu"] for entry in box.recorded("start")[records:]}


def test_a_run_goes_on_by_itself_on_the_gpus_of_another_box(killed_box: ScriptedBox) -> None:
    before = len(killed_box.recorded("start"))
    killed_box.nvml.write([StubGpu(uuid=uuid) for uuid in NEW])
    assert killed_box.run_cli("resume", "--all", **SLOW).returncode == 0
    watched = killed_box.run_cli("attach")
    assert watched.returncode == 0, watched.stderr
    assert "this box has other GPUs than before: now uses GPU 0, GPU 1" in watched.stdout
    assert gpus_since(killed_box, before) <= set(NEW)
    check_whole_training(killed_box, 5)


def test_a_box_with_more_gpus_is_used_whole_unless_somebody_chose(scripted_box: ScriptedBox) -> None:
    scripted_box.nvml.write([StubGpu()])
    killed_in_mid_training(scripted_box)
    before = len(scripted_box.recorded("start"))
    scripted_box.nvml.write([StubGpu(uuid=uuid) for uuid in NEW])
    assert scripted_box.run_cli("resume", **SLOW).returncode == 0
    assert gpus_since(scripted_box, before) == set(NEW)


def test_whoever_chose_one_gpu_gets_one(scripted_box: ScriptedBox) -> None:
    killed_in_mid_training(scripted_box, "--gpus", "1")
    before = len(scripted_box.recorded("start"))
    scripted_box.nvml.write([StubGpu(uuid=uuid) for uuid in NEW])
    assert scripted_box.run_cli("resume", **SLOW).returncode == 0
    assert gpus_since(scripted_box, before) == {NEW[0]}
    check_whole_training(scripted_box, 5)


def test_the_box_that_resumes_may_hide_gpus(killed_box: ScriptedBox) -> None:
    before = len(killed_box.recorded("start"))
    killed_box.nvml.write([StubGpu(uuid=uuid) for uuid in NEW])
    assert killed_box.run_cli("resume", CUDA_VISIBLE_DEVICES="1", **SLOW).returncode == 0
    assert gpus_since(killed_box, before) == {NEW[1]}


def test_resume_on_a_gpu_that_is_named_and_from_then_on(scripted_box: ScriptedBox) -> None:
    killed_in_mid_training(scripted_box, "--gpus", "0")
    before = len(scripted_box.recorded("start"))
    assert scripted_box.run_cli("resume", "--gpus", "1", "--detach", **SLOW).returncode == 0
    saved(scripted_box, "train-high", 3)
    kill_everything(scripted_box)
    again = scripted_box.run_cli("resume", **SLOW)
    assert again.returncode == 0, again.stderr
    assert "now uses GPU 1" in again.stdout
    assert gpus_since(scripted_box, before) == {uuid_of(1)}
    check_whole_training(scripted_box, 5, kills=2)


def test_a_choice_made_at_a_resume_counts_on_the_next_box(killed_box: ScriptedBox) -> None:
    assert killed_box.run_cli("resume", "--gpus", "1", "--detach", **SLOW).returncode == 0
    saved(killed_box, "train-high", 3)
    kill_everything(killed_box)
    before = len(killed_box.recorded("start"))
    killed_box.nvml.write([StubGpu(uuid=uuid) for uuid in NEW])
    assert killed_box.run_cli("resume", **SLOW).returncode == 0
    assert gpus_since(killed_box, before) == {NEW[0]}


def test_a_gpu_that_is_not_there_cannot_be_named(killed_box: ScriptedBox) -> None:
    done = killed_box.run_cli("resume", "--gpus", "7")
    assert done.returncode == 2
    assert "'7' names a GPU that is not there" in done.stderr


def test_gpus_of_a_run_that_is_alive_are_not_changed(scripted_box: ScriptedBox) -> None:
    running = scripted_box.popen_cli(*scripted_box.train_words("--epochs", "99"), SCRIPTED_STEP_SECONDS="0.3")
    scripted_box.wait_for_event("training_began")
    done = scripted_box.run_cli("resume", "--gpus", "1")
    assert done.returncode == 2
    assert "cannot be changed now" in done.stderr
    assert scripted_box.run_cli("stop", "--now").returncode == 0
    assert running.wait() == 143


@pytest.mark.parametrize("words", [("--gpus", "1"), ("--epochs", "9"), ("some-run",)])
def test_all_runs_take_nothing_that_is_meant_for_one(scripted_box: ScriptedBox, words: tuple[str, ...]) -> None:
    done = scripted_box.run_cli("resume", "--all", *words)
    assert done.returncode == 2
    assert "--all" in done.stderr


def test_a_broken_gpu_is_waited_for(scripted_box: ScriptedBox) -> None:
    """It may be back after a reset; the choice of another is the user's."""
    killed_in_mid_training(scripted_box, "--gpus", "0")
    scripted_box.nvml.write([StubGpu(error=15), StubGpu()])
    assert scripted_box.run_cli("resume", "--detach", **SLOW).returncode == 0
    scripted_box.wait_for(lambda: "GPU 0" in scripted_box.run_cli("status").stdout, what="the lost GPU in status")
    assert not scripted_box.events("gpus_chosen")

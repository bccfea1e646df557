"""Trainers that run out of memory, diverge, hang, fill the disk or are killed: what is tried again, and what told."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.nvml import NvmlStub
from support.trainers import ScriptedBox
from wan_train.engine.tensors import first_non_finite, read_header

QUICK = {"WAN_TRAIN_PAUSE_SECONDS": "0.1"}
ONE = ["--experts", "high"]
HIGH = "WAN2.2-HighNoise_cat"


def test_memory_that_is_short_at_once_takes_a_rung_and_goes_on(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train(*ONE, SCRIPTED_FAULT="oom@attempt=1,oom@attempt=2", **QUICK)
    assert done.returncode == 0, done.stderr
    changes = [event["changes"] for event in scripted_box.events("retry_scheduled")]
    assert [list(change) for change in changes] == [["blocks_to_swap"], ["blocks_to_swap"]]
    swaps = [entry["argv"]["blocks_to_swap"] for entry in scripted_box.recorded("start") if entry["place"] == "high"]
    assert swaps[1:] == [change["blocks_to_swap"] for change in changes]
    assert "blocks are kept in RAM" in done.stdout
    assert "the GPU's memory was not enough" in scripted_box.run_cli("explain").stdout


def test_numbers_that_are_not_finite_end_a_training_and_the_last_good_lora_is_kept(scripted_box: ScriptedBox) -> None:
    words = [*ONE, "--epochs", "12", "--save-every", "2"]
    # Whatever is wrong from the start stays wrong: only the first attempt is good, and it is killed.
    fault = "sigkill@epoch=6@attempt=1,nan@attempt=2"
    done = scripted_box.train(*words, SCRIPTED_FAULT=fault, **QUICK)
    assert done.returncode == 6
    assert len(scripted_box.events("retry_scheduled")) == 1
    kept = sorted(scripted_box.run().glob("*.safetensors"))
    assert [path.name for path in kept] == [f"{HIGH}-000002.safetensors", f"{HIGH}-000004.safetensors"]
    assert all(first_non_finite(path, read_header(path)) is None for path in kept)
    assert "diverged" in done.stdout


def test_one_bad_number_in_the_shown_loss_ends_nothing(scripted_box: ScriptedBox) -> None:
    assert scripted_box.train(*ONE, "--save-every", "1", SCRIPTED_FAULT="nan_once@epoch=1", **QUICK).returncode == 0


def test_a_hang_leaves_evidence_is_ended_and_tried_again(scripted_box: ScriptedBox) -> None:
    words = [*ONE, "--epochs", "4", "--save-every", "1"]
    done = scripted_box.train(
        *words, SCRIPTED_FAULT="hang@epoch=3@attempt=1,ignore_term@attempt=1", WAN_TRAIN_STALL_SECONDS="2", **QUICK
    )
    assert done.returncode == 0, done.stderr
    (retry,) = scripted_box.events("retry_scheduled")
    assert retry["diagnosis"]["cause"] == "no_progress"
    stall = (scripted_box.run() / "train-high" / "1" / "stall.txt").read_text()
    assert re.search(r"pid \d+ python", stall)
    assert read_header(scripted_box.run() / f"{HIGH}.safetensors").metadata["scripted_epochs_in_all"] == "4"


def test_explain_reads_any_log(scripted_box: ScriptedBox, tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("steps: 3%\nRuntimeError: CUDA error: an illegal memory access was encountered\n")
    told = scripted_box.run_cli("explain", str(log))
    assert "the GPU or its driver failed" in told.stdout
    log.write_text("all is well\n")
    told = scripted_box.run_cli("explain", str(log))
    assert "no error that wan-train knows" in told.stdout


class SmallDisk:
    """A file system in memory whose size can be changed while it is in use."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", self.path], check=True)

    def fill(self) -> None:
        """To the last page, whoever else writes meanwhile."""
        with (self.path / "ballast").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100g", "small", path], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield SmallDisk(path)
    ctypes.CDLL(None).umount2(bytes(path), 2)


@pytest.fixture
def small_box(small_disk: SmallDisk, nvml_stub: NvmlStub) -> Iterator[ScriptedBox]:
    box = ScriptedBox(small_disk.path / "box", nvml_stub)
    yield box
    box.close()


def test_a_disk_without_room_for_the_states_is_refused_with_the_numbers(
    small_box: ScriptedBox, small_disk: SmallDisk
) -> None:
    small_disk.resize("1g")
    done = small_box.train()
    assert done.returncode == 3
    assert "GB free and this run needs" in done.stderr
    assert not small_box.run_directories()


def test_a_disk_that_gets_low_stops_the_run_after_a_state(small_box: ScriptedBox, small_disk: SmallDisk) -> None:
    words = [*ONE, "--epochs", "60", "--save-every", "2"]
    slow = {"SCRIPTED_STEP_SECONDS": "0.2"} | QUICK
    running = small_box.popen_cli(*small_box.train_words(*words), **slow)
    small_box.wait_for_record("epoch", place="high")
    small_disk.resize("1g")
    assert running.wait() == 3
    (low,) = small_box.events("disk_low")
    assert low["free"] < low["needed"]
    told = min(small_box.root.glob("cli-*.out")).read_text()
    assert f"{low['needed'] / 1e9:.1f} GB" in told
    assert "Disk space is low" in small_box.run_cli("status").stdout
    assert "Disk space is low" in small_box.run_cli("explain").stdout
    refused = small_box.run_cli("resume", **QUICK)  # nothing is loaded only to be stopped at the next state
    assert refused.returncode == 3
    assert "the next states and LoRAs need" in refused.stderr
    assert len(small_box.events("step_started")) == 3
    small_disk.resize("100g")
    done = small_box.run_cli("resume", **QUICK)
    assert done.returncode == 0, done.stderr
    assert read_header(small_box.run() / f"{HIGH}.safetensors").metadata["scripted_epochs_in_all"] == "60"


def test_resume_counts_the_gpus_that_it_will_use(small_box: ScriptedBox, small_disk: SmallDisk) -> None:
    assert small_box.train("--gpus", "0", SCRIPTED_FAULT="bad_image@latents", **QUICK).returncode == 4
    small_disk.resize("200m")

    def needed(*words: str) -> float:
        refused = small_box.run_cli("resume", *words, COLUMNS="300", **QUICK)
        assert refused.returncode == 3, refused.stderr
        return float(re.findall(r"the next states and LoRAs need ([\d.]+) GB", refused.stderr)[0])

    assert needed("--gpus", "0,1") == pytest.approx(2 * needed(), abs=0.2)  # rounded to 0.1


def test_a_full_disk_is_never_called_success_and_everything_goes_on_with_space(
    small_box: ScriptedBox, small_disk: SmallDisk
) -> None:
    words = [*ONE, "--epochs", "8", "--save-every", "2"]
    running = small_box.popen_cli(*small_box.train_words(*words), SCRIPTED_STEP_SECONDS="0.1", **QUICK)
    small_box.wait_for_record("epoch", place="high", epoch=3)
    small_disk.resize("40m")
    small_disk.fill()
    small_box.wait_for(lambda: not small_box.trainers(), what="the trainer's end on the full disk")
    assert not list(small_box.run().glob(f"{HIGH}.safetensors"))
    small_box.wait_for(lambda: "is full" in small_box.run_cli("status").stdout, what="the words")
    small_disk.fill()
    refused = small_box.run_cli("stop", "--now")
    assert refused.returncode == 3
    assert "the disk is full: no space for" in refused.stderr
    assert "Traceback" not in refused.stderr
    time.sleep(0.5)  # some rounds of a supervisor that cannot write a line of its own log
    (small_disk.path / "ballast").unlink()
    small_disk.resize("100g")
    code = running.wait()
    assert len(small_box.events("supervisor_started")) == 1, "it waits for space, it does not die"
    if code:  # what the trainer said of the full disk may itself not have fitted on it
        assert small_box.run_cli("resume", **QUICK).returncode == 0
    assert read_header(small_box.run() / f"{HIGH}.safetensors").metadata["scripted_epochs_in_all"] == "8"


def test_a_warden_that_is_frozen_is_ended_with_its_tree(scripted_box: ScriptedBox) -> None:
    scripted_box.train(*ONE, "--detach", SCRIPTED_STEP_SECONDS="0.3", WAN_TRAIN_TERM_GRACE_SECONDS="0.2")
    scripted_box.wait_for_record("epoch", place="high")
    (warden,) = (pid for pid, words in scripted_box.trainers().items() if "warden.py" in words)
    os.kill(warden, signal.SIGSTOP)
    scripted_box.run_cli("stop", "--now")
    scripted_box.wait_for_event("run_finished")
    assert not scripted_box.trainers()

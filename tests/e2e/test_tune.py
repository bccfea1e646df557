"""`wan-train tune` against the scripted trainer, whose speed and memory are functions of its options."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from support.json_output import json_lines
from support.nvml import GIB, NvmlStub, StubGpu, uuid_of
from support.trainers import ScriptedBox

HOPPER = StubGpu(name="NVIDIA H100 80GB HBM3", total=80 * GIB, compute_capability=(9, 0))
STEP = "0.02"


def packages(box: ScriptedBox, *names: str) -> None:
    """Make packages importable in the trainer's environment."""
    for name in names:
        package = box.checkout / "venv" / "lib" / "python3.11" / "site-packages" / name
        package.mkdir(parents=True)
        (package / "__init__.py").touch()


@pytest.fixture
def newest(tmp_path: Path, nvml_stub: NvmlStub) -> Any:
    """A box with the newest trainer and one H100."""
    nvml_stub.write([HOPPER])
    box = ScriptedBox(tmp_path / "box", nvml_stub, version="v0.3.4")
    yield box
    box.close()


def tune(box: ScriptedBox, *words: str, **env: str) -> dict[str, Any]:
    done = box.run_cli("tune", "--json", "--minutes", "30", *words, SCRIPTED_STEP_SECONDS=STEP, **env)
    assert done.returncode == 0, done.stderr
    (line,) = json_lines(done.stdout)
    return line


def words(row: dict[str, Any]) -> str:
    return str(row["words"])


def test_the_right_one_of_eight_is_chosen_and_used(tmp_path: Path, nvml_stub: NvmlStub) -> None:
    """On 32 GB: too few blocks run out of memory; what was measured as fastest is what a training is given."""
    nvml_stub.write([StubGpu(name="NVIDIA GeForce RTX 4090 D", total=32 * GIB, compute_capability=(8, 9))])
    box = ScriptedBox(tmp_path / "box", nvml_stub, version="v0.3.4")
    packages(box, "flash_attn")
    costs = {
        "SCRIPTED_CARD_GIB": "18.2",
        "SCRIPTED_FACTORS": "block=0.2,block_swap_h2d_only=0.6,use_pinned_memory_for_block_swap=2,compile=0.6,"
        "no_fp8=0.2,flash_attn=2",
    }
    try:
        found = tune(box, **costs)
        assert len(found["rows"]) >= 8
        assert found["is_complete"]
        fastest = found["fastest"]["settings"]
        (guide,) = [row for row in found["rows"] if row["is_guide"]]
        # Four times as fast, which holds on a busy machine too. The best of all: tests/unit/tune, by true clocks.
        assert found["fastest"]["seconds_per_step"] < guide["seconds_per_step"]
        assert fastest["fp8_base"] is True  # without, it would be fastest of all, if it fitted
        assert fastest["blocks_to_swap"] >= 4  # fewer run out of memory
        assert any(row["outcome"] == "out_of_memory" for row in found["rows"])
        planned = box.run_cli(
            *box.train_words("--dry-run", "--json", "--resolution", "960x960", "--epochs", "1000"), **costs
        )
        (plan,) = json_lines(planned.stdout)
        training = plan["commands"]["train-high"]
        # Of the rows; on a busy machine this training's length may prefer another one than the default length.
        seconds = plan["plan"]["tuned"]["seconds_per_step"]
        (used,) = [row for row in found["rows"] if row["seconds_per_step"] == pytest.approx(seconds)]
        assert seconds < guide["seconds_per_step"]
        assert f"--blocks_to_swap {used['settings']['blocks_to_swap']}" in training
        for option in ("compile", "block_swap_h2d_only", "use_pinned_memory_for_block_swap"):
            assert (f"--{option} " in f"{training} ") is used["settings"].get(option, False)
        # What somebody asked for counts more.
        chosen = ("--attention", "flash", "--blocks-to-swap", "0", "--fp8")
        planned = box.run_cli(*box.train_words("--dry-run", "--json", "--resolution", "960x960", *chosen), **costs)
        (plan,) = json_lines(planned.stdout)
        assert "--flash_attn" in plan["commands"]["train-high"]
        assert "--compile" not in plan["commands"]["train-high"]
        assert "--blocks_to_swap" not in plan["commands"]["train-high"]
    finally:
        box.close()


def test_rows_are_kept_and_a_second_call_measures_only_what_is_left(newest: ScriptedBox) -> None:
    found = tune(newest, SCRIPTED_FACTORS="no_fp8=0.05")
    started = len(newest.recorded("start"))
    assert "no fp8" in words(found["fastest"])
    again = tune(newest)
    assert again["rows"] == found["rows"]
    assert len(newest.recorded("start")) == started
    shown = newest.run_cli("tune", "--show")
    assert "+ no fp8" in shown.stdout
    exported = newest.run_cli("tune", "--export").stdout
    assert "| H100 80GB HBM3 |" in exported
    assert str(newest.root) not in exported


def test_ctrl_c_keeps_the_rows_and_leaves_no_process(newest: ScriptedBox) -> None:
    child = newest.popen_cli("tune", "--minutes", "30", SCRIPTED_STEP_SECONDS=STEP)
    newest.wait_for(lambda: len(newest.recorded("start")) >= 2, what="a second candidate")
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 130
    newest.wait_for(lambda: not newest.trainers(), what="no trainer is left")
    shown = newest.run_cli("tune", "--show", "--json")
    (line,) = json_lines(shown.stdout)
    assert len(line["rows"]) == 1
    assert len(tune(newest)["rows"]) > 1
    starts = [entry["argv"]["max_train_steps"] for entry in newest.recorded("start")]
    assert len(starts) == len(tune(newest)["rows"]) + 1  # only the interrupted one was begun twice


def test_a_candidate_that_crashes_is_a_row_and_not_the_end(newest: ScriptedBox) -> None:
    found = tune(newest, SCRIPTED_BREAKS="compile")
    (broken,) = [row for row in found["rows"] if row["outcome"] == "failed"]
    assert broken["settings"]["compile"] is True
    assert found["rows"].index(broken) < len(found["rows"]) - 1
    assert found["is_complete"]


def test_a_candidate_that_takes_the_gpu_with_it_is_not_tried_again(newest: ScriptedBox, nvml_stub: NvmlStub) -> None:
    done = newest.run_cli("tune", "--minutes", "30", SCRIPTED_STEP_SECONDS=STEP, SCRIPTED_LOSES="compile")
    assert done.returncode == 3
    assert "lost" in done.stderr
    assert "not be tried again" in done.stderr
    nvml_stub.write([HOPPER])
    found = tune(newest)
    assert [row["outcome"] for row in found["rows"] if row["settings"].get("compile")] == ["failed"]


@pytest.mark.parametrize("how", ["memory", "lost", "leased"])
def test_a_gpu_that_cannot_be_had_is_named_and_nothing_starts(
    newest: ScriptedBox, nvml_stub: NvmlStub, how: str
) -> None:
    child = None
    match how:
        case "memory":
            newest.set_used(uuid_of(0), 9 * GIB)
        case "lost":
            nvml_stub.write([StubGpu(error=15)])
        case _:
            child = newest.popen_cli(*newest.train_words("--epochs", "100000"), SCRIPTED_STEP_SECONDS="0.05")
            newest.wait_for_record("epoch")
    before = len(newest.recorded("start"))
    done = newest.run_cli("tune")
    assert done.returncode == 3
    assert "GPU" in done.stderr
    if child is None:
        assert len(newest.recorded("start")) == before
    else:
        assert "is in use by" in done.stderr
        newest.run_cli("stop", "--now")
        child.wait(60)


def test_measured_on_ones_own_caches(newest: ScriptedBox) -> None:
    assert newest.train(SCRIPTED_STEP_SECONDS="0.002").returncode == 0
    found = tune(newest, "--dataset", str(newest.dataset), "--resolution", "64x64")
    sizes = {row["size"] for row in found["rows"]}
    assert len(sizes) == 1
    assert "960" not in sizes.pop()


def test_minutes_must_make_sense(newest: ScriptedBox) -> None:
    done = newest.run_cli("tune", "--minutes", "0")
    assert done.returncode == 2
    assert "--minutes" in done.stderr


def test_the_time_is_kept_to(newest: ScriptedBox) -> None:
    """Only the guide's settings are measured whatever the time, and what is left is said."""
    found = tune(newest, "--minutes", "0.001")
    assert len(found["rows"]) == 1
    assert found["rows"][0]["is_guide"]
    assert not found["is_complete"]

"""What is there when a run is done: files, names, JSON lines."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from support.nvml import NvmlStub
from support.trainers import ScriptedBox
from wan_train.engine.tensors import first_non_finite, read_header

T2V = ["WAN2.2-HighNoise_cat.safetensors", "WAN2.2-LowNoise_cat.safetensors"]


def test_both_loras_are_moved_in_whole_under_their_names(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train("--json")
    assert done.returncode == 0, done.stderr
    run = scripted_box.run()
    assert sorted(path.name for path in run.glob("*.safetensors")) == T2V
    result = json.loads(done.stdout.splitlines()[-1])
    placed = {step["expert"]: step["result"] for step in result["steps"] if step["result"]}
    for expert, title in (("high", "HighNoise"), ("low", "LowNoise")):
        path = run / f"WAN2.2-{title}_cat.safetensors"
        header = read_header(path)
        assert first_non_finite(path, header) is None
        assert header.metadata["modelspec.author"] == "me"
        assert header.metadata["modelspec.title"] == f"WAN2.2-{title}_cat"
        assert placed[expert] == {
            "path": str(path),
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }


@pytest.mark.parametrize("version", ["d0a1930", "v0.3.4"])
def test_image_to_video_on_both_trainer_versions(tmp_path: Path, nvml_stub: NvmlStub, version: str) -> None:
    box = ScriptedBox(tmp_path / "box", nvml_stub, version)
    try:
        done = box.train("--task", "i2v")
        assert done.returncode == 0, done.stderr
        assert sorted(path.name for path in box.run().glob("*.safetensors")) == [
            "WAN2.2-I2V_HighNoise_cat.safetensors",
            "WAN2.2-I2V_LowNoise_cat.safetensors",
        ]
        boundary = {
            entry["place"]: (entry["argv"]["min_timestep"], entry["argv"]["max_timestep"])
            for entry in box.recorded("start")
            if entry["place"] in {"high", "low"}
        }
        assert boundary == {"high": (900, 1000), "low": (0, 900)}
    finally:
        box.close()


def test_with_json_stdout_is_json_lines_and_the_last_is_the_result(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train("--json", SCRIPTED_FAULT="die@low")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("event") for line in lines].count("result") == 1
    assert lines[-1]["event"] == "result"
    assert lines[-1]["exit_code"] == done.returncode == 5
    marked = [{"schema": 1, "event": "journal", **event} for event in scripted_box.events()]
    assert [line for line in lines if line["event"] == "journal"] == marked


def test_a_second_run_with_the_same_title_overwrites_nothing(scripted_box: ScriptedBox) -> None:
    assert scripted_box.train().returncode == 0
    first = scripted_box.run()
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in first.glob("*.safetensors")}
    assert scripted_box.train("--seed", "6").returncode == 0
    assert len(scripted_box.run_directories()) == 2
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in first.glob("*.safetensors")} == before


def test_two_runs_with_one_title_at_the_same_moment_get_directories_of_their_own(scripted_box: ScriptedBox) -> None:
    both = [scripted_box.popen_cli(*scripted_box.train_words()) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    runs = scripted_box.run_directories()
    assert len(runs) == 2
    assert [sorted(path.name for path in run.glob("*.safetensors")) for run in runs] == [T2V, T2V]


def test_checkpoints_that_were_asked_for_are_kept_and_whole(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train("--epochs", "6", "--save-every", "2", SCRIPTED_STEP_SECONDS="0.01")
    assert done.returncode == 0, done.stderr
    for title in ("HighNoise", "LowNoise"):
        kept = sorted(scripted_box.run().glob(f"WAN2.2-{title}_*.safetensors"))
        assert [path.name for path in kept] == [
            f"WAN2.2-{title}_cat-000002.safetensors",
            f"WAN2.2-{title}_cat-000004.safetensors",
            f"WAN2.2-{title}_cat.safetensors",
        ]
        assert [read_header(path).metadata["ss_epoch"] for path in kept] == ["2", "4", "6"]


def test_old_states_are_removed_while_training(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train("--experts", "high", "--epochs", "6", "--save-every", "1", SCRIPTED_STEP_SECONDS="0.01")
    assert done.returncode == 0, done.stderr
    output = scripted_box.run() / "train-high" / "1" / "output"
    states = sorted(path.name for path in output.glob("*-state"))
    assert states[-1] == "WAN2.2-HighNoise_cat-state"
    assert not {f"WAN2.2-HighNoise_cat-{epoch:06d}-state" for epoch in (1, 2, 3)} & set(states)
    log = (output.parent / "output.log").read_text(encoding="utf-8")
    assert all(f"saving state at epoch {epoch}\n" in log for epoch in range(1, 6))
    # A trainer this fast may remove a state before anybody looks; test_supervisor.py has the record of every one.
    recorded = [event["epoch"] for event in scripted_box.events("state_saved")]
    assert recorded == sorted(set(recorded) & {1, 2, 3, 4, 5})
    assert recorded[-1] >= 4


def test_detach_returns_at_once_and_attach_waits_for_the_end(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train("--detach", SCRIPTED_STEP_SECONDS="0.05")
    assert done.returncode == 0
    assert not scripted_box.events("run_finished")
    assert done.stdout.splitlines()[-1] == scripted_box.run().name
    assert scripted_box.run_cli("attach", scripted_box.run().name).returncode == 0
    assert scripted_box.events("run_finished")[0]["exit_code"] == 0


def test_a_dry_run_starts_and_writes_nothing(scripted_box: ScriptedBox) -> None:
    before = sorted(scripted_box.dataset.rglob("*"))
    done = scripted_box.train("--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    (plan,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert "accelerate.commands.launch" in plan["commands"]["train-high"]
    assert not scripted_box.recorded()
    assert not scripted_box.runs.exists() or not list(scripted_box.runs.iterdir())
    assert sorted(scripted_box.dataset.rglob("*")) == before

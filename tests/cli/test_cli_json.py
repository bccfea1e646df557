"""With `--json`, stdout holds JSON lines of the documented shape and nothing else, whatever happens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.json_output import json_lines
from support.past_runs import PastRuns
from support.trainers import ScriptedBox
from wan_train.base.text import visible


def test_a_run_from_a_script(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train("--json")
    assert done.returncode == 0, done.stderr
    lines = json_lines(done.stdout)
    assert lines[1]["kind"] == "supervisor_started"
    assert {line["kind"] for line in lines[1:-1]} >= {"step_started", "step_succeeded", "epoch_ended", "run_finished"}
    result = lines[-1]
    assert result["event"] == "result"
    assert result["exit_code"] == 0
    paths = [step["result"]["path"] for step in result["steps"] if step["result"]]
    assert sorted(paths) == sorted(map(str, scripted_box.run().glob("*.safetensors")))


def test_events_are_those_of_the_journal(past_runs: PastRuns) -> None:
    lines = json_lines(past_runs.box.run_cli("attach", past_runs.finished.name, "--json").stdout)
    marked = [{"schema": 1, "event": "journal", **event} for event in past_runs.box.events(run=past_runs.finished)]
    assert lines[0]["event"] == "watching"
    assert lines[1:-1] == marked


def test_the_environment_can_ask_for_json(past_runs: PastRuns) -> None:
    assert json_lines(past_runs.box.run_cli("status", WAN_TRAIN_JSON="1").stdout)[0]["event"] == "status"
    (line,) = json_lines(past_runs.box.run_cli("status", "--fly", WAN_TRAIN_JSON="1").stdout)
    assert (line["event"], line["exit_code"]) == ("error", 2)


def test_detached(scripted_box: ScriptedBox) -> None:
    (line,) = json_lines(scripted_box.run_cli(*scripted_box.train_words("--detach", "--json")).stdout)
    run = scripted_box.run()
    assert line == {"schema": 1, "event": "detached", "run_id": run.name, "run_dir": str(run)}
    scripted_box.wait_for_event("run_finished")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--title", "../x", "--yes", "--json"], 2),
        (["--dataset", "nowhere", "--yes", "--json"], 2),
        (["--musubi-dir", "nowhere", "--yes", "--json"], 3),
        (["--dry-run", "--json", "--dataset", "nowhere"], 2),
        (["--json", "--runs-dir", "", "--yes"], 2),
        (["--json", "--dataset", "pictures"], 2),
        (["status", "--json", "nothing"], 2),
        (["attach", "--json"], 2),
        (["runs", "--json", "--runs-dir", ""], 2),
        (["--fly", "--json"], 2),
        (["--epochs", "many", "--json"], 2),
        (["fly", "--json"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_error_is_json_too(quiet_box: ScriptedBox, words: list[str], code: int) -> None:
    done = quiet_box.run_cli(*words)
    assert done.returncode == code, done.stderr
    (line,) = json_lines(done.stdout)
    assert line["event"] == "error"
    assert line["exit_code"] == code
    assert line["message"]
    assert line["message"].splitlines()[0] in done.stderr


def test_a_failed_run_tells_why_in_json(past_runs: PastRuns) -> None:
    done = past_runs.box.run_cli("attach", past_runs.failed.name, "--json")
    result = json_lines(done.stdout)[-1]
    assert done.returncode == result["exit_code"] == 5
    (failure,) = [step["failure"] for step in result["steps"] if step["failure"]]
    assert Path(failure["log"]).is_file()


def test_a_loss_that_is_no_number_is_still_json(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train("--json", SCRIPTED_FAULT="nan@high@epoch=2")
    assert json_lines(done.stdout)
    assert json_lines(scripted_box.run_cli("status", "--json").stdout)


def test_answers_about_runs(past_runs: PastRuns) -> None:
    (status,) = json_lines(past_runs.box.run_cli("status", past_runs.failed.name, "--json").stdout)
    assert (status["event"], status["run_id"]) == ("status", past_runs.failed.name)
    assert status["steps"][-1]["result"]
    assert [step["failure"]["cause"] for step in status["steps"] if step["failure"]] == ["unknown"]
    (runs,) = json_lines(past_runs.box.run_cli("runs", "--json").stdout)
    assert [run["run_id"] for run in runs["runs"]] == [
        past_runs.failed.name,
        past_runs.also_finished.name,
        past_runs.finished.name,
    ]
    (told,) = json_lines(past_runs.box.run_cli("explain", past_runs.failed.name, "--json").stdout)
    assert {failure["where"] for failure in told["failures"]} >= {"train-high, attempt 1"}


def test_logs_are_lines_with_their_place(past_runs: PastRuns) -> None:
    name = past_runs.failed.name
    plain = past_runs.box.run_cli("logs", name, "--step", "train-low").stdout.splitlines()
    lines = json_lines(past_runs.box.run_cli("logs", name, "--step", "train-low", "--json").stdout)
    assert {(line["event"], line["run_id"], line["step"], line["attempt"]) for line in lines} == {
        ("log", name, "train-low", 1)
    }
    assert [visible(line["text"]) for line in lines] == plain


def test_stopping_tells_how_soon(scripted_box: ScriptedBox) -> None:
    words = scripted_box.train_words("--epochs", "500", "--detach")
    assert scripted_box.run_cli(*words, SCRIPTED_STEP_SECONDS="0.1").returncode == 0
    scripted_box.wait_for_event("epoch_ended", step="train-low")
    run = scripted_box.run()
    (line,) = json_lines(scripted_box.run_cli("stop", "--now", "--json").stdout)
    about = {"run_id": run.name, "run_dir": str(run), "mode": "now", "next_checkpoint_seconds": None}
    assert line == {"schema": 1, "event": "stopping", **about}
    scripted_box.wait_for_event("run_finished", exit_code=143)


@pytest.mark.parametrize("verb", ["stop", "resume"])
def test_what_is_over_is_answered_with_its_result(past_runs: PastRuns, verb: str) -> None:
    (line,) = json_lines(past_runs.box.run_cli(verb, past_runs.finished.name, "--json").stdout)
    assert (line["event"], line["run_id"], line["exit_code"]) == ("result", past_runs.finished.name, 0)


def test_a_plan(quiet_box: ScriptedBox) -> None:
    (answer,) = json_lines(quiet_box.run_cli("--dry-run", "--json", "--dataset", str(quiet_box.dataset)).stdout)
    assert answer["event"] == "plan"
    assert set(answer["commands"]) == {step["id"] for step in answer["plan"]["steps"]}
    assert answer["gpus"]


def test_a_dataset_that_is_written(quiet_box: ScriptedBox, tmp_path: Path) -> None:
    target = tmp_path / "dataset.toml"
    words = ["dataset", "write", str(quiet_box.dataset), "--output", str(target), "--json"]
    (line,) = json_lines(quiet_box.run_cli(*words).stdout)
    assert line == {"schema": 1, "event": "dataset_written", "dataset": str(target), "kept": None}


_VERB_THAT_ENDS_BADLY = """
import os, signal, sys, time
from wan_train.cli.app import app
from wan_train.cli.main import run

@app.command()
def bad() -> None:
    {body}

sys.exit(run(["bad"]))
"""


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ("raise ZeroDivisionError('broken\\nin two')", 1, r"a bug in wan-train: ZeroDivisionError: broken\nin two"),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(60)", 130, "interrupted"),
    ],
    ids=["bug", "interrupt"],
)
def test_a_bug_and_ctrl_c_are_json_too(quiet_box: ScriptedBox, body: str, code: int, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _VERB_THAT_ENDS_BADLY.replace("{body}", body)],
        env=quiet_box.env(WAN_TRAIN_JSON="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = json_lines(done.stdout)
    assert done.returncode == line["exit_code"] == code
    assert line["message"] == told
    assert done.stderr.startswith(f"error: {told}\n")
    assert "Traceback" not in done.stderr

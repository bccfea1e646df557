"""With `--json`, stdout holds JSON lines and nothing else, whatever happens; docs/json-output.md has their keys."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from cli.conftest import PastRuns
from support.trainers import ScriptedBox
from wan_train import codec
from wan_train.run.events import Event

DOCUMENT = Path(__file__).parents[2] / "docs" / "json-output.md"


def json_lines(text: str) -> list[dict[str, Any]]:
    """Every line as JSON; NaN and Infinity, which no other language reads, are errors."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def documented(heading: str) -> set[str]:
    """The keys in the first column of the table below a heading."""
    text = DOCUMENT.read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"docs/json-output.md has no section {heading!r}"
    return {key for row in re.findall(r"^\| (`.*?`) \|", found[1], re.MULTILINE) for key in re.findall(r"`(\w+)`", row)}


def test_a_run_from_a_script(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train("--json")
    assert done.returncode == 0, done.stderr
    lines = json_lines(done.stdout)
    assert lines[0]["kind"] == "supervisor_started"
    assert {line["kind"] for line in lines[:-1]} >= {"step_started", "step_succeeded", "epoch_ended", "run_finished"}
    result = lines[-1]
    assert result["event"] == "result"
    assert result["exit_code"] == 0
    paths = [step["result"]["path"] for step in result["steps"] if step["result"]]
    assert sorted(paths) == sorted(map(str, scripted_box.run().glob("*.safetensors")))


def test_events_are_those_of_the_journal(past_runs: PastRuns) -> None:
    lines = json_lines(past_runs.box.run_cli("attach", past_runs.finished.name, "--json").stdout)
    assert lines[:-1] == past_runs.box.events(run=past_runs.finished)


def test_the_environment_can_ask_for_json(past_runs: PastRuns) -> None:
    assert json_lines(past_runs.box.run_cli("status", WAN_TRAIN_JSON="1").stdout)[0]["schema"] == 1


def test_detached(scripted_box: ScriptedBox) -> None:
    (line,) = json_lines(scripted_box.run_cli(*scripted_box.train_words("--detach", "--json")).stdout)
    assert line == {"event": "detached", "run_id": scripted_box.run().name, "run_dir": str(scripted_box.run())}
    assert set(line) == documented("Detached")
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
    assert set(line) == documented("Error")


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


def test_documented_keys_of_a_status(past_runs: PastRuns) -> None:
    (status,) = json_lines(past_runs.box.run_cli("status", past_runs.failed.name, "--json").stdout)
    assert set(status) == documented("Status")
    assert {key for step in status["steps"] for key in step} == documented("Step of a status")
    assert {key for gpu in status["gpus"] for key in gpu} == documented("GPU of a status")
    assert set(status["steps"][-1]["progress"]) == documented("Progress of a step")
    assert set(status["steps"][-1]["result"]) == documented("Result of a step")
    (failure,) = [step["failure"] for step in status["steps"] if step["failure"]]
    assert set(failure) == documented("Failure of a step")


def test_documented_keys_of_runs_and_result(past_runs: PastRuns) -> None:
    (runs,) = json_lines(past_runs.box.run_cli("runs", "--json").stdout)
    assert set(runs) == documented("Runs")
    assert len(runs["runs"]) == 3
    assert set(runs["runs"][0]) == documented("Status")
    result = json_lines(past_runs.box.run_cli("attach", "--json").stdout)[-1]
    assert set(result) == documented("Status") | {"event", "report"}


def test_documented_keys_of_explain(past_runs: PastRuns) -> None:
    (told,) = json_lines(past_runs.box.run_cli("explain", past_runs.failed.name, "--json").stdout)
    assert set(told) == documented("Explain")
    assert {key for failure in told["failures"] for key in failure} == {
        "where", "cause", "meaning", "advice", "evidence",
    }  # fmt: skip


def test_documented_keys_of_a_plan(quiet_box: ScriptedBox) -> None:
    (answer,) = json_lines(quiet_box.run_cli("--dry-run", "--json", "--dataset", str(quiet_box.dataset)).stdout)
    assert set(answer) == documented("Dry run")
    assert set(answer["plan"]) == documented("Plan")
    assert {key for step in answer["plan"]["steps"] for key in step} == documented("Step of a plan")
    assert {key for gpu in answer["gpus"] for key in gpu} == documented("GPU of a plan")


@pytest.mark.parametrize("event", get_args(Event), ids=codec.tag_of)
def test_documented_keys_of_every_event(event: type[Any]) -> None:
    named = {field.name for field in dataclasses.fields(event)}
    assert documented(codec.tag_of(event)) == {*named, "kind"}

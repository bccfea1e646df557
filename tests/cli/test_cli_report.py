"""`report` and `compare`: from the records of real runs, over nobody's files, with exit codes for scripts."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.json_output import json_lines
from support.nvml import NvmlStub
from support.past_runs import PastRuns, PreparedBoxes, past_runs_of, train_three
from support.trainers import ScriptedBox
from wan_train.base import codec
from wan_train.run.directory import RunDirectory
from wan_train.run.step_commands import command_of


@pytest.fixture
def clean(prepared_boxes: PreparedBoxes, nvml_stub: NvmlStub) -> Iterator[PastRuns]:
    """Three runs of the test's own to write into."""
    box = prepared_boxes.box("three-past-runs", nvml_stub, train_three)
    yield past_runs_of(box)
    box.close()


def test_a_report_of_a_real_run(clean: PastRuns) -> None:
    done = clean.box.run_cli("report", clean.finished.name)
    assert done.returncode == 0, done.stderr
    page, data = clean.finished / "report.html", clean.finished / "report.json"
    assert done.stdout == f"{page}\n"
    text = page.read_text(encoding="utf-8")
    for said in ("Both LoRAs are ready", "picture number 1, flat colour", "data:image/jpeg;base64,", "train-low"):
        assert said in text
    told = json.loads(data.read_text(encoding="utf-8"))
    assert [each["steps"] for each in told["experts"]] == [9, 9]
    assert told["experts"][0]["loss_source"] == "progress_line"
    assert told["gpus"][0]["total_bytes"] == 32 * 1024**3
    assert told["versions"]["wan_train"]
    for path in (page, data):
        assert path.stat().st_mode & 0o077 == 0


def test_json_prints_what_was_written(clean: PastRuns) -> None:
    done = clean.box.run_cli("report", clean.failed.name, "--json")
    assert done.returncode == 0, done.stderr
    (told,) = json_lines(done.stdout)
    assert told == json.loads((clean.failed / "report.json").read_text(encoding="utf-8"))
    assert told["status"]["state"] == "failed"
    assert any(each["cause"] for each in told["attempts"])


def test_a_report_can_be_made_again(clean: PastRuns) -> None:
    for _ in range(2):
        assert clean.box.run_cli("report", clean.finished.name).returncode == 0


@pytest.mark.parametrize("name", ["report.html", "report.json"])
def test_a_file_of_the_users_own_is_left_alone(clean: PastRuns, name: str) -> None:
    own = clean.finished / name
    own.write_text("my notes", encoding="utf-8")
    done = clean.box.run_cli("report", clean.finished.name)
    assert done.returncode == 2
    assert "was left alone" in done.stderr
    assert own.read_text(encoding="utf-8") == "my notes"


def test_damaged_records_of_gpus_and_steps_cost_only_themselves(clean: PastRuns) -> None:
    (clean.also_finished / "gpus.jsonl").write_bytes(b"\xff{\n[]\n")
    (clean.also_finished / "live.json").write_text("{", encoding="utf-8")
    (clean.also_finished / "train-high/1/command.sh").unlink()
    (clean.also_finished / "train-low/1/output.log").unlink()
    done = clean.box.run_cli("report", clean.also_finished.name)
    assert done.returncode == 0, done.stderr
    assert "No GPU readings were recorded" in (clean.also_finished / "report.html").read_text(encoding="utf-8")


def test_the_line_to_train_again_plans_the_same(clean: PastRuns) -> None:
    """It is run as it stands, but for `--dry-run --json`."""
    line = json.loads(clean.box.run_cli("report", clean.finished.name, "--json").stdout)["again"]
    program, *words = shlex.split(line)
    assert program == "wan-train"
    done = clean.box.run_cli(*words, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)["plan"]
    first = json.loads((clean.finished / "plan.json").read_text(encoding="utf-8"))
    for same in ("task", "t5", "vae"):
        assert again["recipe"][same] == first["recipe"][same]
    for mine, theirs in zip(again["recipe"]["experts"], first["recipe"]["experts"], strict=True):
        assert {**mine, "sources": None} == {**theirs, "sources": None}
    for same in ("models", "devices", "gpu_uuids", "state_every_epochs", "keep_every_epochs", "trainer"):
        assert again[same] == first[same]
    for same in ("items", "captions", "repeats", "batches_per_epoch", "cached_items"):
        assert again["dataset"][same] == first["dataset"][same]
    assert (again["answers"]["title"], again["answers"]["author"]) == (first["answers"]["title"], "me")

    plan = RunDirectory(clean.finished).read_plan()
    for step in again["steps"]:
        first_command = codec.to_json(command_of(plan, plan.step(step["id"])))
        assert step["command"] == json.loads(first_command.replace(str(clean.finished), again["run_dir"]))


def test_runs_are_compared(clean: PastRuns, tmp_path: Path) -> None:
    page = tmp_path / "compared.html"
    words = ("compare", clean.finished.name, clean.failed.name)
    done = clean.box.run_cli(*words, "--html", str(page))
    assert done.returncode == 0, done.stderr
    assert clean.finished.name in done.stdout
    assert "compared" in page.read_text(encoding="utf-8")
    told = json.loads(clean.box.run_cli(*words, "--json").stdout)
    assert [each["status"]["state"] for each in told["runs"]] == ["finished", "failed"]
    page.write_text("my notes", encoding="utf-8")
    refused = clean.box.run_cli(*words, "--html", str(page))
    assert refused.returncode == 2
    assert page.read_text(encoding="utf-8") == "my notes"


@pytest.mark.parametrize("count", [1, 2])
def test_comparing_takes_two_different_runs(past_runs: PastRuns, count: int) -> None:
    done = past_runs.box.run_cli("compare", *[past_runs.finished.name] * count)
    assert done.returncode == 2
    assert "1 was named" in done.stderr


def test_no_runs_no_report(quiet_box: ScriptedBox) -> None:
    done = quiet_box.run_cli("report")
    assert done.returncode == 2
    assert "there are no runs" in done.stderr

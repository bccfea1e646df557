"""`--then`, `--max-hours` and `--grace`: what cannot be kept is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.runs import events_of, make_plan
from support.vast_api import vast_api
from wan_train.base.clock import SystemClock, moment
from wan_train.cli.main import run
from wan_train.run.directory import RunDirectory
from wan_train.run.duties import Duties, Then, read_duties, write_duties
from wan_train.run.events import Journal
from wan_train.run.state import JobState


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(["rehearse", *words]) == 2
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def no_vast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CONTAINER_ID", "CONTAINER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WAN_TRAIN_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("WAN_TRAIN_LEASE_DIR", str(tmp_path / "leases"))


def test_a_stop_without_vast_names_what_works_instead(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = refused(capsys, "--then", "stop")
    assert "CONTAINER_API_KEY" in said
    assert "--then 'run:sudo poweroff'" in said
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_destroy_without_an_upload_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the results would be gone" in refused(capsys, "--then", "destroy")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--then", "halt"], "'halt' is not an ending"),
        (["--then", "run:"], "names no command"),
        (["--then", "run:echo 'a"], "no closing quotation"),
        (["--then", "run:no-such-program now"], "there is no program 'no-such-program'"),
        (["--max-hours", "6"], "--max-hours needs an ending"),
        (["--max-hours", "0", "--then", "run:true"], "--max-hours 0 is out of range"),
        (["--max-hours", "nan", "--then", "run:true"], "--max-hours nan is out of range"),
        (["--grace", "-1"], "--grace -1 is out of range"),
        (["--grace", "inf"], "--grace inf is out of range"),
    ],
)
def test_what_cannot_be_kept_is_refused(capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    said = refused(capsys, *words)
    assert told in said
    assert "hint:" in said


@pytest.mark.parametrize(
    "words",
    [
        ("--then", "nothing"),
        ("--upload", "rclone:shelf:loras"),
        ("--upload-with", "samples"),
        ("--notify", "ntfy://topic"),
    ],
)
def test_resuming_all_takes_no_ending(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    assert run(["resume", "--all", *words]) == 2
    said = capsys.readouterr().err
    assert f"so {words[0]} cannot be given with it" in said
    assert "hint:" in said


@pytest.mark.parametrize("wrong", [{"CONTAINER_API_KEY": "of-another-box"}, {"CONTAINER_ID": "7000002"}])
def test_a_box_that_vast_will_not_end_starts_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: dict[str, str]
) -> None:
    with vast_api() as api:
        for name, value in api.environ(**wrong).items():
            monkeypatch.setenv(name, value)
        assert run(["rehearse", "--then", "stop", "--detach"]) == 3
    said = capsys.readouterr().err
    assert "nothing was started: --then stop would fail: Vast " in said
    assert next(iter(wrong)) in said
    assert "hint:" in said
    assert not list(tmp_path.glob("runs/*/plan.json"))


def test_a_finished_run_takes_another_ending(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = make_plan(run_dir=tmp_path / "runs" / "20261122-141500-mylora")
    plan.run_dir.mkdir(parents=True)
    run_dir = RunDirectory(plan.run_dir)
    run_dir.write_plan(plan)
    journal = Journal(run_dir.events)
    for event in events_of(plan, {step.id: JobState.SUCCEEDED for step in plan.steps}, exit_code=0):
        journal.append(event)
    journal.close()
    write_duties(run_dir, Duties(began=moment(SystemClock()), then=Then.COMMAND, command=("true",), max_hours=900.0))
    assert run(["resume", plan.run_id, "--then", "nothing"]) == 0
    taken_back = read_duties(run_dir)
    assert taken_back is not None
    assert (taken_back.then, taken_back.max_hours) == (Then.NOTHING, None)
    capsys.readouterr()
    with vast_api() as api:
        for name, value in api.environ(CONTAINER_API_KEY="of-another-box").items():
            monkeypatch.setenv(name, value)
        assert run(["resume", plan.run_id, "--then", "stop"]) == 3
        assert "--then stop would fail" in capsys.readouterr().err
        for name, value in api.environ().items():
            monkeypatch.setenv(name, value)
        assert run(["resume", plan.run_id, "--then", "stop"]) == 0
        assert "The box will be stopped once its last run is over." in capsys.readouterr().err
        duties = read_duties(run_dir)
        assert duties is not None
        assert duties.then is Then.STOP
        run_dir.duties.unlink()  # so that the guardian, which was started, ends

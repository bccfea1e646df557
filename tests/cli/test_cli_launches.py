"""Launches that exist, carried out by a program of the test: start, attach, status, stop, logs, reap."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from support.json_output import json_lines
from support.runs import events_of, make_plan
from support.vast_account import Account, box_row
from wan_train.base import codec
from wan_train.base.settings import Settings, user_data_dir
from wan_train.cli.main import run
from wan_train.launch import background
from wan_train.launch.launch_directory import LaunchDirectory, all_launches, directory_of, new
from wan_train.launch.model import Box, BoxState, Halt, Job, JobState, Launch, Offer, Wants
from wan_train.launch.sky_home import stamp
from wan_train.recipe.terms import Expert
from wan_train.run.directory import RunDirectory
from wan_train.run.events import Journal
from wan_train.run.state import JobState as StepState

OFFER = Offer(id="1", machine="m", gpu="RTX 4090", gpus=1, gpu_bytes=24 * 10**9, per_hour=0.36)
JOB = Job(name="cats", title="cats", dataset=Path("cats"), dataset_stamp="", options=())


@dataclass(slots=True)
class Program:
    """Stands for the program that carries a launch out: it ends every job as `state` at once."""

    state: JobState = JobState.DONE
    started: list[str] = field(default_factory=list)

    def start(self, directory: LaunchDirectory, _: Settings) -> None:
        launch = directory.read()
        self.started.append(launch.id)
        halt = directory.requested()
        state = self.state if halt is None else JobState.STOPPED
        boxes = tuple(replace(box, state=BoxState.GONE, ended=box.began + 600) for box in launch.boxes)
        jobs = tuple(replace(job, state=state) for job in launch.jobs)
        because = "stopped by you" if halt is not None else ""
        directory.write(replace(launch, jobs=jobs, boxes=boxes, halt=halt, halted_because=because))
        directory.log.write_text("it was carried out\n")


@pytest.fixture
def program(account: Account, monkeypatch: pytest.MonkeyPatch) -> Program:
    """With an environment of SkyPilot that is there already."""
    assert account.address
    ready = user_data_dir() / "sky/env/ready"
    ready.parent.mkdir(parents=True)
    ready.write_text(stamp())
    found = Program()
    monkeypatch.setattr(background, "start", found.start)
    return found


def launched(**more: object) -> LaunchDirectory:
    """A launch with one job that trains on one box."""
    directory = new(Path("runs").absolute())
    box = Box(name=f"wt-{directory.path.name}-001", offer=OFFER, state=BoxState.READY, began=0.0, job="cats")
    launch = Launch(
        id=directory.path.name,
        created=0.0,
        wants=Wants(max_hours=12),
        jobs=(replace(JOB, state=JobState.TRAINING),),
        boxes=(box,),
    )
    directory.write(replace(launch, **more))  # type: ignore[arg-type]  # fields of a launch
    return directory


def over() -> LaunchDirectory:
    return launched(jobs=(replace(JOB, state=JobState.DONE),), boxes=())


def test_a_launch_is_on_disk_before_its_program_starts(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["launch", "cats", "dogs", "--yes", "--epochs", "7", "--json"]) == 0
    plan, *looks = json_lines(capsys.readouterr().out)
    assert plan["event"] == "launch_plan"
    assert looks[-1]["over"] is True
    [directory] = all_launches(Path("runs"))
    launch = directory.read()
    assert program.started == [launch.id]
    assert [job.options for job in launch.jobs] == [("--epochs", "7")] * 2
    assert (launch.wants.max_per_hour, launch.wants.max_hours, launch.wants.budget) == (0.53, 24, 12.72)
    assert launch.wants.least_driver
    assert launch.wants.tasks == ("t2v",)


def test_a_detached_launch_prints_its_id_alone(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["launch", "cats", "--yes", "--detach"]) == 0
    out, err = capsys.readouterr()
    assert out.split()[-1:] == program.started
    assert f"wan-train launch attach {program.started[0]}" in err


@pytest.mark.parametrize(("state", "code"), [(JobState.DONE, 0), (JobState.FAILED, 4)])
def test_attach_carries_on_what_nobody_does(
    program: Program, capsys: pytest.CaptureFixture[str], state: JobState, code: int
) -> None:
    program.state = state
    directory = launched()
    assert run(["launch", "attach"]) == code
    assert program.started == [directory.path.name]
    out, err = capsys.readouterr()
    assert f"Launch {directory.path.name} was not running" in err
    assert f"cats: {state}" in out


@pytest.mark.parametrize(
    ("states", "gave_up", "code"),
    [
        ((JobState.DONE, JobState.DONE), False, 0),
        ((JobState.DONE, JobState.FAILED), False, 5),
        ((JobState.FAILED, JobState.FAILED), False, 4),
        ((JobState.DONE, JobState.STOPPED), False, 7),
        ((JobState.DONE, JobState.STOPPED), True, 3),
    ],
)
def test_the_exit_code_is_that_of_what_came_of_the_jobs(
    program: Program, states: tuple[JobState, ...], *, gave_up: bool, code: int
) -> None:
    jobs = tuple(replace(JOB, name=str(number), state=state) for number, state in enumerate(states))
    launched(jobs=jobs, boxes=(), gave_up=gave_up)
    assert run(["launch", "attach"]) == code
    assert program.started == []


def test_a_stop_is_on_disk_and_somebody_carries_it_out(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    directory = launched()
    assert run(["launch", "stop", directory.path.name[:4]]) == 0
    assert directory.requested() is Halt.SAVE
    assert program.started == [directory.path.name]
    assert "results come home, then 1 box is destroyed" in capsys.readouterr().err
    assert run(["launch", "attach"]) == 130


def test_what_is_over_needs_no_program_and_no_key(
    program: Program, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    over()
    monkeypatch.delenv("VAST_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(["launch", "stop"]) == 0
    assert "is already over. It has no rented boxes." in capsys.readouterr().err
    assert run(["launch", "attach"]) == 0
    assert run(["launch", "status", "--json"]) == 0
    assert json_lines(capsys.readouterr().out.splitlines()[-1])[0]["jobs"][0]["state"] == "done"
    assert program.started == []


def test_a_launch_that_rented_nothing_ends_without_a_program_and_a_key(
    program: Program, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    directory = launched(jobs=(replace(JOB, state=JobState.WAITING),), boxes=())
    monkeypatch.delenv("VAST_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(["launch", "stop"]) == 0
    assert "ends; nothing is rented" in capsys.readouterr().err
    assert directory.read().is_over
    assert [job.state for job in directory.read().jobs] == [JobState.STOPPED]
    assert run(["launch", "attach"]) == 130
    assert "not running" not in capsys.readouterr().err
    assert program.started == []


def test_a_launch_is_not_carried_on_without_a_key(
    program: Program, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launched()
    monkeypatch.delenv("VAST_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    for command in ("attach", "stop"):
        assert run(["launch", command]) == 3
        assert "no Vast.ai key was found" in capsys.readouterr().err
    assert program.started == []


def test_every_command_ends_boxes_that_a_launch_left_and_names_launches_without_a_program(
    program: Program, account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, alone = over(), launched()
    account.boxes = [
        box_row(1, f"wt-{ended.path.name}-001"),
        box_row(2, "somebody else's"),
        box_row(3, f"wt-{alone.path.name}-001"),
        box_row(4, "wt-0123abcd-001"),
    ]
    assert run(["launch", "status", ended.path.name]) == 0
    said = capsys.readouterr().err
    assert [box["id"] for box in account.boxes] == [2, 3, 4]
    assert f"Ended a forgotten box: 1, wt-{ended.path.name}-001, $0.50/h" in said
    assert "To end it: wan-train launch reap 0123abcd" in said
    assert f"Launch {alone.path.name} is unfinished and not running" in said
    assert program.started == []


def test_boxes_of_another_computer_end_only_by_their_name(
    program: Program, account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    account.boxes = [box_row(4, "wt-0123abcd-001"), box_row(5, "wt-0123abcd-002"), box_row(6, "wt-89abcdef-001")]
    assert run(["launch", "reap", "--json"]) == 0
    out, err = capsys.readouterr()
    [line] = json_lines(out)
    assert "elsewhere" not in err
    assert (line["ended"], len(line["others"])) == ([], 3)
    assert run(["launch", "reap", "0123abcd"]) == 2
    assert "without a terminal, --yes is required" in capsys.readouterr().err
    assert len(account.boxes) == 3
    assert run(["launch", "reap", "0123abcd", "--yes"]) == 0
    assert [box["id"] for box in account.boxes] == [6]
    assert run(["launch", "reap", "wt-1"]) == 2
    assert program.started == []


def test_a_living_launch_is_stopped_rather_than_reaped(
    program: Program, account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = launched()
    assert run(["launch", "reap", directory.path.name, "--yes"]) == 2
    assert f"`wan-train launch stop {directory.path.name}`" in capsys.readouterr().err
    account.boxes = [box_row(4, f"wt-{directory.path.name}-001")]
    with directory.held():
        assert run(["launch", "reap", directory.path.name, "--yes"]) == 2
    assert account.boxes
    assert program.started == []


def test_logs_are_those_of_the_program(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    directory = over()
    assert run(["launch", "logs"]) == 3
    program.start(directory, Settings())
    capsys.readouterr()
    assert run(["launch", "logs", "-f", "--json"]) == 0
    assert [line["text"] for line in json_lines(capsys.readouterr().out)] == ["it was carried out"]


def test_a_damaged_record_names_what_is_left_to_do(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    directory = over()
    directory.record.write_text("{")
    assert run(["launch", "status"]) == 3
    said = capsys.readouterr().err
    assert "If it was on Vast, see its boxes at https://cloud.vast.ai/instances/" in said
    assert f"`wan-train launch reap {directory.path.name}`" in said
    for infra, told in (("vast", "See its boxes at https://cloud.vast.ai"), ("runpod", "in the console of runpod")):
        directory = launched(wants=Wants(max_hours=12, infra=infra))
        directory.record.write_text(directory.record.read_text()[:-20])
        assert run(["launch", "status", directory.path.name]) == 3
        said = capsys.readouterr().err
        assert told in said
        assert ("launch reap" in said) == (infra == "vast")
    assert program.started == []


def test_a_launch_elsewhere_needs_no_key_of_vast(
    program: Program, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = launched(wants=Wants(max_hours=12, infra="runpod"))
    with monkeypatch.context() as without:
        without.delenv("VAST_API_KEY")
        without.setenv("HOME", str(tmp_path))
        assert run(["launch", "status", elsewhere.path.name]) == 0
        said = capsys.readouterr().err
        assert "Vast" not in said
        assert f"wan-train launch attach {elsewhere.path.name}" in said
        launched()
        assert run(["launch", "status", elsewhere.path.name]) == 0
        assert "Could not look for leftover boxes: no Vast.ai key was found" in capsys.readouterr().err
    assert run(["launch", "reap"]) == 0
    assert "Looking at Vast only. For leftover boxes elsewhere see the console of runpod." in capsys.readouterr().err
    assert program.started == []


def test_without_a_launch_it_says_how_to_start_one(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["launch", "status"]) == 2
    assert "`wan-train launch DATASET`" in capsys.readouterr().err
    assert program.started == []


def test_without_credit_or_room_at_home_nothing_is_rented(
    program: Program, account: Account, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")._replace(free=10**9)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage)
        assert run(["launch", "cats", "--yes"]) == 3
    assert "the results need 8.6 GB in" in capsys.readouterr().err
    account.credit = 0.2
    assert run(["launch", "cats", "--yes"]) == 3
    assert "your credit at Vast.ai is $0.20, an hour costs $0.35" in capsys.readouterr().err
    assert program.started == []
    assert not directory_of(Path("runs"), "").path.exists()


def test_two_launches_at_once_know_of_each_other(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    directory = launched()
    with directory.held():
        assert run(["launch", "cats", "--dry-run"]) == 0
    assert f"Launch {directory.path.name} is also running, with 1 box." in capsys.readouterr().err
    assert program.started == []


def test_the_loras_that_are_home_are_named(
    program: Program, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    home = tmp_path / "runs/a-run"
    home.mkdir(parents=True)
    launched(jobs=(replace(JOB, state=JobState.DONE, home=home),), boxes=())
    assert run(["launch", "attach"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(home), "without a plan the folder is named"
    plan = make_plan(run_dir=home)
    RunDirectory(home).plan.write_text(codec.to_json(plan))
    produced = [step.produces for step in plan.steps if step.produces is not None]
    (home / f"{produced[0]}.safetensors").touch()
    assert run(["launch", "attach"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(home / f"{produced[0]}.safetensors")
    assert program.started == []


@pytest.fixture
def at_home(program: Program, tmp_path: Path) -> RunDirectory:
    """A run whose first LoRA is home; its records have the paths of a box."""
    assert not program.started
    run_dir = RunDirectory(tmp_path / "runs/20261122-141500-cats")
    run_dir.path.mkdir(parents=True)
    there = Path("/workspace/wan-train-runs/20261122-141500-cats")
    plan = make_plan(run_dir=there)
    run_dir.plan.write_text(codec.to_json(plan))
    trained = {step.id: StepState.SUCCEEDED for step in plan.steps if step.expert is not Expert.LOW}
    journal = Journal(run_dir.events)
    for event in events_of(plan, trained):
        journal.append(event)
    journal.close()
    return run_dir


def test_a_run_at_home_names_its_files_here(at_home: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--json"]) == 0
    [line] = json_lines(capsys.readouterr().out)
    paths = [step["result"]["path"] for step in line["steps"] if step["result"] is not None]
    assert [Path(path).parent for path in paths] == [at_home.path]
    assert run(["status"]) == 0
    said = capsys.readouterr().out
    assert "/workspace" not in said
    assert "Download" not in said


@pytest.mark.parametrize("command", ["attach", "resume", "stop"])
def test_a_run_that_a_rented_box_trains_is_not_trained_here_too(
    at_home: RunDirectory, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    directory = launched(jobs=(replace(JOB, state=JobState.WAITING, home=at_home.path),))
    before = at_home.events.read_bytes()
    assert run([command]) == 2
    assert f"`wan-train launch attach {directory.path.name}`" in capsys.readouterr().err
    assert run(["resume", "--all"]) == 0
    assert run(["status"]) == 0
    assert f"trains on a rented box:\n  wan-train launch attach {directory.path.name}\n" in capsys.readouterr().out
    assert at_home.events.read_bytes() == before
    assert sorted(path.name for path in at_home.path.iterdir()) == ["events.jsonl", "plan.json"]

"""Runs that the version before wrote (plans of schema 2, journals with process groups) are read and resumed."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import pytest

from wan_train.base.errors import ExitCode
from wan_train.run.attempts import next_attempt
from wan_train.run.directory import RunDirectory
from wan_train.run.events import Journal, RunResumed, read_events
from wan_train.run.state import JobState, fold_all
from wan_train.run.step_commands import command_of

RECORDS = Path(__file__).with_name("old_runs")


def copy(name: str, runs: Path) -> RunDirectory:
    """A run directory with the records of an old one, and nothing else."""
    run = RunDirectory(runs / name)
    run.path.mkdir()
    for record in (RECORDS / name).iterdir():
        text = record.read_text(encoding="utf-8").replace("@RUN@", str(run.path)).replace("@RUNS@", str(runs))
        (run.path / record.name).write_text(text, encoding="utf-8")
    return run


def write_state(folder: Path) -> None:
    folder.mkdir(parents=True)
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", 1.0))
    for name in ("optimizer.bin", "random_states_0.pkl", "scheduler.bin"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", b"numbers" * 20)


def test_a_finished_run_is_read(tmp_path: Path) -> None:
    run = copy("finished", tmp_path)
    plan = run.read_plan()
    state = fold_all(plan, read_events(run.events))
    assert state.finished is not None
    assert state.finished.exit_code == ExitCode.DONE
    assert {job.state for job in state.jobs.values()} == {JobState.SUCCEEDED}
    low = state.jobs["train-low"]
    assert (low.result.epochs if low.result is not None else None) == plan.epochs == 4


@pytest.mark.parametrize("name", ["finished", "stopped"])
def test_derived_commands_are_those_that_were_in_the_plan(name: str, tmp_path: Path) -> None:
    run = copy(name, tmp_path)
    plan = run.read_plan()
    old = {step["id"]: step["command"] for step in json.loads(run.plan.read_bytes())["steps"]}
    for step in plan.steps:
        command = command_of(plan, step)
        assert list(command.argv) == old[step.id]["argv"]
        assert (command.cwd, dict(command.env)) == (old[step.id]["cwd"], old[step.id]["env"])


def test_a_plan_written_again_is_the_same(tmp_path: Path) -> None:
    run = copy("stopped", tmp_path)
    plan = run.read_plan()
    run.write_plan(plan)
    assert run.read_plan() == plan


def test_a_stopped_run_resumes_from_its_newest_state(tmp_path: Path) -> None:
    run = copy("stopped", tmp_path)
    plan = run.read_plan()
    before = fold_all(plan, read_events(run.events))
    assert {step: job.state for step, job in before.jobs.items() if step.startswith("train")} == {
        "train-high": JobState.STOPPED,
        "train-low": JobState.STOPPED,
    }
    saved = before.jobs["train-low"].attempts[-1].last_state
    assert saved is not None
    write_state(Path(saved.path))
    journal = Journal(run.events)
    journal.append(RunResumed(at=saved.at + 1000))
    journal.close()
    state = fold_all(plan, read_events(run.events))
    step = plan.step("train-low")
    assert state.jobs[step.id].state is JobState.WAITING
    following = next_attempt(run, plan, state, step, 2, seconds_per_step=1.0)
    assert (following.epochs_before, following.spec.total_epochs) == (saved.epoch, 1500)
    argv = command_of(plan, step, following.spec).argv
    assert argv[argv.index("--resume") + 1] == saved.path
    steps_per_epoch = 8
    assert following.spec.stop_at_step == (1500 - saved.epoch) * steps_per_epoch
    assert argv[argv.index("--output_dir") + 1] == str(run.attempt(step.id, 2).output)

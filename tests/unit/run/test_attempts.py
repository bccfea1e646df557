"""Which state a training goes on from: the newest that is complete and finite, judged by content."""

from __future__ import annotations

import json
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.runs import SUPERVISOR, T0, make_plan, with_settings
from wan_train.recipe.terms import EngineKind, Expert
from wan_train.run.attempts import (
    ResumePoint,
    find_resume_point,
    remove_old_checkpoints,
    seconds_between_states,
    state_every_epochs,
)
from wan_train.run.directory import RunDirectory
from wan_train.run.plan import Plan
from wan_train.run.state import Attempt, Job

STEP = "train-high"
FILES = ["model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl"]
FIRST = Attempt(
    number=1, gpu_uuid=None, gpu_label=None, identity=SUPERVISOR, started=T0, total_epochs=10, total_steps=30
)
SECOND = replace(FIRST, number=2, epochs_before=4)


@pytest.fixture(params=["fp16", "bf16"])
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> Plan:
    made = make_plan(run_dir=tmp_path / "run", epochs=10, experts=(Expert.HIGH,))
    return replace(made, recipe=with_settings(made.recipe, mixed_precision=request.param))


def files(plan: Plan) -> list[str]:
    return [*FILES, *(["scaler.pt"] if plan.training(Expert.HIGH).mixed_precision == "fp16" else [])]


def state(plan: Plan, number: int, ending: str, *, value: float = 1.0) -> Path:
    folder = RunDirectory(plan.run_dir).attempt(STEP, number).output / f"{plan.step(STEP).produces}{ending}"
    folder.mkdir(parents=True)
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / FILES[0]).write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", value))
    for name in files(plan)[1:]:
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", b"numbers" * 20)
    return folder


def point(plan: Plan, *attempts: Attempt, total: int = 10) -> ResumePoint | None:
    job = Job(step=STEP, attempts=attempts or (FIRST,))
    return find_resume_point(RunDirectory(plan.run_dir), plan, plan.step(STEP), job, total)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_a_state_that_lacks_anything_gives_way_to_the_one_before(plan: Plan, damage: str) -> None:
    before = state(plan, 1, "-000002-state")
    newest = state(plan, 1, "-000004-state")
    for name in files(plan):
        path = newest / name
        whole = path.read_bytes()
        match damage:
            case "missing":
                path.unlink()
            case "empty":
                path.write_bytes(b"")
            case _:
                path.write_bytes(whole[:-1])
        found = point(plan)
        assert found is not None, name
        assert (found.state_dir, found.epochs_done, found.steps_per_epoch) == (before, 2, 3), name
        path.write_bytes(whole)
    found = point(plan)
    assert found is not None
    assert found.state_dir == newest


def test_numbers_that_are_not_finite_are_not_continued(plan: Plan) -> None:
    before = state(plan, 1, "-000002-state")
    state(plan, 1, "-000004-state", value=float("nan"))
    found = point(plan)
    assert found is not None
    assert found.state_dir == before


def test_epochs_count_over_all_attempts(plan: Plan) -> None:
    state(plan, 1, "-000004-state")
    newer = state(plan, 2, "-000002-state")
    found = point(plan, FIRST, SECOND)
    assert found is not None
    assert (found.state_dir, found.epochs_done) == (newer, 6)


def test_states_of_surplus_epochs_and_of_all_epochs_continue_nothing(plan: Plan) -> None:
    good = state(plan, 2, "-000004-state")
    state(plan, 2, "-000008-state")  # four more than are wanted: the supervisor was dead
    done = state(plan, 2, "-step00000018-state")
    found = point(plan, FIRST, SECOND)
    assert found is not None
    assert found.state_dir == good
    longer = point(plan, FIRST, SECOND, total=15)
    assert longer is not None
    assert (longer.state_dir, longer.epochs_done) == (done, 10)


def test_the_last_state_of_a_straight_training_holds_all_its_epochs(plan: Plan) -> None:
    last = state(plan, 1, "-state")
    assert point(plan) is None
    longer = point(plan, total=12)
    assert longer is not None
    assert (longer.state_dir, longer.epochs_done) == (last, 10)


def test_a_trainer_that_ran_past_its_end_leaves_no_state_that_is_taken_for_the_end(plan: Plan) -> None:
    """It was to end after epoch 6 of 10, and nobody was there: its last state holds 10."""
    early = replace(FIRST, total_epochs=6, schedule_epochs=10)
    state(plan, 1, "-state")
    state(plan, 1, "-000008-state")
    end = state(plan, 1, "-step00000018-state")
    found = point(plan, early, total=10)
    assert found is not None
    assert (found.state_dir, found.epochs_done) == (end, 6)


def test_old_loras_go_but_the_newest_two_and_those_that_are_yet_to_be_kept(plan: Plan) -> None:
    plan = replace(plan, keep_every_epochs=2)
    run, step = RunDirectory(plan.run_dir), plan.step(STEP)
    names = {epoch: f"{step.produces}-{epoch:06d}.safetensors" for epoch in range(1, 7)}
    first, second = (run.attempt(STEP, number).output for number in (1, 2))
    for output in (first, second):
        output.mkdir(parents=True)
    loras = [first / names[1], first / names[2], first / names[3], first / names[4], second / names[1]]
    loras += [second / names[2], second / names[6]]  # epochs 5 and 6 of all, and 10: the last is the result's
    for path in (*loras, run.path / names[2]):  # that of epoch 2 is kept already
        path.touch()
    remove_old_checkpoints(run, plan, step, Job(step=STEP, attempts=(FIRST, SECOND)))
    assert [path for path in loras if path.exists()] == [first / names[4], second / names[2], second / names[6]]


def test_without_a_single_step_there_is_nothing_to_continue(plan: Plan) -> None:
    state(plan, 1, "-000002-state")
    assert point(plan, replace(FIRST, total_steps=None)) is None


def test_a_rehearsal_has_no_scaler(plan: Plan) -> None:
    rehearsal = replace(plan, trainer=replace(plan.trainer, kind=EngineKind.REHEARSAL))
    folder = state(plan, 1, "-000002-state")
    (folder / "scaler.pt").unlink(missing_ok=True)
    assert point(rehearsal) is not None


def test_a_trainer_that_was_seen_to_write_fewer_files_is_believed(plan: Plan) -> None:
    folder = state(plan, 1, "-000004-state")
    (folder / "scheduler.bin").unlink()
    assert point(plan) is None  # nobody has seen its writer train on
    left = tuple(name for name in files(plan) if name != "scheduler.bin")
    found = point(plan, replace(FIRST, state_files=left))
    assert found is not None
    assert found.state_dir == folder


def test_a_trainer_that_was_seen_to_write_more_files_is_believed(plan: Plan) -> None:
    state(plan, 1, "-000004-state")
    assert point(plan) is not None
    assert point(plan, replace(FIRST, state_files=(*files(plan), "dl_state_dict.bin"))) is None


UNTRAINED = Attempt(number=1, gpu_uuid=None, gpu_label=None, identity=SUPERVISOR, started=T0)
EPOCHS = st.integers(1, 500)


@given(EPOCHS, st.integers(0, 499), st.none() | st.integers(1, 100), st.floats(0.0, 1e5))
def test_every_checkpoint_that_was_asked_for_falls_on_a_state(
    missing: int, done: int, keep: int | None, epoch_seconds: float
) -> None:
    every = state_every_epochs(missing=missing, done=done, keep=keep, epoch_seconds=epoch_seconds)
    assert 1 <= every <= missing
    assert every == 1 or every * epoch_seconds <= 300 * 1.5
    if keep is not None:
        wanted = [epoch - done for epoch in range(done + 1, done + missing) if epoch % keep == 0]
        assert all(local % every == 0 for local in wanted)


def test_a_small_budget_brings_checkpoints_closer_together() -> None:
    assert [seconds_between_states(paid) for paid in (None, 100_000.0, 2_000.0, 10.0)] == [300.0, 300.0, 100.0, 5.0]
    assert state_every_epochs(missing=100, done=0, keep=None, epoch_seconds=20.0, seconds=100.0) == 5


def test_about_five_minutes() -> None:
    assert state_every_epochs(missing=100, done=0, keep=None, epoch_seconds=60.0) == 5
    assert state_every_epochs(missing=100, done=0, keep=None, epoch_seconds=900.0) == 1
    assert state_every_epochs(missing=100, done=0, keep=10, epoch_seconds=60.0) == 5
    assert state_every_epochs(missing=97, done=3, keep=10, epoch_seconds=60.0) == 1


@given(EPOCHS, st.data(), st.integers(1, 50))
def test_a_resumed_attempt_makes_what_is_missing(total: int, data: st.DataObject, steps: int) -> None:
    done = data.draw(st.integers(0, total - 1))
    goal = replace(UNTRAINED, total_epochs=total, epochs_before=done, total_steps=total * steps).target
    if done == 0:
        assert goal is None
    else:
        assert goal is not None
        assert (goal.epochs + done, goal.steps + done * steps) == (total, total * steps)

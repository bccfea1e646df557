"""How far a LoRA moved between its states: what is measured, when, and the word for it."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from support.runs import SUPERVISOR, T0, make_plan, with_settings
from wan_train.recipe.terms import Expert
from wan_train.run.directory import RunDirectory
from wan_train.run.events import MovementMeasured, StepStarted
from wan_train.run.movement import Learning, MovementMeter, learning
from wan_train.run.plan import Plan
from wan_train.run.state import Attempt, Job, JobState, fold, initial

STEP = "train-high"
ATTEMPT = Attempt(
    number=1,
    gpu_uuid=None,
    gpu_label=None,
    identity=SUPERVISOR,
    started=T0,
    total_epochs=10,
    total_steps=30,
    epochs_done=10,
)


def moved(epoch: int, relative: float, *, since: int | None = None) -> MovementMeasured:
    return MovementMeasured(
        at=T0, step=STEP, since_epoch=epoch - 2 if since is None else since, epoch=epoch, relative=relative
    )


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    made = make_plan(run_dir=tmp_path / "run", epochs=10, experts=(Expert.HIGH,))
    return replace(made, recipe=with_settings(made.recipe, mixed_precision="bf16"))


def started(number: int, *, epochs_before: int = 0) -> StepStarted:
    return StepStarted(
        at=T0,
        step=STEP,
        attempt=number,
        gpu_uuid=None,
        gpu_label=None,
        identity=SUPERVISOR,
        epochs_before=epochs_before,
    )


def save_state(plan: Plan, ending: str, *, scale: float, kind: str = "lora", attempt: int = 1) -> Path:
    folder = RunDirectory(plan.run_dir).attempt(STEP, attempt).output / f"{plan.step(STEP).produces}{ending}"
    folder.mkdir(parents=True)
    down, up = np.ones((2, 5), np.float32), np.full((7, 2), scale, np.float32)
    save_file({f"blocks_0.{kind}_down.weight": down, f"blocks_0.{kind}_up.weight": up}, folder / "model.safetensors")
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", b"numbers")
    return folder


def test_the_two_newest_states_are_compared_once_and_may_be_removed_meanwhile(plan: Plan) -> None:
    meter = MovementMeter(RunDirectory(plan.run_dir), plan, lambda: T0)
    job = Job(step=STEP, attempts=(ATTEMPT,))
    step = plan.step(STEP)
    save_state(plan, "-000002-state", scale=1.0)
    meter.look(step, job)
    assert list(meter.take(wait=True)) == [], "one state has not moved"
    newest = save_state(plan, "-000004-state", scale=1.25)
    meter.look(step, job)
    (newest / "model.safetensors").unlink()
    meter.look(step, job)
    assert list(meter.take(wait=True)) == [moved(4, pytest.approx(0.2, rel=1e-6))]
    assert list(meter.take(wait=True)) == []


def test_what_the_journal_knows_is_not_measured_again(plan: Plan) -> None:
    for epoch, scale in ((2, 1.0), (4, 1.25)):
        save_state(plan, f"-{epoch:06d}-state", scale=scale)
    meter = MovementMeter(RunDirectory(plan.run_dir), plan, lambda: T0)
    meter.look(plan.step(STEP), Job(step=STEP, attempts=(ATTEMPT,), movements=(moved(4, 0.2),)))
    assert list(meter.take(wait=True)) == []


def test_a_network_without_rank_factors_trains_on_unmeasured(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    for epoch in (2, 4):
        save_state(plan, f"-{epoch:06d}-state", scale=1.0, kind="hada_w1")
    meter = MovementMeter(RunDirectory(plan.run_dir), plan, lambda: T0)
    meter.look(plan.step(STEP), Job(step=STEP, attempts=(ATTEMPT,)))
    assert list(meter.take(wait=True)) == []
    assert "train-high is not measured" in capsys.readouterr().out


@given(
    relative=st.floats(1e-9, 10, allow_nan=False),
    every=st.integers(1, 50),
    total=st.integers(50, 1000),
)
def test_the_word_follows_the_pace_and_not_the_interval_between_states(relative: float, every: int, total: int) -> None:
    tenth = relative * total / 10 / every
    word = learning(moved(every, relative, since=0), total)
    assert (word is Learning.SETTLED) == (tenth <= 0.005)
    assert (word is Learning.LEARNING) == (tenth > 0.05)


@pytest.mark.parametrize(
    ("since", "epoch", "relative", "word"),
    [
        (10, 20, 0.37, Learning.LEARNING),
        (30, 40, 0.035, Learning.SETTLING),
        (50, 60, 0.0025, Learning.SETTLED),
    ],
)
def test_the_words_of_the_schedule_as_it_was_measured(since: int, epoch: int, relative: float, word: Learning) -> None:
    assert learning(moved(epoch, relative, since=since), 100) is word


def test_epochs_that_are_trained_again_replace_their_movement(plan: Plan) -> None:
    state = initial(plan)
    for event in (moved(2, 0.5), moved(4, 0.3), moved(6, 0.2), moved(4, 0.31)):
        state = fold(state, event)
    assert state.jobs[STEP].movements == (moved(2, 0.5), moved(4, 0.31))


def test_an_attempt_that_begins_anew_has_not_moved_yet(plan: Plan) -> None:
    state = initial(plan)
    for event in (started(1), moved(2, 0.5), moved(4, 0.3), started(2, epochs_before=2)):
        state = fold(replace(state, jobs={STEP: replace(state.jobs[STEP], state=JobState.WAITING)}), event)
    assert state.jobs[STEP].movements == (moved(2, 0.5),)
    state = fold(replace(state, jobs={STEP: replace(state.jobs[STEP], state=JobState.WAITING)}), started(3))
    assert state.jobs[STEP].movements == ()


def test_states_of_an_attempt_that_was_given_up_are_not_compared_with_those_of_the_next(plan: Plan) -> None:
    for epoch in (2, 4, 6):
        save_state(plan, f"-{epoch:06d}-state", scale=float(epoch))
    meter = MovementMeter(RunDirectory(plan.run_dir), plan, lambda: T0)
    again = replace(ATTEMPT, number=2, epochs_done=2)
    save_state(plan, "-000002-state", scale=1.0, attempt=2)
    meter.look(plan.step(STEP), Job(step=STEP, attempts=(ATTEMPT, again)))
    assert list(meter.take(wait=True)) == [], "epoch 4 and 6 are the first attempt's"
    save_state(plan, "-000004-state", scale=1.25, attempt=2)
    meter.look(plan.step(STEP), Job(step=STEP, attempts=(ATTEMPT, replace(again, epochs_done=4))))
    assert list(meter.take(wait=True)) == [moved(4, pytest.approx(0.2, rel=1e-6))]

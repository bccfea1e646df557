"""The state of a run as a function of its events: total, and the same from the journal as from memory."""

from __future__ import annotations

import collections.abc
import types
import typing
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.runs import OUT_OF_MEMORY, SUPERVISOR, T0, events_of, make_plan
from wan_train.base import codec
from wan_train.run.events import (
    Event,
    Exited,
    ResultPlaced,
    RunFinished,
    StateSaved,
    StepExited,
    StepFailed,
    StepSkipped,
    StepStarted,
    StepStopped,
    StepStopping,
    StepSucceeded,
    StopMode,
    StopRequested,
    SupervisorStarted,
)
from wan_train.run.state import LEGAL_MOVES, JobState, fold, fold_all, initial

PLAN = make_plan()
STEP = "train-high"


def strategy_for(name: str, hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field, kept within what a journal can hold and near enough to each other to interact."""
    if name == "step":
        return st.sampled_from([*(step.id for step in PLAN.steps), "no-such-step"])
    if name in {"attempt", "epoch"}:
        return st.integers(1, 3)
    match typing.get_origin(hint):
        case types.UnionType | typing.Union:
            return st.one_of([strategy_for("", part) for part in typing.get_args(hint)])
        case None if hint is float:
            return st.floats(0, 1e9)
        case None if hint is str:
            return st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
        case None if hint is int:
            return st.integers(-9, 9)
        case None if hasattr(hint, "__dataclass_fields__"):
            return build(hint)
        case collections.abc.Mapping:
            return st.dictionaries(st.text("ab", max_size=2), st.integers(0, 3), max_size=2)
        case _:
            return st.from_type(hint)


def build(kind: type[Any]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{f.name: strategy_for(f.name, hints[f.name]) for f in fields(kind)})


EVENTS = st.one_of([build(kind) for kind in typing.get_args(Event)])


@settings(max_examples=300)
@given(st.lists(EVENTS, max_size=40))
def test_any_events_in_any_order_are_a_state(events: list[Event]) -> None:
    state = initial(PLAN)
    for event in events:
        before, state = state, fold(state, event)
        assert list(state.jobs) == [step.id for step in PLAN.steps]
        for step, job in state.jobs.items():
            old = before.jobs[step].state
            # The two ways back: somebody goes on with the run, or caches that were right have changed.
            back = type(event).__name__ in {"RunResumed", "CachesDisturbed"}
            assert job.state is old or job.state in LEGAL_MOVES[old] or (back and job.state is JobState.WAITING)
            assert job.occupies_gpu is None or job.state.has_process
            assert [attempt.number for attempt in job.attempts][: len(before.jobs[step].attempts)] == [
                attempt.number for attempt in before.jobs[step].attempts
            ]
    assert fold_all(PLAN, events) == state


@settings(max_examples=200)
@given(st.lists(EVENTS, max_size=15))
def test_the_journal_tells_the_same_story(events: list[Event]) -> None:
    lines = [codec.to_json(event, Event) for event in events]
    assert all("\n" not in line for line in lines)
    read = [codec.from_json(line, Event, where="test") for line in lines]
    assert read == events
    assert fold_all(PLAN, read) == fold_all(PLAN, events)


def moves(at: float = T0 + 9e5) -> dict[JobState, Event]:
    return {
        JobState.RUNNING: StepStarted(
            at=at, step=STEP, attempt=9, gpu_uuid="GPU-0", gpu_label="GPU 0", identity=SUPERVISOR
        ),
        JobState.SUCCEEDED: StepSucceeded(at=at, step=STEP, attempt=1, loss=0.5),
        JobState.FAILED: StepFailed(at=at, step=STEP, attempt=1, diagnosis=OUT_OF_MEMORY),
        JobState.STOPPING: StepStopping(at=at, step=STEP, attempt=1),
        JobState.STOPPED: StepStopped(at=at, step=STEP),
        JobState.SKIPPED: StepSkipped(at=at, step=STEP, reason="cache-text failed"),
    }


REACHABLE = [state for state in JobState if state is not JobState.BACKOFF]


@pytest.mark.parametrize("state", REACHABLE)
@pytest.mark.parametrize("target", list(moves()))
def test_legal_moves_are_made_and_others_change_nothing(state: JobState, target: JobState) -> None:
    before = fold_all(PLAN, events_of(PLAN, {STEP: state}))
    assert before.jobs[STEP].state is state
    after = fold(before, moves()[target])
    if target in LEGAL_MOVES[state]:
        assert after.jobs[STEP].state is target
    else:
        assert after == before


def test_states_without_a_way_out_are_over() -> None:
    assert {state for state in JobState if state.is_over} == {
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.STOPPED,
        JobState.SKIPPED,
    }


def test_a_gpu_is_occupied_until_its_processes_are_gone() -> None:
    running = fold_all(PLAN, events_of(PLAN, {STEP: JobState.RUNNING}))
    assert running.jobs[STEP].occupies_gpu == "GPU-0"
    exited = fold(running, StepExited(at=T0 + 1e6, step=STEP, attempt=1, exit=Exited(code=0)))
    assert exited.jobs[STEP].state is JobState.RUNNING
    assert exited.jobs[STEP].occupies_gpu is None


def test_a_state_of_an_older_attempt_is_not_the_newest_ones() -> None:
    running = fold_all(PLAN, events_of(PLAN, {STEP: JobState.RUNNING}))
    stale = StateSaved(at=T0 + 1e6, step=STEP, attempt=7, path="/state", epoch=3)
    assert fold(running, stale) == running


def test_a_result_and_its_loss() -> None:
    events = events_of(PLAN, {STEP: JobState.SUCCEEDED}, epochs={STEP: 3})
    job = fold_all(PLAN, events).jobs[STEP]
    placed = next(event for event in events if isinstance(event, ResultPlaced))
    assert job.result is not None
    assert (job.result.path, job.result.bytes, job.result.sha256) == (placed.path, placed.bytes, placed.sha256)
    assert job.loss == 0.0707
    assert job.attempt is not None
    assert job.attempt.epochs_done == 3


def test_a_second_supervisor_takes_over_and_the_start_stays() -> None:
    other = SupervisorStarted(at=T0 + 50, identity=SUPERVISOR)
    state = fold_all(PLAN, [SupervisorStarted(at=T0, identity=SUPERVISOR), other])
    assert (state.started, state.supervisor) == (T0, SUPERVISOR)


def test_the_first_request_to_stop_counts_unless_a_later_one_is_sooner() -> None:
    first = StopRequested(at=T0, mode=StopMode.AFTER_STATE, signal=2)
    sooner = StopRequested(at=T0 + 1, mode=StopMode.NOW, signal=15)
    again = StopRequested(at=T0 + 2, mode=StopMode.NOW, signal=2)
    assert fold_all(PLAN, [first]).stop == first
    assert fold_all(PLAN, [first, sooner, again]).stop == sooner
    assert fold_all(PLAN, [sooner, first]).stop == sooner


def test_the_end_of_a_run() -> None:
    state = fold(initial(PLAN), RunFinished(at=T0, exit_code=4))
    assert state.is_over
    assert not initial(PLAN).is_over

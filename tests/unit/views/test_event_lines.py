from __future__ import annotations

from dataclasses import replace

from support.runs import OUT_OF_MEMORY, T0, events_of, make_plan, make_view
from views.scenes import CACHED, FAILED, HIGH, RUNS
from wan_train.run.events import (
    Event,
    RunResumed,
)
from wan_train.run.live import Live
from wan_train.run.plan import Plan
from wan_train.views.event_lines import event_line


def _lines(plan: Plan, events: list[Event], live: Live | None = None) -> list[str]:
    view = make_view(plan, events, live=live)
    return [line for event in events if (line := event_line(event, view)) is not None]


def test_only_the_newest_epoch_shows_speed_and_time_left() -> None:
    plan = make_plan()
    events = events_of(plan, {**CACHED, "train-high": RUNS}, epochs={"train-high": 41})
    lines = _lines(plan, events, Live(at=T0, progress={"train-high": HIGH}))
    assert lines[-1] == "12:21:00  train-high     epoch 41/100  loss 0.0995  2.9 s/step  1 h 7 min left"
    assert sum("s/step" in line for line in lines) == 1


def test_of_many_epochs_some_and_the_last_are_shown() -> None:
    plan = make_plan(epochs=1003)
    lines = _lines(plan, events_of(plan, {**CACHED, "train-high": RUNS}, epochs={"train-high": 1003}))
    epochs = [line for line in lines if "epoch " in line]
    assert len(epochs) == 101
    assert "epoch 1003/1003" in epochs[-1]


def test_a_failure_is_one_line_whatever_the_trainer_printed() -> None:
    plan = make_plan()
    found = replace(OUT_OF_MEMORY, evidence="a\nb\x1b[2J" + "c" * 1000)
    lines = _lines(plan, events_of(plan, {"cache-latents": FAILED}, diagnosis=found))
    assert "failed: " in lines[-1]
    assert lines[-1].isprintable()
    assert len(lines[-1]) < 500


def test_an_extended_run_counts_to_its_new_end() -> None:
    plan = make_plan()
    events = events_of(plan, {**CACHED, "train-high": RUNS}, epochs={"train-high": 2})
    assert "epoch 2/150 " in _lines(plan, [RunResumed(at=T0, epochs=150), *events])[-1]

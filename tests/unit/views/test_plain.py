from __future__ import annotations

from dataclasses import replace

from support.runs import OUT_OF_MEMORY, SUPERVISOR, T0, events_of, make_plan, make_view
from views.scenes import CACHED, DONE, FAILED, HIGH, RUNS
from views.support import check_golden
from wan_train.run.events import (
    CheckpointKept,
    EpochEnded,
    Event,
    RunResumed,
    StepExited,
    StepSkipped,
    StepStarted,
    StopMode,
    StopRequested,
    SupervisorStarted,
)
from wan_train.run.live import Live
from wan_train.run.plan import Plan
from wan_train.views.event_lines import event_line


def _said(plan: Plan, events: list[Event], live: Live | None = None) -> list[str]:
    view = make_view(plan, events, live=live)
    return [line for event in events if (line := event_line(event, view)) is not None]


def test_a_whole_run_reads_as_a_log() -> None:
    plan = make_plan()
    jobs = {**CACHED, "train-high": FAILED, "train-low": DONE}
    lines = _said(plan, events_of(plan, jobs, gpus={"train-low": 1}, epochs={"train-low": 3}, exit_code=5))
    check_golden("view_plain_run", "".join(f"{line}\n" for line in lines))


def test_a_running_epoch_tells_speed_and_time_left() -> None:
    plan = make_plan()
    events = events_of(plan, {**CACHED, "train-high": RUNS}, epochs={"train-high": 41})
    live = Live(at=T0, progress={"train-high": HIGH})
    assert _said(plan, events, live)[-1] == (
        "12:21:00  train-high     epoch 41/100  loss 0.0995  2.9 s/step  1 h 7 min left"
    )


def test_speed_is_not_told_beside_an_epoch_of_long_ago() -> None:
    plan = make_plan()
    events = events_of(plan, {**CACHED, "train-high": RUNS}, epochs={"train-high": 41})
    live = Live(at=T0, progress={"train-high": HIGH})
    assert sum("s/step" in line for line in _said(plan, events, live)) == 1


def test_many_epochs_are_thinned_but_the_last_is_told() -> None:
    plan = make_plan(epochs=1003)
    lines = _said(plan, events_of(plan, {**CACHED, "train-high": RUNS}, epochs={"train-high": 1003}))
    epochs = [line for line in lines if "epoch " in line]
    assert len(epochs) == 101
    assert "epoch 1003/1003" in epochs[-1]


def test_exits_are_noise() -> None:
    plan = make_plan()
    events = events_of(plan, {"cache-latents": DONE})
    view = make_view(plan, events)
    assert [event_line(event, view) for event in events if isinstance(event, StepExited)] == [None]


def test_other_events() -> None:
    plan = make_plan()
    begun = SupervisorStarted(at=T0, identity=SUPERVISOR)
    events: list[Event] = [
        begun,
        replace(begun, at=T0 + 60),
        StepStarted(at=T0 + 61, step="train-high", attempt=2, gpu_uuid="GPU-0", gpu_label="GPU 0", identity=SUPERVISOR),
        EpochEnded(at=T0 + 62, step="train-high", attempt=2, epoch=1, loss=None),
        CheckpointKept(at=T0 + 63, step="train-high", path="/runs/a/x-000020.safetensors", epoch=20),
        StopRequested(at=T0 + 64, mode=StopMode.AFTER_STATE, signal=15),
        StepSkipped(at=T0 + 65, step="train-low", reason="cache-text failed"),
    ]
    check_golden("view_plain_other", "".join(f"{line}\n" for line in _said(plan, events)))


def test_a_failure_is_one_line_whatever_the_trainer_said() -> None:
    plan = make_plan()
    found = replace(OUT_OF_MEMORY, evidence="a\nb\x1b[2J" + "c" * 1000)
    lines = _said(plan, events_of(plan, {"cache-latents": FAILED}, diagnosis=found))
    assert "failed: " in lines[-1]
    assert lines[-1].isprintable()
    assert len(lines[-1]) < 500


def test_an_extended_run_counts_to_its_new_end() -> None:
    plan = make_plan()
    events = events_of(plan, {**CACHED, "train-high": RUNS}, epochs={"train-high": 2})
    assert "epoch 2/150 " in _said(plan, [RunResumed(at=T0, epochs=150), *events])[-1]

"""Loss and learning rate of every step, over all attempts."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.runs import OUT_OF_MEMORY, SUPERVISOR, T0, make_plan
from wan_train.run.curves import Curve, CurveReader, LossSource, Point, smoothed
from wan_train.run.directory import RunDirectory
from wan_train.run.events import Event, Exited, RetryScheduled, StepExited, StepStarted, TrainingBegan
from wan_train.run.state import fold_all

STEP = "train-high"
EPOCHS, STEPS = 10, 40
"""Four steps an epoch."""


def attempt(number: int, *, epochs_before: int = 0, told: bool = True) -> list[Event]:
    at = T0 + 100 * number
    events: list[Event] = [
        StepStarted(
            at=at,
            step=STEP,
            attempt=number,
            gpu_uuid="GPU-0",
            gpu_label="GPU 0",
            identity=SUPERVISOR,
            epochs_before=epochs_before,
            total_epochs=EPOCHS,
        )
    ]
    if number > 1:
        events = [
            StepExited(at=at - 2, step=STEP, attempt=number - 1, exit=Exited(code=1)),
            RetryScheduled(
                at=at - 1, step=STEP, attempt=number - 1, diagnosis=OUT_OF_MEMORY, not_before=at, why="tried again"
            ),
            *events,
        ]
    if told:
        events.append(TrainingBegan(at=at + 1, step=STEP, attempt=number, steps=STEPS))
    return events


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def scalar(tag: str, step: int, value: float) -> bytes:
    entry = b"\x0a" + varint(len(tag)) + tag.encode() + b"\x15" + struct.pack("<f", value)
    summary = b"\x0a" + varint(len(entry)) + entry
    event = b"\x10" + varint(step) + b"\x2a" + varint(len(summary)) + summary
    return struct.pack("<QI", len(event), 0) + event + bytes(4)


class Box:
    """The files of one training step."""

    def __init__(self, path: Path) -> None:
        self.plan = make_plan(epochs=EPOCHS, run_dir=path)
        self.run = RunDirectory(path)
        self.reader = CurveReader(self.run, self.plan)
        self.events: list[Event] = []

    def log(self, number: int, steps: range, loss: float) -> None:
        path = self.run.attempt(STEP, number).log
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for step in steps:
                file.write(f"steps:  1%|▏| {step}/{STEPS} [00:01<00:04,  3.93it/s, avr_loss={loss:.3g}]\r")

    def board(self, number: int, steps: range, loss: float, *, lr: float = 1e-4) -> None:
        path = self.run.attempt(STEP, number).path / "logs" / "20251122" / "network_train" / "events.out.tfevents.1"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            for step in steps:
                file.write(scalar("loss/current", step, loss) + scalar("lr/unet", step, lr))

    def curve(self) -> Curve:
        return self.reader.refresh(fold_all(self.plan, self.events))[STEP]


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "20251122-120000-mylora")


def test_without_any_step_there_is_no_source(box: Box) -> None:
    assert box.curve() == Curve()
    box.events = attempt(1, told=False)
    assert (box.curve().points, box.curve().source) == ((), None)


def test_the_progress_line_where_there_is_nothing_better(box: Box) -> None:
    box.events = attempt(1)
    box.log(1, range(4), 0.25)
    curve = box.curve()
    assert curve.source is LossSource.PROGRESS_LINE
    assert curve.points == tuple(Point(step=step, loss=0.25) for step in (1, 2, 3))


def test_tensorboard_replaces_the_progress_line_and_is_read_while_it_grows(box: Box) -> None:
    box.events = attempt(1)
    box.log(1, range(1, 4), 0.25)
    assert box.curve().source is LossSource.PROGRESS_LINE
    box.board(1, range(3), 0.5)
    curve = box.curve()
    assert curve.source is LossSource.TENSORBOARD
    assert curve.points == (
        Point(step=1, loss=0.5, lr=pytest.approx(1e-4)),
        Point(step=2, loss=0.5, lr=pytest.approx(1e-4)),
    )
    box.board(1, range(3, 4), math.nan)
    assert math.isnan(box.curve().points[-1].loss)


def test_steps_trained_again_after_a_resume_count_once(box: Box) -> None:
    box.events = [*attempt(1), *attempt(2, epochs_before=3)]
    box.board(1, range(1, 19), 0.5)  # died in the fifth epoch, the newest state is of the third
    box.board(2, range(1, 31), 0.25)  # 12 + 30: two steps more than there are, until it is stopped
    curve = box.curve()
    assert [point.step for point in curve.points] == list(range(1, 41))
    assert [point.loss for point in curve.points] == [0.5] * 12 + [0.25] * 28
    first, second = curve.segments
    assert (len(first.points), len(first.counted)) == (18, 12)
    assert (len(second.points), len(second.counted)) == (30, 28)


def test_an_attempt_that_began_anew_replaces_everything(box: Box) -> None:
    box.events = [*attempt(1), *attempt(2)]
    box.board(1, range(1, 9), 0.5)
    box.log(2, range(1, 3), 0.25)
    curve = box.curve()
    assert [point.loss for point in curve.points] == [0.25, 0.25]
    assert curve.source is LossSource.PROGRESS_LINE


def test_a_resumed_attempt_is_placed_once_its_total_is_known(box: Box) -> None:
    box.events = [*attempt(1), *attempt(2, epochs_before=3, told=False)]
    box.board(1, range(1, 19), 0.5)
    box.board(2, range(1, 2), 0.25)
    assert len(box.curve().points) == 18
    box.events = [*attempt(1), *attempt(2, epochs_before=3)]
    assert [point.step for point in box.curve().points] == list(range(1, 14))


def test_batches_before_the_first_step_and_other_rates_are_left_out(box: Box) -> None:
    box.events = attempt(1)
    box.board(1, range(1, 2), 0.5)
    path = next((box.run.attempt(STEP, 1).path / "logs").rglob("events*"))
    with path.open("ab") as file:
        file.write(scalar("loss/current", 0, 9.0) + scalar("lr/group1", 1, 7.0) + scalar("lr/d*lr/unet", 1, 8.0))
    assert box.curve().points == (Point(step=1, loss=0.5, lr=pytest.approx(1e-4)),)


@given(st.lists(st.floats(min_value=-1e3, max_value=1e3), min_size=1, max_size=50))
def test_the_smoothed_curve_stays_within_what_it_smooths(losses: list[float]) -> None:
    out = smoothed(losses)
    assert len(out) == len(losses)
    for index, value in enumerate(out):
        seen = losses[: index + 1]
        assert min(seen) - 1e-6 <= value <= max(seen) + 1e-6


def test_smoothing_passes_over_what_is_no_number() -> None:
    assert math.isnan(smoothed([math.nan])[0])
    assert smoothed([math.inf, 2.0, math.nan, 2.0])[1:] == pytest.approx([2.0, 2.0, 2.0])

"""The time that is left of a drawing, from what it took so far."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_preview_model import PREVIEW

from wan_train.preview.estimate import Eta
from wan_train.preview.job import DrawingEvent

CELLS = {"a": 0, "b": 0, "c": 1}


def eta() -> Eta:
    # 20 steps each; the second prompt has half as many.
    one, other = PREVIEW.prompts
    return Eta(preview=replace(PREVIEW, prompts=(one, replace(other, steps=10))), cells=CELLS)


def stage(key: str, expert: str, seconds: float, steps: int) -> DrawingEvent:
    return DrawingEvent(event="stage", key=key, expert=expert, seconds=seconds, steps=steps)


def test_nothing_is_known_before_anything_was_timed() -> None:
    own = eta()
    own.take(DrawingEvent(event="loading", what="high"))
    assert own.left() is None


def test_what_is_left_goes_on_as_what_is_done_and_the_second_expert_loads_like_the_first() -> None:
    own = eta()
    own.take(DrawingEvent(event="loaded", what="high", seconds=30.0))
    own.take(stage("a", "high", 13.0, 13))
    # 7 of a, 20 of b, 10 of c, one second each.
    assert own.left() == pytest.approx(37.0 + 30.0)
    own.take(stage("b", "high", 0.0, 0))  # the same LoRA as of a
    assert own.left() == pytest.approx(24.0 + 30.0)
    own.take(stage("c", "high", 6.0, 6))
    own.take(DrawingEvent(event="loaded", what="low", seconds=30.0))
    own.take(stage("a", "low", 7.0, 7))
    own.take(DrawingEvent(event="cell", key="a", seconds=20.0))
    assert own.left() == pytest.approx(7.0 + 4.0)
    for key, steps in (("b", 7), ("c", 4)):
        own.take(stage(key, "low", float(steps), steps))
        own.take(DrawingEvent(event="cell", key=key, seconds=1.0))
    assert own.left() == 0.0


def test_the_plain_command_is_timed_by_whole_pictures() -> None:
    own = eta()
    own.take(DrawingEvent(event="cell", key="a", seconds=60.0))
    assert own.left() == pytest.approx(60.0 + 30.0)
    own.take(DrawingEvent(event="cell", key="of another attempt", seconds=1.0))
    assert own.left() == pytest.approx(90.0)

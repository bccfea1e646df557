"""The sparkline and the trend: what they say must follow from the numbers."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from views.scenes import learning
from wan_train.run.curves import Curve, LossSource, Point, Segment, smoothed
from wan_train.views.losses import Losses, Trend, losses_of, sparkline, trend

NAN = math.nan


def losses(values: list[float], source: LossSource = LossSource.TENSORBOARD, *, per_epoch: int = 8) -> Losses:
    points = tuple(Point(step=step, loss=value) for step, value in enumerate(values, start=1))
    found = losses_of(Curve(segments=(Segment(attempt=1, source=source, points=points),)), per_epoch)
    assert found is not None
    return found


def noisy(level: float, count: int, *, seed: int) -> list[float]:
    chance = random.Random(seed)
    return [level * chance.lognormvariate(0.0, 0.4) for _ in range(count)]


def test_nothing_trained_is_nothing_to_show() -> None:
    assert losses_of(Curve(), 8) is None


def test_each_block_is_the_mean_of_equally_many_steps() -> None:
    drawn = sparkline(losses([8, 8, 7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1]), 8)
    assert drawn is not None
    assert drawn.text == "█▇▆▅▄▃▂▁"
    assert (drawn.low, drawn.high) == (1, 8)


def test_few_steps_get_a_block_each() -> None:
    drawn = sparkline(losses([2.0, 1.0, 2.0]), 40)
    assert drawn is not None
    assert drawn.text == "█▁█"


def test_one_spike_does_not_flatten_the_rest() -> None:
    values = [2.0 - step / 100 for step in range(100)]
    drawn = sparkline(losses([*values[:50], 1000.0, *values[51:]]), 100)
    assert drawn is not None
    assert set(drawn.text) == set("▁▂▃▄▅▆▇█")
    assert drawn.text[50] == "█"


def test_a_loss_that_is_no_number_is_marked_where_it_happened() -> None:
    found = losses([1.0] * 30 + [NAN] + [1.0] * 9)
    drawn = sparkline(found, 40)
    assert drawn is not None
    assert drawn.text.index("✗") == 30
    assert found.bad == 1
    marked = [span for span in drawn.spans() if "✗" in span.text]
    assert [(span.text, "red" in span.style) for span in marked] == [("✗", True)]


def test_a_loss_that_never_was_a_number_has_no_sparkline() -> None:
    found = losses([NAN, math.inf])
    assert sparkline(found, 10) is None
    assert found.average is None
    assert found.trend is None


@given(st.lists(st.floats(1e-3, 10) | st.just(NAN), min_size=1, max_size=500), st.integers(1, 80))
def test_a_sparkline_never_has_more_blocks_than_columns_or_steps(values: list[float], columns: int) -> None:
    drawn = sparkline(losses(values), columns)
    assert drawn is None or len(drawn.text) == min(columns, len(values))


@pytest.mark.parametrize(
    ("older", "newer", "expected"),
    [(0.2, 0.1, Trend.FALLING), (0.1, 0.2, Trend.RISING), (0.1, 0.1, Trend.FLAT)],
)
def test_where_it_goes(older: float, newer: float, expected: Trend) -> None:
    values = noisy(older, 150, seed=1) + noisy(newer, 50, seed=2)
    assert trend(values, least=20) is expected


def test_noise_alone_is_rarely_called_a_trend() -> None:
    said = [trend(noisy(0.1, 400, seed=seed), least=20) for seed in range(200)]
    assert said.count(Trend.FLAT) > 180


@pytest.mark.parametrize(("count", "says"), [(79, False), (80, True)])
def test_too_few_steps_say_nothing(count: int, *, says: bool) -> None:
    assert (trend([1.0 / step for step in range(1, count + 1)], least=20) is not None) is says


def test_a_moving_average_says_nothing_about_fewer_than_32_epochs() -> None:
    falling = [1.0 - step / 1000 for step in range(31 * 8)]
    assert losses(falling, LossSource.PROGRESS_LINE).trend is None
    longer = [1.0 - step / 1000 for step in range(32 * 8)]
    assert losses(longer, LossSource.PROGRESS_LINE).trend is Trend.FALLING
    assert losses(falling).trend is Trend.FALLING


def test_the_number_shown_is_the_smoothed_loss_of_single_steps_and_the_trainers_own_average() -> None:
    values = [3.0, 2.0, 1.0]
    assert losses(values).average == pytest.approx(smoothed(values)[-1])
    assert losses(values, LossSource.PROGRESS_LINE).average == 1.0


def test_a_training_that_learns_goes_down() -> None:
    drawn = sparkline(learning(2400), 10)
    assert drawn is not None
    assert all(before >= after for before, after in pairwise(drawn.text[:5]))

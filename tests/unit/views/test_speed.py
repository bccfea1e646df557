"""The summary's row about measured speed, and the tip to measure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.runs import T0, make_plan
from wan_train.recipe.measured import Tuned
from wan_train.run.plan import Plan, Quote
from wan_train.views.summary import measured_text, speed_rows, tip

HOUR = 3600.0


def quoted(hours: float) -> Plan:
    return make_plan(quote=Quote(seconds=hours * HOUR, seconds_per_batch=2.0, measured=T0))


def test_what_was_measured_is_said_with_its_day_and_the_guides_speed() -> None:
    tuned = Tuned(words="sdpa, 2 blocks swapped", seconds_per_step=1.42, guide_seconds=2.1, at=T0)
    text = "sdpa, 2 blocks swapped: 1.42 s/step, measured here on 22 Nov (the guide's settings: 2.10)"
    assert measured_text(tuned) == text
    (row,) = speed_rows(make_plan(tuned=tuned))
    assert (row.label, row.value) == ("Speed", text)
    assert "guide" not in measured_text(replace(tuned, guide_seconds=None))


def test_nothing_is_proposed_without_a_time_that_was_measured() -> None:
    assert list(speed_rows(make_plan())) == []


@pytest.mark.parametrize(("hours", "is_worth_it"), [(0.2, False), (10, True)])
def test_measuring_is_proposed_where_it_is_expected_to_save_more_than_it_takes(hours: float, is_worth_it: bool) -> None:
    """Ten swapped blocks cost 15 % of a step by what others report."""
    text = tip(quoted(hours))
    assert (text is not None) == is_worth_it
    if text is not None:
        assert text == "wan-train tune takes 6 min and may save 1 h 30 min: 15 % of 10 h, as reported by others"

"""Bounds of a launch where its person gave none."""

from __future__ import annotations

import pytest

from wan_train.launch.bounds import bounded, default_hours
from wan_train.launch.model import Offer, Wants
from wan_train.launch.offers import Choice, Priced

OFFER = Offer(id="1", machine="m", gpu="RTX 4090", gpus=1, gpu_bytes=24 * 10**9, per_hour=0.333)


def choice(hours: float | None = None) -> Choice:
    known = None if hours is None else hours * 3600
    return Choice(fit=(Priced(offer=OFFER, prepare_seconds=0.0, train_seconds=known),))


@pytest.mark.parametrize(
    ("hours", "jobs", "boxes", "found"),
    [(None, 1, 1, 12), (None, 5, 2, 36), (2.0, 1, 1, 12), (10.0, 1, 1, 15), (10.0, 3, 2, 30), (None, 9000, 1, 2160)],
)
def test_each_box_has_hours_for_its_share(hours: float | None, jobs: int, boxes: int, found: float) -> None:
    assert default_hours(choice(hours), jobs, boxes) == found


def test_a_budget_follows_from_the_other_bounds_and_is_kept_where_it_is_given() -> None:
    wants = Wants(max_hours=10, boxes=2)
    assert (bounded(wants, choice(), 2).max_per_hour, bounded(wants, choice(), 2).budget) == (0.5, 10.0)
    given = bounded(Wants(max_hours=10, max_per_hour=0.4, budget=3.0), choice(), 2)
    assert (given.max_per_hour, given.budget) == (0.4, 3.0)


def test_without_an_offer_nothing_is_bounded() -> None:
    wants = Wants(max_hours=10)
    assert bounded(wants, Choice(fit=()), 1) == wants


def test_a_budget_that_follows_pays_the_traffic_too() -> None:
    dear = Choice(fit=(Priced(offer=OFFER, prepare_seconds=600.0, traffic=1.4),))
    found = bounded(Wants(max_hours=1, boxes=1), dear, 2)
    assert found.budget == 3.3
    assert dear.fit[0].least_cost < found.budget

"""Bounds of a launch where its person gave none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wan_train.launch.bounds import bounded, default_hours
from wan_train.launch.model import Offer, Wants
from wan_train.launch.offers import Choice, Priced

OFFER = Offer(id="1", machine="m", gpu="RTX 4090", gpus=1, gpu_bytes=24 * 10**9, per_hour=0.333)


def priced(hours: float | None = None) -> Priced:
    return Priced(offer=OFFER, prepare_seconds=0.0, train_seconds=None if hours is None else hours * 3600)


BEST = Choice(fit=(priced(),))


@pytest.mark.parametrize(
    ("hours", "jobs", "boxes", "found"),
    [(None, 1, 1, 12), (None, 5, 2, 36), (2.0, 1, 1, 12), (10.0, 1, 1, 15), (10.0, 3, 2, 30), (None, 9000, 1, 2160)],
)
def test_each_box_has_hours_for_its_share(hours: float | None, jobs: int, boxes: int, found: float) -> None:
    assert default_hours([priced(hours)] * jobs, boxes) == found


def test_the_longest_jobs_may_be_on_one_box() -> None:
    assert default_hours([priced(2.0), priced(20.0), None], 2) == 30 + 12


def test_a_budget_follows_from_the_other_bounds_and_is_kept_where_it_is_given() -> None:
    wants = Wants(max_hours=10, boxes=2)
    found = bounded(wants, BEST, [priced(), priced()])
    assert (found.max_per_hour, found.budget) == (0.5, 10.0)
    given = bounded(Wants(max_hours=10, max_per_hour=0.4, budget=3.0), BEST, [priced()])
    assert (given.max_per_hour, given.budget) == (0.4, 3.0)


def test_without_an_offer_nothing_is_bounded() -> None:
    wants = Wants(max_hours=10)
    assert bounded(wants, Choice(fit=()), [None]) == wants


def test_a_budget_that_follows_pays_the_traffic_too() -> None:
    dear = Priced(offer=OFFER, prepare_seconds=600.0, traffic=1.4)
    dearer = replace(dear, traffic=2.0, checkpoint_traffic=0.5)
    found = bounded(Wants(max_hours=1, boxes=1), Choice(fit=(dear,)), [dear, dearer])
    assert found.budget == 4.4
    assert dear.least_cost < found.budget

"""What bounds the cost of a launch where its person gave no bound: hours, a price, a budget. Functions of values."""

from __future__ import annotations

import math
from dataclasses import replace

from wan_train.launch.model import Wants
from wan_train.launch.offers import Choice

HOURS_OF_A_JOB = 12.0
"""On one box, where nothing like it was measured."""
MOST_HOURS = 24.0 * 90
"""Of one box, whatever is given."""
_PRICE_ABOVE = 1.5
"""Times the best offer that another box may cost, when that offer is gone or its box is lost."""
_TIME_ABOVE = 1.5
"""Times the measured time that a job may take."""


def default_hours(choice: Choice, jobs: int, boxes: int) -> float:
    """Hours of one box: enough for its share of the jobs, and a half more where their time is known."""
    known = choice.fit[0].seconds if choice.fit else None
    of_a_job = HOURS_OF_A_JOB if known is None else max(HOURS_OF_A_JOB, _TIME_ABOVE * known / 3600)
    return min(MOST_HOURS, float(math.ceil(of_a_job * math.ceil(jobs / boxes))))


def default_price(choice: Choice) -> float:
    """Dollars an hour for a box, half as much again as the best of some offers."""
    return math.ceil(_PRICE_ABOVE * choice.fit[0].offer.per_hour * 100) / 100


def bounded(wants: Wants, choice: Choice, jobs: int) -> Wants:
    """With a price and a budget that hold for every box to come. Where no offer fits there is nothing to bound.

    The traffic is that of the first offer, as if each job had a box of its own: a budget without it could be too small
    for every offer.
    """
    if not choice.fit:
        return wants
    price = wants.max_per_hour if wants.max_per_hour is not None else default_price(choice)
    budget = wants.budget
    if budget is None:
        budget = round(price * wants.max_hours * wants.boxes + choice.fit[0].traffic * jobs, 2)
    return replace(wants, max_per_hour=price, budget=budget)

"""Default limits on the cost of a launch: hours, price, budget. Pure functions."""

from __future__ import annotations

import math
from dataclasses import replace

from wan_train.launch.model import Wants
from wan_train.launch.offers import Choice

HOURS_OF_A_JOB = 12.0
"""Hours of a job on one box: the minimum, and the default if nothing similar was measured."""
MOST_HOURS = 24.0 * 90
"""Most hours of one box, whatever the user gives."""
_PRICE_ABOVE = 1.5
"""Another box may cost this many times the best offer, once that offer is gone or its box is lost."""
_TIME_ABOVE = 1.5
"""A job may take this many times its measured time."""


def default_hours(choice: Choice, jobs: int, boxes: int) -> float:
    """Hours of one box: enough for its share of the jobs, plus half again if their time is known."""
    known = choice.fit[0].seconds if choice.fit else None
    of_a_job = HOURS_OF_A_JOB if known is None else max(HOURS_OF_A_JOB, _TIME_ABOVE * known / 3600)
    return min(MOST_HOURS, float(math.ceil(of_a_job * math.ceil(jobs / boxes))))


def rounded_up(dollars: float) -> float:
    """Dollars in whole cents, for a limit: rounded down, it would exclude what it is computed from."""
    return math.ceil(round(dollars * 100, 6)) / 100  # 0.29 * 100 is 28.999999999999996


def default_price(choice: Choice) -> float:
    """Dollars an hour for a box: 1.5 times the best offer."""
    return rounded_up(_PRICE_ABOVE * choice.fit[0].offer.per_hour)


def bounded(wants: Wants, choice: Choice, jobs: int) -> Wants:
    """`wants` with a price and a budget for all later boxes; unchanged if no offer fits.

    The budget includes the first offer's traffic, as if each job had its own box. Without it, the budget could be too
    small for every offer.
    """
    if not choice.fit:
        return wants
    price = wants.max_per_hour if wants.max_per_hour is not None else default_price(choice)
    budget = wants.budget
    if budget is None:
        budget = rounded_up(price * wants.max_hours * wants.boxes + choice.fit[0].traffic * jobs)
    return replace(wants, max_per_hour=price, budget=budget)

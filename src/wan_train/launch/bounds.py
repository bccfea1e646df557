"""Default limits on the cost of a launch: hours, price, budget. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from wan_train.launch.model import Wants
from wan_train.launch.offers import Choice, Priced

HOURS_OF_A_JOB = 12.0
"""Hours of a job on one box: the minimum, and the default if nothing similar was measured."""
MOST_HOURS = 24.0 * 90
"""Most hours of one box, whatever the user gives."""
_PRICE_ABOVE = 1.5
"""Another box may cost this many times the best offer, once that offer is gone or its box is lost."""
_TIME_ABOVE = 1.5
"""A job may take this many times its measured time."""


def default_hours(jobs: Sequence[Priced | None], boxes: int) -> float:
    """Hours of one box: enough for its share of the jobs, even of the longest, plus half again if their time is known.

    `jobs` are all jobs on the best offer, as in `bounded`.
    """
    seconds = [job.seconds or 0.0 if job is not None else 0.0 for job in jobs]
    hours = sorted((max(HOURS_OF_A_JOB, _TIME_ABOVE * each / 3600) for each in seconds), reverse=True)
    return min(MOST_HOURS, float(math.ceil(sum(hours[: math.ceil(len(jobs) / boxes)]))))


def rounded_up(dollars: float) -> float:
    """Dollars in whole cents, for a limit: rounded down, it would exclude what it is computed from."""
    return math.ceil(round(dollars * 100, 6)) / 100  # 0.29 * 100 is 28.999999999999996


def default_price(choice: Choice) -> float:
    """Dollars an hour for a box: 1.5 times the best offer."""
    return rounded_up(_PRICE_ABOVE * choice.fit[0].offer.per_hour)


def bounded(wants: Wants, choice: Choice, jobs: Sequence[Priced | None]) -> Wants:
    """`wants` with hours, a price and a budget for all later boxes. Without an offer only the hours are set.

    `jobs` are all jobs on the best offer; None without one. The budget includes their traffic, as if each had its own
    box. Without it, the budget could be too small for every offer.
    """
    if not wants.max_hours:
        wants = replace(wants, max_hours=default_hours(jobs, wants.boxes))
    if not choice.fit:
        return wants
    price = wants.max_per_hour if wants.max_per_hour is not None else default_price(choice)
    budget = wants.budget
    if budget is None:
        budget = rounded_up(
            price * wants.max_hours * wants.boxes + sum(job.all_traffic for job in jobs if job is not None)
        )
    return replace(wants, max_per_hour=price, budget=budget)

"""What a run has cost and will cost, as every view shows it."""

from __future__ import annotations

from dataclasses import dataclass

from wan_train.base.errors import ExitCode
from wan_train.base.units import dollars
from wan_train.box.rental import PriceSource
from wan_train.run.events import StopMode
from wan_train.views import run_status
from wan_train.views.formatting import dollars_per_hour, price_basis
from wan_train.views.model import RunView


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Dollars of one run. `total` is None while its end is unknown; `seconds` is the paid time."""

    spent: float
    total: float | None
    seconds: float
    per_hour: float
    source: PriceSource
    runs: int
    budget: float | None
    rental_ends: float | None


def cost_of(view: RunView, now: float) -> Cost | None:
    """The cost at `now`; None without a price. After a supervisor died, the cost until it was last seen alive."""
    meter = view.state.meter
    if meter.per_hour is None or meter.source is None:
        return None
    if not view.supervisor_alive and view.live is not None:
        now = view.live.at
    counted = meter.at(now)
    end = run_status.ends_at(view, now)
    return Cost(
        spent=counted.dollars,
        total=counted.at(end).dollars if end is not None else None,
        seconds=counted.seconds,
        per_hour=meter.per_hour,
        source=meter.source,
        runs=meter.runs,
        budget=view.state.budget,
        rental_ends=meter.rental_ends,
    )


def cost_text(cost: Cost) -> str:
    """`$0.83 of about $1.90`."""
    so_far = dollars(cost.spent)
    return so_far if cost.total is None else f"{so_far} of about {dollars(cost.total)}"


def cost_basis(cost: Cost) -> str:
    """`$0.93/h from Vast, shared by 2 runs; budget $3.00`."""
    budget = f"; budget {dollars(cost.budget)}" if cost.budget is not None else ""
    return f"{dollars_per_hour(cost.per_hour)} {price_basis(cost.source, cost.runs)}{budget}"


def stopped_by_budget(view: RunView) -> str | None:
    """Why a run was stopped before its budget was reached, in words; None for any other run."""
    reached, finished = view.state.budget_reached, view.state.finished
    if reached is None or finished is None or finished.exit_code != ExitCode.OVER_BUDGET:
        return None
    spent = dollars(view.state.meter.dollars)
    sums = f"{spent} of the budget of {dollars(reached.budget)} spent"
    if reached.mode is StopMode.NOW:
        return f"The budget does not cover another checkpoint: {sums}. Work since the last checkpoint is lost."
    return f"Stopped in time: {sums}, everything is saved."


def next_budget(view: RunView) -> float:
    """The budget to resume with after the last one was reached: twice as much."""
    return round(2 * (view.state.budget or 0.0), 2)

"""What every view says of money."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.runs import SUPERVISOR, T0
from views import scenes
from views.reports import report_of
from views.scenes import NOW
from views.support import shown
from wan_train.base.errors import ExitCode
from wan_train.base.units import dollars
from wan_train.box.rental import PriceSource
from wan_train.run.events import BudgetReached, BudgetSet, Event, PriceSet, RunFinished, StopMode, SupervisorStarted
from wan_train.run.plan import Quote
from wan_train.run.state import fold
from wan_train.views import run_status
from wan_train.views.cost import cost_of, cost_text
from wan_train.views.dashboard import run_lines
from wan_train.views.formatting import dollars_per_hour
from wan_train.views.json_records import run_json
from wan_train.views.model import RunView
from wan_train.views.report.comparison import compared
from wan_train.views.result import result_text, runs_lines

HOUR = 3600.0


def with_events(view: RunView, *events: Event) -> RunView:
    state = view.state
    for event in events:
        state = fold(state, event)
    return replace(view, state=state)


def priced(view: RunView, *, runs: int = 1, rental_ends: float | None = None, per_hour: float = 0.93) -> RunView:
    return with_events(
        view, PriceSet(at=T0, per_hour=per_hour, source=PriceSource.VAST, runs=runs, rental_ends=rental_ends)
    )


def test_the_view_has_what_was_spent_and_what_it_will_be() -> None:
    view, now = scenes.both_running()
    text = shown(run_lines(priced(view), now), 80)
    spent = (now - T0) * 0.93 / HOUR
    end = run_status.ends_at(view, now)
    assert end is not None
    total = (end - T0) * 0.93 / HOUR
    assert f"cost   {dollars(spent)} of about {dollars(total)}  $0.93/h from Vast" in text
    assert "cost" not in shown(run_lines(view, now), 80)


def test_runs_that_share_the_box_and_a_budget_are_named() -> None:
    view, now = scenes.both_running()
    shared = with_events(priced(view, runs=2), BudgetSet(at=T0, dollars=3.0))
    assert "$0.93/h from Vast, shared by 2 runs; budget $3.00" in shown(run_lines(shared, now), 120)


def test_a_rental_that_ends_before_the_run_is_a_warning() -> None:
    view, now = scenes.both_running()
    soon = shown(run_lines(priced(view, rental_ends=now + 600), now), 80)
    assert "The rental of this box ends" in soon
    assert "The rental" not in shown(run_lines(priced(view, rental_ends=now + 1e6), now), 80)


def test_a_provider_in_trouble_is_a_remark() -> None:
    view, now = scenes.both_running()
    assert view.live is not None
    view = replace(view, live=replace(view.live, price_problem="Vast answered with status 500"))
    assert "The cost is unknown: Vast answered with status 500." in shown(run_lines(view, now), 80)
    assert "unknown" not in shown(run_lines(priced(view), now), 80)


def test_before_the_first_step_the_end_is_the_quoted_one() -> None:
    view, now = scenes.caching()
    assert run_status.ends_at(view, now) is None
    quoted = replace(view, plan=replace(view.plan, quote=Quote(seconds=7200, seconds_per_batch=3.0, measured=T0)))
    end = run_status.ends_at(quoted, now)
    assert end == pytest.approx(now + 7200 - run_status.worked(view, now))
    cost = cost_of(priced(quoted), now)
    assert cost is not None
    assert cost_text(cost) == "$0.01 of about $1.86"


def test_json_has_the_sums() -> None:
    view, now = scenes.both_running()
    cost = run_json(priced(view, runs=2), now)["cost"]
    assert cost["spent"] == pytest.approx((now - T0) * 0.93 / 2 / HOUR, abs=1e-5)
    assert (cost["per_hour"], cost["runs"], cost["price_source"], cost["budget"]) == (0.93, 2, "vast", None)
    assert cost["total"] > cost["spent"]
    assert run_json(view, now)["cost"] is None


def test_a_dead_supervisors_run_costs_until_it_was_last_seen() -> None:
    view, _ = scenes.both_running()
    cost = cost_of(replace(priced(view), supervisor_alive=False), NOW + 90_000)
    assert cost is not None
    assert cost.spent == pytest.approx((NOW - T0) * 0.93 / HOUR)


def test_a_run_that_its_budget_ended_says_how_to_go_on() -> None:
    view = scenes.stopped()
    ended = view.state.finished
    assert ended is not None
    view = replace(view, state=replace(view.state, finished=None, meter=replace(view.state.meter, since=T0), stop=None))
    view = priced(view)
    view = with_events(
        view,
        BudgetSet(at=T0, dollars=3.0),
        BudgetReached(at=ended.at - 60, spent=2.9, budget=3.0, mode=StopMode.AFTER_STATE),
        RunFinished(at=ended.at, exit_code=ExitCode.OVER_BUDGET),
    )
    text = " ".join(result_text(view).split())
    assert "before the budget was reached" in text
    assert "everything is saved" in text
    assert f"wan-train resume {view.run.run_id} --budget 6" in text
    assert run_json(view, NOW)["exit_code"] == 7


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "$0.00"), (0.004, "under $0.01"), (0.006, "$0.01"), (0.83, "$0.83"), (1234.5, "$1,234.50")],
)
def test_sums(value: float, text: str) -> None:
    assert dollars(value) == text


def test_prices() -> None:
    assert [dollars_per_hour(each) for each in (0.93, 0.083, 12.5)] == ["$0.93/h", "$0.083/h", "$12.50/h"]


def test_the_supervisor_that_takes_over_leaves_out_the_time_between() -> None:
    view, _ = scenes.both_running()
    later = SupervisorStarted(at=NOW + 90_000, identity=SUPERVISOR, idle_since=NOW)
    cost = cost_of(with_events(priced(view), later), NOW + 90_060)
    assert cost is not None
    assert cost.seconds == pytest.approx(NOW - T0 + 60)


def test_the_end_counts_what_earlier_trainings_took_after_their_last_step() -> None:
    view, now = scenes.both_running()
    usual = Quote(seconds=7200, seconds_per_batch=3.0, measured=T0)
    ends = [
        run_status.ends_at(replace(view, plan=replace(view.plan, quote=found)), now)
        for found in (usual, replace(usual, after_steps=12.0))
    ]
    assert None not in ends
    assert ends[1] == pytest.approx((ends[0] or 0.0) + 12.0)


def test_the_table_of_runs_has_what_each_has_cost() -> None:
    view, now = scenes.both_running()
    for width in (80, 120):
        text = shown(runs_lines([priced(view), view], now), width)
        head, paid, unknown = text.splitlines()
        assert head.endswith("Spent")
        assert paid.endswith(dollars((now - T0) * 0.93 / HOUR))
        assert "$" not in unknown
    assert "Spent" not in shown(runs_lines([view], now), 120)


def test_a_comparison_has_what_each_run_has_cost() -> None:
    plain = report_of()
    paid = replace(plain, view=priced(plain.view, runs=2))
    rows = {row.name: row.values for row in compared([plain, paid])}
    assert rows["price of the box"] == (None, "$0.93/h")
    cost = cost_of(paid.view, paid.made)
    assert cost is not None
    assert rows["spent"] == (None, dollars(cost.spent))
    assert "spent" not in {row.name for row in compared([plain, plain])}

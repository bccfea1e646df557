"""What a run has cost: every second of it once, at the price of that second."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from support.runs import SUPERVISOR, T0, make_plan
from wan_train.box.rental import PriceSource
from wan_train.run.events import Event, PriceSet, RunFinished, RunResumed, SupervisorStarted
from wan_train.run.meter import Meter
from wan_train.run.state import fold_all

HOUR = 3600.0


def meter(*events: Event) -> Meter:
    return fold_all(make_plan(), events).meter


def begun(after: float = 0, *, idle_since: float | None = None) -> SupervisorStarted:
    return SupervisorStarted(at=T0 + after, identity=SUPERVISOR, idle_since=idle_since)


def price(after: float, per_hour: float = 1.0, runs: int = 1, source: PriceSource = PriceSource.GIVEN) -> PriceSet:
    return PriceSet(at=T0 + after, per_hour=per_hour, source=source, runs=runs)


def test_without_a_price_nothing_is_claimed() -> None:
    assert meter(begun()).spent(T0 + HOUR) is None


def test_the_seconds_before_the_first_price_are_paid_too() -> None:
    assert meter(begun(), price(600)).spent(T0 + HOUR) == 1.0


def test_a_new_price_holds_from_then_on() -> None:
    assert meter(begun(), price(0), price(HOUR, 2.0)).spent(T0 + 2 * HOUR) == 3.0


def test_runs_at_the_same_time_share_the_hour() -> None:
    assert meter(begun(), price(0), price(HOUR, runs=4)).spent(T0 + 2 * HOUR) == 1.25


def test_nothing_is_paid_between_the_end_and_the_resume() -> None:
    over = (begun(), price(0), RunFinished(at=T0 + HOUR, exit_code=143))
    assert meter(*over).spent(T0 + 9 * HOUR) == 1.0
    again = (*over, RunResumed(at=T0 + 9 * HOUR), begun(9 * HOUR))
    assert meter(*again).spent(T0 + 10 * HOUR) == 2.0


def test_a_box_that_was_off_costs_nothing_meanwhile() -> None:
    assert meter(begun(), price(0), begun(9 * HOUR, idle_since=T0 + HOUR)).spent(T0 + 10 * HOUR) == 2.0


def test_trainers_that_outlived_their_supervisor_are_paid_for() -> None:
    assert meter(begun(), price(0), begun(9 * HOUR)).spent(T0 + 10 * HOUR) == 10.0


def test_time_of_an_earlier_supervisor_that_knew_no_price_is_not_guessed() -> None:
    assert meter(begun(), begun(5 * HOUR), price(5 * HOUR)).spent(T0 + 6 * HOUR) == 1.0


@given(st.lists(st.tuples(st.floats(-1e4, 1e5), st.floats(0.001, 100), st.integers(1, 9)), max_size=20))
def test_it_never_runs_backwards(moves: list[tuple[float, float, int]]) -> None:
    state = Meter().started(T0, idle_since=None)
    last, at = 0.0, T0
    for passed, per_hour, runs in moves:
        at += passed  # a clock that is set back too
        state = state.priced(at, per_hour=per_hour, source=PriceSource.VAST, runs=runs, rental_ends=None)
        assert state.dollars >= last
        last = state.dollars


@given(st.integers(1, 6), st.floats(0.01, 50), st.floats(1, 1e6))
def test_together_runs_pay_the_whole_hour_and_no_more(runs: int, per_hour: float, seconds: float) -> None:
    paid = [meter(begun(), price(0, per_hour, runs)).spent(T0 + seconds) or 0.0 for _ in range(runs)]
    assert abs(sum(paid) - per_hour * seconds / HOUR) < 1e-6 * max(1.0, sum(paid))

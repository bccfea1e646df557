"""The price of a run's hours as its supervisor learns it."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.vast_api import VastApi, vast_api
from wan_train.base.settings import resolve
from wan_train.box.rental import PriceSource
from wan_train.gpu.leases import LeaseRoom
from wan_train.run.events import PriceSet
from wan_train.run.meter import Meter
from wan_train.run.price_watch import PriceWatch


class Clock:
    def __init__(self) -> None:
        self.time = 1_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


def watch(tmp_path: Path, clock: Clock, *, run: str = "one", **environ: str) -> PriceWatch:
    settings = resolve(flags={}, environ=environ, file=tmp_path / "none.toml")
    return PriceWatch(run, LeaseRoom(tmp_path / "leases"), settings, clock, environ)


def told(meter: Meter, event: PriceSet) -> Meter:
    return meter.priced(
        event.at, per_hour=event.per_hour, source=event.source, runs=event.runs, rental_ends=event.rental_ends
    )


def asked(prices: PriceWatch, meter: Meter) -> PriceSet:
    while (found := prices.look(meter)) is None:
        pass
    return found


def test_a_price_is_told_once(tmp_path: Path) -> None:
    clock = Clock()
    prices = watch(tmp_path, clock, WAN_TRAIN_PRICE="0.93")
    event = prices.look(Meter())
    assert event is not None
    assert (event.per_hour, event.source, event.runs) == (0.93, PriceSource.GIVEN, 1)
    assert prices.look(told(Meter(), event)) is None


def test_without_any_price_nothing_is_told(tmp_path: Path) -> None:
    assert watch(tmp_path, Clock()).look(Meter()) is None


def test_runs_on_one_box_are_counted_while_they_live(tmp_path: Path) -> None:
    clock = Clock()
    first = watch(tmp_path, clock, WAN_TRAIN_PRICE="0.93")
    second = watch(tmp_path, clock, run="two", WAN_TRAIN_PRICE="0.93")
    event = first.look(Meter())
    assert event is not None
    assert event.runs == 2
    second.close()
    clock.time += 60
    event = first.look(told(Meter(), event))
    assert event is not None
    assert event.runs == 1
    first.close()


def test_a_given_price_stays_with_the_run_on_a_box_of_vasts(tmp_path: Path) -> None:
    with vast_api() as api:
        api.row["end_date"] = 2_000_000
        given = Meter(per_hour=0.5, source=PriceSource.GIVEN)
        event = asked(watch(tmp_path, Clock(), **api.environ()), given)
        assert (event.per_hour, event.source, event.rental_ends) == (0.5, PriceSource.GIVEN, 2_000_000.0)


def test_a_price_that_vast_changes_holds_from_then_on(tmp_path: Path) -> None:
    clock = Clock()
    with vast_api() as api:
        prices = watch(tmp_path, clock, **api.environ())
        event = asked(prices, Meter())
        assert (event.per_hour, event.source) == (0.93, PriceSource.VAST)
        meter = told(Meter(), event)
        api.row["dph_total"] = 1.1
        assert prices.look(meter) is None
        clock.time += 3600
        assert asked(prices, meter).per_hour == 1.1


def test_the_last_known_price_stays_when_vast_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with vast_api() as api:
        prices = watch(tmp_path, clock, **api.environ())
        meter = told(Meter(), asked(prices, Meter()))
        _break(api)
        clock.time += 3600
        while prices.problem is None:
            assert prices.look(meter) is None
        assert prices.problem == "Vast's answer has no price for this box"
    assert capsys.readouterr().out == "no price from Vast: Vast's answer has no price for this box\n"


def _break(api: VastApi) -> None:
    api.row.clear()

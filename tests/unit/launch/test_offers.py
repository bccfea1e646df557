"""Which offers are taken, in which order, and what they are said to cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_train.launch.history import AVOIDED_SECONDS, History, history_of, read_history
from wan_train.launch.launch_directory import new
from wan_train.launch.model import Address, Box, Job, Launch, Offer, Part, Wants, Work
from wan_train.launch.offers import Priced, Unfit, choose, models_bytes
from wan_train.launch.offers import priced_on as priced_with
from wan_train.run.plan import StepKind
from wan_train.run.speeds import Key, Speed

WANTS = Wants(max_hours=12)
SETTINGS = "attention=sdpa mixed_precision=fp16 network_dim=16"
WORK = Work(
    trainer="musubi guide",
    parts=(Part(settings=SETTINGS, batches=10, epochs=100), Part(settings=SETTINGS, batches=10, epochs=100)),
    batch_cost=100.0,
    items=10,
    download_bytes=69 * 10**9,
)


def offer(number: int, price: float, **more: object) -> Offer:
    made = Offer(
        id=str(number),
        machine=f"m{number}",
        gpu="RTX 5090",
        gpus=1,
        gpu_bytes=32 * 10**9,
        per_hour=price,
        down_mbps=800.0,
    )
    return replace(made, **more)  # type: ignore[arg-type]  # fields of an offer


def speed(
    card: str, seconds: float, *, settings: str = SETTINGS, at: float = 1.0, kind: StepKind = StepKind.TRAIN
) -> Speed:
    key = Key(kind=kind, trainer="musubi guide", card=card, settings=settings if kind is StepKind.TRAIN else "")
    cost = 1.0 if kind is StepKind.CACHE_TEXT else 100.0
    return Speed(at=at, key=key, sizes="960x960", cost=cost, units=100, per_unit=seconds, beside=60.0)


CACHINGS = [
    speed("NVIDIA GeForce RTX 5090", 1.0, kind=StepKind.CACHE_LATENTS),
    speed("NVIDIA GeForce RTX 5090", 0.5, kind=StepKind.CACHE_TEXT),
]


def priced_on(offered: Offer, work: Work, speeds: Sequence[Speed], set_up_seconds: float | None = None) -> Priced:
    return priced_with(offered, WANTS, work, speeds, set_up_seconds)


class TestPrice:
    def test_a_job_costs_its_download_its_caching_and_both_trainings(self) -> None:
        found = priced_on(offer(1, 0.36), WORK, [speed("NVIDIA GeForce RTX 5090", 2.0), *CACHINGS])
        assert found.prepare_seconds == 688.5
        assert found.train_seconds == 2 * (60 + 1000 * 2.0) + (60 + 10) + (60 + 5)
        assert found.cost is not None
        assert round(found.cost, 4) == round((688.5 + 4255) / 3600 * 0.36, 4)
        assert found.without == ("installation",)

    def test_traffic_is_paid_by_the_gb(self) -> None:
        speeds = [speed("NVIDIA GeForce RTX 5090", 2.0), *CACHINGS]
        work = replace(WORK, dataset_bytes=10**9, result_bytes=2 * 10**9)
        free = priced_on(offer(1, 0.36), work, speeds).cost
        paid = priced_on(offer(1, 0.36, per_gb_down=0.01, per_gb_up=0.02), work, speeds).cost
        assert free is not None
        assert paid is not None
        assert round(paid - free, 6) == round((68.85 + 1) * 0.01 + 2 * 0.02, 6)

    def test_checkpoints_that_come_home_while_it_trains_are_paid_too(self) -> None:
        speeds = [speed("NVIDIA GeForce RTX 5090", 2.0), *CACHINGS]
        parts = tuple(replace(part, state_bytes=10**9) for part in WORK.parts)
        work = replace(WORK, parts=parts, result_bytes=2 * 10**9)
        found = priced_on(offer(1, 0.36, per_gb_up=0.02), work, speeds)
        # One of a GB every ten minutes, while both experts train one after the other for 2,060 seconds each.
        assert found.all_traffic == pytest.approx(4120 / 600 * 0.02)
        assert found.cost == pytest.approx(found.all_traffic + (found.seconds or 0.0) / 3600 * 0.36)
        assert found.least_cost < 0.36 * 688.5 / 3600 + 0.05, "what comes before the training has none of it"
        unknown = priced_on(offer(1, 0.36, per_gb_up=0.02), work, [])
        assert unknown.all_traffic == pytest.approx(0.04)

    def test_set_up_and_the_way_home_are_in_the_time_where_they_are_known(self) -> None:
        speeds = [speed("NVIDIA GeForce RTX 5090", 2.0), *CACHINGS]
        work = replace(WORK, result_bytes=5 * 10**9)
        plain = priced_on(offer(1, 0.36, up_mbps=400.0), WORK, speeds)
        known = priced_on(offer(1, 0.36, up_mbps=400.0), work, speeds, 420.0)
        assert plain.seconds is not None
        assert known.seconds == plain.seconds + 420.0 + 100.0
        assert known.without == ()
        assert "the way home of the results" in priced_on(offer(1, 0.36), work, speeds).without

    def test_two_gpus_train_both_experts_at_once(self) -> None:
        one = priced_on(offer(1, 1.0), WORK, [speed("NVIDIA GeForce RTX 5090", 2.0)])
        two = priced_on(offer(1, 1.0, gpus=2), WORK, [speed("NVIDIA GeForce RTX 5090", 2.0)])
        assert (one.train_seconds, two.train_seconds) == (4120.0, 2060.0)
        assert "caching" in one.without

    def test_another_card_says_nothing(self) -> None:
        found = priced_on(offer(1, 1.0), WORK, [speed("NVIDIA GeForce RTX 4090", 2.0), *CACHINGS])
        assert (found.train_seconds, found.cost, found.measured) == (None, None, None)

    def test_another_rank_says_nothing_and_another_attention_does(self) -> None:
        card = "NVIDIA GeForce RTX 5090"
        other_rank = speed(card, 2.0, settings="attention=sdpa mixed_precision=fp16 network_dim=64")
        other_attention = speed(card, 2.0, settings="attention=xformers mixed_precision=fp16 network_dim=16")
        assert priced_on(offer(1, 1.0), WORK, [other_rank]).cost is None
        assert priced_on(offer(1, 1.0), WORK, [other_attention]).cost is not None

    def test_the_newest_settings_of_a_card_count(self) -> None:
        card = "NVIDIA GeForce RTX 5090"
        old = speed(card, 4.0, settings=SETTINGS.replace("sdpa", "xformers"), at=1.0)
        found = priced_on(offer(1, 1.0), WORK, [old, speed(card, 2.0, at=9.0)])
        assert (found.train_seconds, found.measured) == (4120.0, 9.0)

    def test_an_unknown_line_leaves_the_cost_unknown(self) -> None:
        found = priced_on(offer(1, 1.0, down_mbps=None), WORK, [speed("NVIDIA GeForce RTX 5090", 2.0)])
        assert (found.prepare_seconds, found.cost) == (None, None)


class TestChoice:
    def test_a_dearer_box_that_makes_the_job_cheaper_comes_first(self) -> None:
        offers = [offer(1, 0.40), offer(2, 1.0, gpu="H100 SXM"), offer(3, 0.10, gpu="RTX 3090")]
        speeds = [speed("NVIDIA GeForce RTX 5090", 4.0), speed("NVIDIA H100 80GB HBM3", 1.0)]
        found = choose(offers, WANTS, work=WORK, speeds=speeds)
        assert [each.offer.id for each in found.fit] == ["2", "1", "3"]

    def test_without_measurements_the_price_decides(self) -> None:
        found = choose([offer(1, 0.4), offer(2, 0.3)], WANTS, work=WORK)
        assert [each.offer.id for each in found.fit] == ["2", "1"]

    def test_every_reason_excludes_and_is_counted(self) -> None:
        offers = [
            offer(1, 9.0),
            offer(2, 0.5, reliability=0.90),
            offer(3, 0.5, down_mbps=50.0),
            offer(4, 0.5, driver="550.54.14"),
            offer(5, 0.5),
            offer(6, 0.5, driver="570.124.06", reliability=0.99, ram_bytes=64 * 10**9),
            offer(7, 0.5, ram_bytes=16 * 10**9),
        ]
        found = choose(offers, replace(WANTS, max_per_hour=1.0), avoided={"m5"})
        assert [each.offer.id for each in found.fit] == ["6"]
        assert dict(found.unfit) == dict.fromkeys(
            (Unfit.PRICE, Unfit.RELIABILITY, Unfit.NETWORK, Unfit.DRIVER, Unfit.AVOIDED, Unfit.RAM), 1
        )
        assert found.nearest is None

    def test_an_older_card_runs_on_an_older_driver(self) -> None:
        old = offer(1, 0.5, gpu="RTX 4090", driver="550.54.14")
        assert choose([old], replace(WANTS, least_driver=(525,))).fit
        assert not choose([old], replace(WANTS, least_driver=(560,))).fit

    def test_the_nearest_is_shown_where_nothing_is_under_the_price(self) -> None:
        offers = [offer(1, 2.0), offer(2, 1.5), offer(3, 1.2, reliability=0.1)]
        found = choose(offers, replace(WANTS, max_per_hour=1.0))
        assert found.fit == ()
        assert found.nearest is not None
        assert found.nearest.offer.id == "2"


@given(
    st.lists(st.tuples(st.floats(0.01, 10), st.floats(1, 5000), st.booleans()), max_size=12),
    st.floats(0.01, 10) | st.none(),
)
def test_nothing_unfit_is_taken_and_nothing_fit_is_lost(
    rows: list[tuple[float, float, bool]], most: float | None
) -> None:
    offers = [
        offer(number, price, down_mbps=line, gpu="RTX 5090" if known else "RTX 3090")
        for number, (price, line, known) in enumerate(rows)
    ]
    found = choose(offers, replace(WANTS, max_per_hour=most), work=WORK, speeds=[speed("NVIDIA GeForce RTX 5090", 2.0)])
    fit = {each.offer.id for each in found.fit}
    assert fit == {
        each.id for each in offers if (most is None or each.per_hour <= most) and (each.down_mbps or 0) >= 100
    }
    costs = [each.cost for each in found.fit]
    known = [cost for cost in costs if cost is not None]
    assert known == sorted(known)
    assert costs[: len(known)] == known


def test_an_offer_whose_downloads_cost_more_than_the_budget_is_left_out() -> None:
    wants = replace(WANTS, budget=1.0)
    offers = [offer(1, 0.1, per_gb_down=0.02), offer(2, 0.2, per_gb_down=0.001)]
    found = choose(offers, wants, work=WORK)
    assert [each.offer.id for each in found.fit] == ["2"]
    assert found.unfit == ((Unfit.BUDGET, 1),)


class TestHistory:
    def launch(self, *boxes: Box) -> Launch:
        job = Job(name="j", title="j", dataset=Path("/d"), dataset_stamp="", options=(), work=WORK)
        return Launch(id="0123abcd", created=0.0, wants=WANTS, jobs=(job,), boxes=boxes)

    def test_a_set_up_is_what_a_box_took_beyond_its_download(self) -> None:
        boxes = (
            Box(name=str(n), offer=offer(n, 0.5), began=0.0, ready=models_bytes(("t2v",)) / 1e8 + more)
            for n, more in enumerate((100.0, 300.0, 900.0))
        )
        found = history_of([self.launch(*boxes, Box(name="x", offer=offer(9, 0.5), began=0.0))], 0.0)
        assert found.set_up_seconds == pytest.approx(300.0)

    def test_a_sick_machine_is_avoided_for_a_month_and_one_that_never_answered_is_not(self) -> None:
        address = Address(name="a", host="h", port=1, user="root", key=Path("/k"))
        sick = Box(name="a", offer=offer(1, 0.5), began=0.0, address=address, blamed=True)
        taken = Box(name="b", offer=offer(2, 0.5), began=0.0, blamed=True)
        good = Box(name="c", offer=offer(3, 0.5), began=0.0, address=address)
        assert history_of([self.launch(sick, taken, good)], 86400.0).avoided == {"m1"}
        assert history_of([self.launch(sick)], AVOIDED_SECONDS + 1).avoided == frozenset()

    def test_a_damaged_record_is_skipped(self, tmp_path: Path) -> None:
        new(tmp_path).record.write_text("{")
        assert read_history(tmp_path, 0.0) == History()

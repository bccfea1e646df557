"""What this box remembers of its speed, and for which work it serves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.runs import T0, make_plan
from wan_train.dataset.layout import Bucket, DatasetSummary, SubsetSummary
from wan_train.dataset.model import MediaKind
from wan_train.recipe.measured import Shape, Tuned
from wan_train.recipe.model import changed
from wan_train.recipe.terms import Expert
from wan_train.run.attempt_watch import Stopwatch
from wan_train.run.plan import CacheNeed, Quote, QuoteBasis, StepKind
from wan_train.run.quote import Cards, dollars_of, quote
from wan_train.run.speeds import (
    Key,
    Speed,
    batch_cost,
    expected,
    item_cost,
    key_of,
    read_speeds,
    remember,
    sizes_text,
)

CARD = "NVIDIA GeForce RTX 5090"
KEY = Key(kind=StepKind.TRAIN, trainer="musubi d0a1930", card=CARD, settings="attention=sdpa")


def speed(
    *, key: Key = KEY, sizes: str = "960x960", cost: float = 4000.0, per_unit: float = 2.0, at: float = T0
) -> Speed:
    return Speed(at=at, key=key, sizes=sizes, cost=cost, units=2400, per_unit=per_unit, beside=60.0)


def pictures(width: int, height: int, *, items: int = 24, frames: int = 1, batch: int = 1) -> DatasetSummary:
    subset = SubsetSummary(
        index=0, kind=MediaKind.IMAGE, files=items, captions=items, items=items, num_repeats=1, batch_size=batch,
        resolution=(width, height), buckets=(Bucket(width=width, height=height, frames=frames, items=items),),
        batches_per_epoch=items // batch,
    )  # fmt: skip
    return DatasetSummary(
        subsets=(subset,), files=items, captions=items, items_with_repeats=items, batches_per_epoch=items // batch,
        latent_bytes=0, text_bytes=0,
    )  # fmt: skip


class TestCost:
    def test_twice_the_pixels_cost_a_little_more_than_twice(self) -> None:
        small, large = batch_cost(pictures(512, 512)), batch_cost(pictures(1024, 512))
        assert small is not None
        assert large is not None
        assert 2.0 < large / small < 2.1

    def test_long_clips_pay_for_attention(self) -> None:
        picture, clip = batch_cost(pictures(832, 480)), batch_cost(pictures(832, 480, frames=81))
        assert picture is not None
        assert clip is not None
        assert clip / picture > 1.5 * 21

    def test_a_batch_of_four_costs_four(self) -> None:
        assert batch_cost(pictures(512, 512, batch=4)) == pytest.approx(4 * (batch_cost(pictures(512, 512)) or 0))

    def test_sizes_in_words(self) -> None:
        assert sizes_text(pictures(960, 544)) == "960x544"


class TestExpected:
    def test_the_same_work_is_taken_as_measured(self) -> None:
        found = expected([speed()], KEY, cost=4000.0, units=10)
        assert found is not None
        assert (found.per_unit, found.beside, found.scaled_from) == (2.0, 60.0, None)

    def test_another_size_is_scaled_and_says_so(self) -> None:
        found = expected([speed()], KEY, cost=8000.0, units=10)
        assert found is not None
        assert (found.per_unit, found.scaled_from) == (4.0, "960x960")

    def test_the_nearest_size_counts(self) -> None:
        known = [speed(), speed(sizes="512x512", cost=1000.0, per_unit=0.6, at=T0 + 9)]
        assert (found := expected(known, KEY, cost=3000.0, units=10)) is not None
        assert found.scaled_from == "960x960"

    @pytest.mark.parametrize(
        "other",
        [
            replace(KEY, card="NVIDIA GeForce RTX 4090"),
            replace(KEY, trainer="musubi v0.3.4"),
            replace(KEY, settings="attention=sdpa blocks_to_swap=10"),
        ],
    )
    def test_another_card_version_or_setting_is_no_basis(self, other: Key) -> None:
        assert expected([speed(key=other)], KEY, cost=4000.0, units=10) is None

    def test_as_many_programs_at_once_are_a_better_basis(self) -> None:
        known = [speed(at=T0 + 9, per_unit=9.0), speed(key=replace(KEY, at_once=2))]
        assert (found := expected(known, replace(KEY, at_once=2), cost=4000.0, units=10)) is not None
        assert found.per_unit == 2.0

    def test_a_caching_too_short_to_time_says_nothing_of_a_large_one(self) -> None:
        short = replace(speed(key=replace(KEY, kind=StepKind.CACHE_TEXT)), units=8, per_unit=0.0)
        assert expected([short], short.key, cost=4000.0, units=16) is not None
        assert expected([short], short.key, cost=4000.0, units=17) is None

    @given(st.floats(1.0, 1e6), st.floats(1.0, 1e6))
    def test_more_work_never_takes_less(self, one: float, other: float) -> None:
        small, large = sorted((one, other))
        first, second = (expected([speed()], KEY, cost=cost, units=10) for cost in (small, large))
        assert first is not None
        assert second is not None
        assert first.per_unit <= second.per_unit * 1.03


class TestStore:
    def test_the_newest_four_of_the_same_work_stay(self, tmp_path: Path) -> None:
        remember(tmp_path, speed(sizes="512x512", cost=1000.0, per_unit=0.5))
        for number in range(1, 7):
            remember(tmp_path, speed(per_unit=float(number), at=T0 + number))
        assert sorted(each.per_unit for each in read_speeds(tmp_path)) == [0.5, 3.0, 4.0, 5.0, 6.0]

    def test_trainings_that_were_stopped_drive_no_loading_out(self, tmp_path: Path) -> None:
        remember(tmp_path, speed(at=1.0))
        for number in range(6):
            remember(tmp_path, replace(speed(at=10.0 + number), beside=None))
        kept = read_speeds(tmp_path)
        assert [each.at for each in kept] == [1.0, 13.0, 14.0, 15.0]
        assert kept[0].beside is not None

    @pytest.mark.parametrize("text", ["", "[]", '{"musubi RTX 5090 960x960": 2.5}', '{"speeds": [1]}', "{"])
    def test_what_an_older_version_or_a_crash_left_is_no_basis(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "speeds.json").write_text(text)
        assert read_speeds(tmp_path) == ()
        remember(tmp_path, speed())
        assert read_speeds(tmp_path) == (speed(),)

    def test_a_folder_that_is_gone_is_no_error(self, tmp_path: Path) -> None:
        remember(tmp_path / "none", speed())


class TestStopwatch:
    def test_steps_pauses_and_the_rest(self) -> None:
        watch = Stopwatch()
        watch.look(None, 0.0)
        for step in range(1, 101):
            watch.look(step, 60.0 + 2.0 * (step - 1))
        watch.look(100, 270.0, paused=True)
        watch.look(100, 300.0)
        for step in range(101, 201):
            watch.look(step, 300.0 + 2.0 * (step - 100))
        assert (timing := watch.timing(seconds=520.0)) is not None
        assert watch.pauses == 1
        assert watch.paused == 30.0
        # 58 s to load, the twelve seconds before the pause was seen, and the end.
        assert timing.per_unit == pytest.approx((500 - 60 - 30) / 199)
        assert timing.beside == pytest.approx(520 - 30 - 200 * timing.per_unit)

    def test_samples_after_the_last_step_slow_no_step_and_count_as_a_pause(self) -> None:
        """Samples are made after every epoch, the last one included: five epochs of 40 steps, 20 s of samples each."""
        watch, now = Stopwatch(), 10.0
        for step in range(1, 201):
            now += 1.0
            watch.look(step, now, paused=step % 40 == 0)
            for second in range(1, 21 if step % 40 == 0 else 1):
                now += 1.0
                watch.look(step, now, paused=second < 20 or step == 200)  # the end is in the pause
        assert (timing := watch.timing(seconds=now)) is not None
        assert (timing.per_unit, timing.beside, timing.after) == (1.0, 10.0, 0.0)
        assert watch.seconds_per_pause() == 20.0

    def test_a_pause_that_the_end_cut_short_is_no_measure(self) -> None:
        watch = Stopwatch()
        watch.look(1, 1.0)
        watch.look(2, 2.0, paused=True)
        watch.look(2, 4.0, paused=True)
        assert watch.seconds_per_pause(only_whole=True) is None
        watch.look(3, 22.0)
        watch.look(4, 23.0, paused=True)
        watch.look(4, 26.0, paused=True)
        assert watch.seconds_per_pause(only_whole=True) == 20.0

    def test_a_few_steps_are_no_speed(self) -> None:
        watch = Stopwatch()
        for step in range(1, 20):
            watch.look(step, float(step))
        assert (timing := watch.timing(seconds=40.0)) is not None
        assert timing.per_unit == 0.0
        assert Stopwatch().timing(seconds=40.0) is None

    def test_what_follows_the_last_step_is_known_apart(self) -> None:
        watch = Stopwatch()
        for step in range(1, 61):
            watch.look(step, 10.0 + step)
        for second in range(71, 85):  # it saves, and ends
            watch.look(60, float(second))
        assert (timing := watch.timing(seconds=84.0, made=62)) is not None
        assert (timing.per_unit, timing.beside, timing.after) == (1.0, 22.0, 12.0)

    def test_what_no_look_saw_counts_too(self) -> None:
        """Three pictures are cached within one second: the program's start is all the time there is."""
        assert (timing := Stopwatch().timing(seconds=9.0, made=3)) is not None
        assert (timing.units, timing.per_unit, timing.beside) == (3, 0.0, 9.0)
        watch = Stopwatch()
        for step in range(1, 60):
            watch.look(step, 10.0 + step)
        assert (timing := watch.timing(seconds=80.0, made=61)) is not None
        assert (timing.units, timing.per_unit, timing.beside) == (61, 1.0, 19.0)


class TestQuote:
    plan = make_plan(batch_cost=4000.0, speed_key="960x960")

    def speeds(self, **changes: float) -> list[Speed]:
        training = self.plan.training(Expert.HIGH)
        key = key_of(self.plan.trainer, StepKind.TRAIN, training, card=CARD, at_once=1)
        return [replace(speed(key=key), **changes)]

    def test_two_cards_at_once_one_in_turn(self) -> None:
        each = 60 + 2400 * 2.0
        for free, seconds in ((2, each), (1, 2 * each), (0, 2 * each)):
            found = quote(self.plan, self.speeds(), Cards(name=CARD, free=free, hold_both=True))
            # One second passes before the first program and after the last.
            assert found == Quote(seconds=1 + seconds, seconds_per_batch=2.0, measured=T0)

    def test_nothing_measured_is_no_quote(self) -> None:
        assert quote(self.plan, [], Cards(name=CARD, free=2, hold_both=True)) is None
        other = Cards(name="NVIDIA H100", free=2, hold_both=True)
        assert quote(self.plan, self.speeds(), other) is None

    def test_trainings_that_another_program_slowed_make_a_range(self) -> None:
        (usual,) = self.speeds()
        slow = [replace(usual, at=T0 + n, per_unit=2.0 + n / 2, beside=60.0 + n, after=9.0 + n) for n in (1, 2)]
        found = quote(self.plan, [usual, *slow], Cards(name=CARD, free=2, hold_both=True))
        assert found is not None
        assert (found.seconds_per_batch, found.measured, found.trainings) == (2.5, T0 + 2, 3)
        assert (found.seconds, found.after_steps) == (1 + 61 + 2400 * 2.5, 10.5)  # the oldest has not kept the latter
        assert (found.least, found.most) == (1 + 60 + 2400 * 2.0, 1 + 62 + 2400 * 3.0)
        alike = quote(self.plan, [usual, replace(usual, at=T0 + 9)], Cards(name=CARD, free=2, hold_both=True))
        assert alike is not None
        assert (alike.trainings, alike.least, alike.most) == (2, None, None)

    def test_what_tune_measured_is_the_basis_where_no_run_is(self) -> None:
        tuned = Tuned(
            words="sdpa", seconds_per_step=1.5, guide_seconds=None, at=T0, load_seconds=40.0, epoch_seconds=0.5,
            shape=Shape(width=960, height=960),
        )  # fmt: skip
        plan = replace(self.plan, tuned=tuned, batch_cost=item_cost(960, 960, 1))
        cards = Cards(name=CARD, free=2, hold_both=True)
        found = quote(plan, [], cards)
        assert found == Quote(
            seconds=1 + 40 + 100 * 0.5 + 2400 * 1.5, seconds_per_batch=1.5, measured=T0, without=("saving",),
            basis=QuoteBasis.TUNE,
        )  # fmt: skip
        twice = quote(replace(plan, batch_cost=2 * item_cost(960, 960, 1)), [], cards)
        assert twice is not None
        assert (twice.seconds_per_batch, twice.scaled_from) == (3.0, "960x960")
        run = quote(replace(plan, batch_cost=4000.0), self.speeds(), cards)
        assert run is not None
        assert (run.basis, run.seconds_per_batch) == (QuoteBasis.RUNS, 2.0)

    def test_what_tune_measured_says_nothing_of_an_expert_with_other_settings(self) -> None:
        tuned = Tuned(words="sdpa", seconds_per_step=1.5, guide_seconds=None, at=T0, load_seconds=40.0)
        high, low = self.plan.recipe.experts
        slow = replace(low, training=changed(low.training, {"blocks_to_swap": 20}))
        plan = replace(self.plan, tuned=tuned, recipe=replace(self.plan.recipe, experts=(high, slow)))
        assert quote(plan, [], Cards(name=CARD, free=1, hold_both=True)) is None

    def test_runs_that_share_a_box_share_its_price(self) -> None:
        found = Quote(seconds=7200, seconds_per_batch=2.0, measured=T0)
        assert dollars_of(found, 0.93) == pytest.approx(1.86)
        assert dollars_of(found, 0.93, runs=3) == pytest.approx(0.62)

    def test_caching_is_in_it_or_named(self) -> None:
        needs = {step: CacheNeed(items=24, make=24, remove=0) for step in ("cache-latents", "cache-text")}
        plan = replace(self.plan, dataset=replace(self.plan.dataset, caches=needs))
        cards = Cards(name=CARD, free=1, hold_both=True)
        without = quote(plan, self.speeds(), cards)
        assert without is not None
        assert without.without == ("caching",)
        cached = [
            Speed(
                at=T0,
                key=key_of(plan.trainer, kind, None, card=CARD, at_once=2),
                sizes="960x960",
                cost=4000.0 if kind is StepKind.CACHE_LATENTS else 1.0,
                units=24,
                per_unit=0.5,
                beside=20.0,
            )
            for kind in (StepKind.CACHE_LATENTS, StepKind.CACHE_TEXT)
        ]
        with_it = quote(plan, [*self.speeds(), *cached], cards)
        assert with_it is not None
        assert with_it.without == ()
        assert with_it.seconds == without.seconds + 32.0

    def test_settings_of_one_expert_that_were_never_timed_leave_no_quote(self) -> None:
        high, low = self.plan.recipe.experts
        slow = replace(low, training=changed(low.training, {"blocks_to_swap": 20}))
        plan = replace(self.plan, recipe=replace(self.plan.recipe, experts=(high, slow)))
        assert quote(plan, self.speeds(), Cards(name=CARD, free=1, hold_both=True)) is None

"""The schedule that a training really follows."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_train.engine.capabilities import stored
from wan_train.engine.schedule import UnknownScheduleError, epoch_reaching, polynomial_end, schedule_of, shares
from wan_train.recipe.load import shipped
from wan_train.recipe.model import Training
from wan_train.recipe.terms import Expert, Task


def training(**changes: Any) -> Training:
    return replace(shipped(Task.T2V).spec(Expert.HIGH).training, **changes)


@pytest.mark.parametrize(
    ("changes", "schedule"),
    [
        ({}, "polynomial"),
        ({"lr_scheduler": "cosine"}, "cosine"),
        ({"options": {"lr_scheduler_type": "CosineAnnealingLR"}}, "CosineAnnealingLR"),
        ({"optimizer_type": "schedulefree.AdamWScheduleFree"}, "schedule-free"),
        ({"optimizer_type": "Adafactor", "optimizer_args": ()}, "adafactor"),
        ({"optimizer_type": "adafactor", "optimizer_args": ("relative_step=False",)}, "polynomial"),
    ],
)
def test_the_schedule_follows_from_optimizer_and_scheduler(changes: dict[str, Any], schedule: str) -> None:
    assert schedule_of(training(**changes)) == schedule


def test_where_a_polynomial_schedule_ends() -> None:
    assert polynomial_end(training()) == 1e-7
    assert polynomial_end(training(options={"lr_scheduler_args": ("lr_end=1e-6",)})) == 1e-6


def reached(part: float, *, epochs: int = 100, steps_per_epoch: int = 8, **changes: Any) -> int:
    return epoch_reaching(part, training(**changes), epochs, steps_per_epoch, stored("v0.3.4"))


def test_the_guides_schedule_has_almost_all_of_its_integral_behind_it_after_half_of_its_epochs() -> None:
    behind = shares(training(), 100, 50, stored("d0a1930"))

    # The continuous curve, power 8 above a floor of 1e-7: at half-time the floor is nearly half of what is left.
    floor = 1e-7 / 3e-4
    whole = (1 - floor) / 9 + floor
    for epoch in (10, 20, 30, 40, 50, 60, 90):
        ahead = 1 - epoch / 100
        left = ((1 - floor) * ahead**9 / 9 + floor * ahead) / whole
        assert 1 - behind[epoch - 1] == pytest.approx(left, rel=0.01)
    assert reached(0.9965) == 50
    assert reached(0.998) == 56


@pytest.mark.parametrize("schedule", ["constant", "constant_with_warmup"])
def test_a_constant_rate_reaches_a_share_only_near_the_end(schedule: str) -> None:
    assert reached(0.998, lr_scheduler=schedule) == 100
    assert reached(0.998, lr_scheduler=schedule, epochs=1000) == 998
    assert reached(0.5, lr_scheduler=schedule) == 50


@pytest.mark.parametrize(
    ("changes", "epoch"),
    [
        # 1 - (1 - x)^2 and x + sin(pi x)/pi, solved for 99.8 %.
        ({"lr_scheduler": "linear"}, 96),
        ({"lr_scheduler": "cosine"}, 90),
        # A warm-up of half of the steps: 25 epochs of the full rate, then 50 / 9 of them under the falling power.
        ({"lr_warmup_steps": 400}, 71),
        ({"lr_warmup_steps": 0.5}, 71),
        ({"lr_scheduler": "piecewise_constant", "options": {"lr_scheduler_args": ("step_rules='1:80,0.0'",)}}, 10),
        ({"lr_scheduler": "warmup_stable_decay", "options": {"lr_decay_steps": 400}}, 93),
    ],
)
def test_other_schedules_end_where_their_curve_says(changes: dict[str, Any], epoch: int) -> None:
    assert reached(0.998, **changes) == epoch


SCHEDULES = [
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr",
    "polynomial", "inverse_sqrt", "warmup_stable_decay", "rex",
]  # fmt: skip


@given(
    schedule=st.sampled_from(SCHEDULES),
    epochs=st.integers(1, 60),
    steps_per_epoch=st.integers(1, 12),
    warmup=st.one_of(st.integers(0, 40), st.floats(0, 0.9)),
    power=st.floats(0.5, 9),
    floor=st.floats(0, 1),
    part=st.floats(0.01, 0.999),
)
def test_a_share_is_reached_once_and_never_later_than_a_larger_one(
    *, schedule: str, epochs: int, steps_per_epoch: int, warmup: float, power: float, floor: float, part: float
) -> None:
    wanted = training(
        lr_scheduler=schedule,
        lr_scheduler_power=power,
        lr_scheduler_min_lr_ratio=floor,
        lr_warmup_steps=None if schedule == "constant" else min(warmup, epochs * steps_per_epoch),
    )
    capabilities = stored("v0.3.4")

    behind = shares(wanted, epochs, steps_per_epoch, capabilities)
    epoch = epoch_reaching(part, wanted, epochs, steps_per_epoch, capabilities)

    assert len(behind) == epochs
    assert behind[-1] == 1
    assert all(0 <= earlier <= later + 1e-9 for earlier, later in itertools.pairwise(behind))
    assert behind[epoch - 1] >= part - 1e-9
    assert epoch == 1 or behind[epoch - 2] < part
    assert epoch <= epoch_reaching((part + 1) / 2, wanted, epochs, steps_per_epoch, capabilities)


def test_a_very_long_schedule_is_told_to_the_same_epoch() -> None:
    assert reached(0.998, epochs=100, steps_per_epoch=50_000) == 56


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"optimizer_type": "prodigyopt.Prodigy"}, "chooses its own step"),
        ({"optimizer_type": "schedulefree.AdamWScheduleFree"}, "chooses its own step"),
        ({"optimizer_type": "Adafactor", "optimizer_args": ()}, "chooses its own step"),
        ({"optimizer_type": "dadaptation.DAdaptAdam"}, "chooses its own step"),
        ({"options": {"lr_scheduler_type": "CosineAnnealingLR"}}, "the custom class CosineAnnealingLR"),
        ({"options": {"lr_scheduler_args": ("last_epoch=3",)}}, "lr_scheduler_args"),
        ({"lr_scheduler": "reduce_lr_on_plateau"}, "reduce_lr_on_plateau is unknown"),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 5}, "takes no warm-up"),
        ({"learning_rate": 1e-8}, "not below the learning rate"),
    ],
)
def test_where_the_learning_rate_is_not_the_step_the_reason_is_said(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(UnknownScheduleError, match=why):
        reached(0.998, **changes)

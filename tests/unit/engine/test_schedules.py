"""The schedule that a training really follows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from wan_train.engine.capabilities import polynomial_end, schedule_of
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

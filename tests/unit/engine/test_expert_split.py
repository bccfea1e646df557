"""Which steps each expert makes, beside what the trainer's own schedulers gave."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from wan_train.engine.generate import BOUNDARIES, high_noise_steps
from wan_train.recipe.terms import Task

FOUND = json.loads((Path(__file__).parent / "expert_split.json").read_text(encoding="utf-8"))["steps"]


@pytest.mark.parametrize("name", [name for name in FOUND if "unipc" in name])
def test_it_is_what_the_trainer_does(name: str) -> None:
    boundary, _, shift = name.split()
    task = next(task for task in Task if BOUNDARIES[task] == float(boundary))
    made = [high_noise_steps(task, steps=steps, shift=float(shift), unipc=True) for steps in range(1, 61)]
    assert made == FOUND[name]


@pytest.mark.parametrize("name", [name for name in FOUND if "vanilla" in name])
def test_the_other_solver_agrees_where_no_level_is_the_boundary_itself(name: str) -> None:
    boundary, _, shift = name.split()
    task = next(task for task in Task if BOUNDARIES[task] == float(boundary))
    counts = [steps for steps in range(1, 61) if not meets(Fraction(boundary), Fraction(shift), steps)]
    assert len(counts) > 40
    made = [high_noise_steps(task, steps=steps, shift=float(shift), unipc=False) for steps in counts]
    assert made == [FOUND[name][steps - 1] for steps in counts]


def meets(boundary: Fraction, shift: Fraction, steps: int) -> bool:
    """Whether a level is exactly the boundary, where the trainer's rounding to 32 bits decides."""
    evens = (1 - Fraction(step, steps) for step in range(steps))
    return any(shift * even / (1 + (shift - 1) * even) == boundary for even in evens)


def test_the_usual_settings() -> None:
    assert high_noise_steps(Task.T2V, steps=20, shift=12.0, unipc=True) == 13
    assert high_noise_steps(Task.T2V, steps=4, shift=5.0, unipc=False) == 2

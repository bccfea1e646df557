"""The memory steps: each saves more than the one before, and it ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.runs import make_recipe, make_trainer
from wan_train.engine.capabilities import KNOWN_COMMITS, Capabilities, Script
from wan_train.engine.memory_steps import next_memory_step

BOTH = sorted(KNOWN_COMMITS)


def capabilities(commit: str) -> Capabilities:
    return replace(make_trainer(), commit=commit, version=KNOWN_COMMITS[commit]).capabilities


@pytest.mark.parametrize("commit", BOTH)
@pytest.mark.parametrize("swap", [0, 10, 25, 36])
@pytest.mark.parametrize("fp8", [True, False])
def test_the_ladder_goes_down_and_ends(commit: str, swap: int, fp8: bool) -> None:
    training = replace(make_recipe()[0].experts[0].training, blocks_to_swap=swap, fp8_base=fp8)
    changes: dict[str, bool | int | str] = {}
    steps = []
    while (step := next_memory_step(training, changes, capabilities(commit), trains_fp8=True)) is not None:
        assert step.words
        assert len(steps) < 8
        assert step.changes.items() - changes.items(), "a step changes something"
        changes |= step.changes
        steps.append(dict(step.changes))
    blocks = [int(step["blocks_to_swap"]) for step in steps if "blocks_to_swap" in step]
    assert blocks == sorted(set(blocks))
    assert all(swap < count <= 39 for count in blocks)
    assert (fp8 or changes.get("fp8_base")) is True
    offload = "gradient_checkpointing_cpu_offload"
    assert (offload in changes) == capabilities(commit).has(Script.TRAIN, f"--{offload}")


def test_weights_that_cannot_be_fp8_are_left_as_they_are() -> None:
    training = replace(make_recipe()[0].experts[0].training, blocks_to_swap=36, fp8_base=False)
    step = next_memory_step(training, {}, capabilities(BOTH[0]), trains_fp8=False)
    assert step is None or "fp8_base" not in step.changes

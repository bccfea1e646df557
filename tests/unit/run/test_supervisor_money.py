"""What a whole run costs, and how its budget ends it, with a clock moved by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from supervisor_world import World, hangs

from wan_train.base.errors import ExitCode
from wan_train.recipe.terms import Expert
from wan_train.run.events import BudgetReached, PriceSet, StateSaved, StepStopping, StopMode, SupervisorStarted
from wan_train.run.meter import Meter

A_DOLLAR_A_SECOND = 3600.0
BOTH = (Expert.HIGH, Expert.LOW)


def spent(world: World) -> Meter:
    return world.supervisor._state.meter


def test_a_run_without_a_price_is_only_timed(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    assert world.play() == ExitCode.DONE
    assert not world.events(PriceSet)
    assert spent(world).spent(world.time) is None


def test_every_second_of_a_run_is_paid(tmp_path: Path) -> None:
    world = World(root=tmp_path, price=A_DOLLAR_A_SECOND)
    begun = world.time
    assert world.play() == ExitCode.DONE
    assert spent(world).dollars == pytest.approx(world.time - begun)


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_budget_ends_a_run_with_everything_saved_and_more_lets_it_go_on(tmp_path: Path, gpus: int) -> None:
    world = World(root=tmp_path, price=A_DOLLAR_A_SECOND, experts=BOTH, gpus=gpus, epochs=200)
    assert world.play(budget=150.0) == ExitCode.OVER_BUDGET
    (reached,) = world.events(BudgetReached)
    assert reached.mode is StopMode.AFTER_STATE
    first = spent(world).dollars
    assert reached.spent < first < 150.0
    for stopping in world.events(StepStopping):
        saved = [event for event in world.events(StateSaved) if event.step == stopping.step]
        assert saved[-1].at >= reached.at, "it was stopped without a new checkpoint"

    world.time += 100_000
    assert world.play(resume=True, budget=300.0) == ExitCode.OVER_BUDGET
    assert first < spent(world).dollars < 300.0
    assert world.begun()[-1].epochs_before > 0


def test_a_budget_that_pays_for_no_checkpoint_is_kept_all_the_same(tmp_path: Path) -> None:
    world = World(root=tmp_path, price=A_DOLLAR_A_SECOND, scripts={"train-high": [hangs(after=3)]})
    assert world.play(budget=40.0) == ExitCode.OVER_BUDGET
    assert world.events(BudgetReached)[-1].mode is StopMode.NOW
    assert spent(world).dollars < 40.0


def test_a_budget_that_is_enough_changes_nothing(tmp_path: Path) -> None:
    world = World(root=tmp_path, price=A_DOLLAR_A_SECOND)
    assert world.play(budget=10_000.0) == ExitCode.DONE
    assert not world.events(BudgetReached)


def test_the_time_between_a_crash_and_the_next_supervisor_is_not_paid(tmp_path: Path) -> None:
    world = World(root=tmp_path, price=A_DOLLAR_A_SECOND, epochs=40)

    def crash() -> None:
        raise KeyboardInterrupt

    world.at[20] = crash
    begun = world.time
    with pytest.raises(KeyboardInterrupt):
        world.play()
    crashed = world.time
    for process in world.processes:
        os.utime(process.directory.log, (crashed, crashed))
    world.time += 100_000
    resumed = world.time
    assert world.play() == ExitCode.DONE
    assert world.events(SupervisorStarted)[-1].idle_since is not None
    assert spent(world).dollars == pytest.approx(crashed - begun + world.time - resumed, abs=3.0)

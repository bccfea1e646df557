"""What a run does next, in any world."""

from __future__ import annotations

import random
import signal

from hypothesis import given, settings
from hypothesis import strategies as st
from run_world import World, world

from support.runs import make_plan
from wan_train.base import codec
from wan_train.base.errors import ExitCode
from wan_train.engine.failures import Cause
from wan_train.recipe.terms import Expert
from wan_train.run.events import Event, StopMode
from wan_train.run.scheduler import Finish, GiveUp, Launch, Stop, decide
from wan_train.run.state import JobState, fold_all


@settings(max_examples=300)
@given(
    seed=st.integers(0, 2**32),
    gpus=st.integers(1, 4),
    failing=st.frozensets(st.sampled_from(["cache-latents", "cache-text", "train-high", "train-low"]), max_size=2),
    stops=st.lists(st.tuples(st.integers(0, 40), st.sampled_from(StopMode), st.sampled_from([2, 15])), max_size=2),
    flaky=st.dictionaries(
        st.sampled_from(["cache-text", "cache-latents", "train-high", "train-low"]),
        st.sampled_from([Cause.OUT_OF_MEMORY, Cause.HOST_OUT_OF_MEMORY, Cause.LOST]),
        max_size=2,
    ),
    experts=st.sampled_from([(Expert.HIGH, Expert.LOW), (Expert.HIGH,), (Expert.LOW,)]),
)
def test_in_any_world(
    *,
    seed: int,
    gpus: int,
    failing: frozenset[str],
    stops: list[tuple[int, StopMode, int]],
    flaky: dict[str, Cause],
    experts: tuple[Expert, ...],
) -> None:
    """The world itself asserts at each action: one step per GPU, only on claimed and free ones, none after a stop."""
    run = world(gpus, plan=make_plan(experts=experts), chance=random.Random(seed), failing=failing, flaky=flaky)
    for tick in range(60):
        for when, mode, number in stops:
            if when == tick and not run.state.is_over:
                run.stop(mode, number)
        run.stir()
        if not run.state.is_over:
            run.tick()
    run.calm()
    run.play()

    assert run.most_at_once <= min(gpus, 2)
    started = [step for step, _ in run.started()]
    order = list(dict.fromkeys(started))
    assert order == [step.id for step in run.plan.steps if step.id in order], "an unplanned order"
    assert all(started.count(step) <= 1 + (step in flaky) for step in order)
    _check_exit_code(run)
    assert decide(run.plan, run.state, run.views(), run.now) == ()
    assert fold_all(run.plan, run.events) == run.state
    read = [codec.from_json(codec.to_json(event, Event), Event, where="test") for event in run.events]
    assert read == run.events
    assert fold_all(run.plan, read) == run.state


def _check_exit_code(run: World) -> None:
    states = [run.state.jobs[step.id].state for step in run.plan.steps if step.expert is not None]
    if all(state is JobState.SUCCEEDED for state in states):
        expected = ExitCode.DONE
    elif run.state.stop is not None and JobState.STOPPED in [job.state for job in run.state.jobs.values()]:
        expected = ExitCode.INTERRUPTED if run.state.stop.signal == signal.SIGINT else ExitCode.TERMINATED
    elif JobState.SUCCEEDED in states:
        expected = ExitCode.PARTLY_FAILED
    else:
        expected = ExitCode.TRAINING_FAILED
    assert run.exit_code is expected


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32), gpus=st.integers(1, 3))
def test_deciding_twice_is_harmless(seed: int, gpus: int) -> None:
    """A decision that took effect is not decided again: the same actions twice would launch twice."""
    run = world(gpus, chance=random.Random(seed))
    for _ in range(40):
        run.stir()
        if run.state.is_over:
            break
        actions = run.tick()
        again = decide(run.plan, run.state, run.views(), run.now)
        assert not {action for action in actions if isinstance(action, Launch | GiveUp | Stop | Finish)} & set(again)

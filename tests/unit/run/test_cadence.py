"""How often states are saved, and where a resumed attempt ends."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from support.runs import SUPERVISOR, T0
from wan_train.run.cadence import state_every_epochs
from wan_train.run.state import Attempt

FIRST = Attempt(number=1, gpu_uuid=None, gpu_label=None, identity=SUPERVISOR, started=T0)
EPOCHS = st.integers(1, 500)


@given(EPOCHS, st.integers(0, 499), st.none() | st.integers(1, 100), st.floats(0.0, 1e5))
def test_every_checkpoint_that_was_asked_for_falls_on_a_state(
    missing: int, done: int, keep: int | None, epoch_seconds: float
) -> None:
    every = state_every_epochs(missing=missing, done=done, keep=keep, epoch_seconds=epoch_seconds)
    assert 1 <= every <= missing
    assert every == 1 or every * epoch_seconds <= 300 * 1.5
    if keep is not None:
        wanted = [epoch - done for epoch in range(done + 1, done + missing) if epoch % keep == 0]
        assert all(local % every == 0 for local in wanted)


def test_about_five_minutes() -> None:
    assert state_every_epochs(missing=100, done=0, keep=None, epoch_seconds=60.0) == 5
    assert state_every_epochs(missing=100, done=0, keep=None, epoch_seconds=900.0) == 1
    assert state_every_epochs(missing=100, done=0, keep=10, epoch_seconds=60.0) == 5
    assert state_every_epochs(missing=97, done=3, keep=10, epoch_seconds=60.0) == 1


@given(EPOCHS, st.data(), st.integers(1, 50))
def test_a_resumed_attempt_makes_what_is_missing(total: int, data: st.DataObject, steps: int) -> None:
    done = data.draw(st.integers(0, total - 1))
    goal = replace(FIRST, total_epochs=total, epochs_before=done, total_steps=total * steps).target
    if done == 0:
        assert goal is None
    else:
        assert goal is not None
        assert (goal.epochs + done, goal.steps + done * steps) == (total, total * steps)

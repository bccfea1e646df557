"""When a budget stops a run: as late as possible, and never too late."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from wan_train.run.budget import Ahead, checkpoints_ahead, stop_for_budget
from wan_train.run.events import StopMode

SAVING, STOPPING = 5.0, 12.0


def decided(left: float, *trainings: Ahead, is_stopping: bool = False) -> StopMode | None:
    return stop_for_budget(
        seconds_left=left, trainings=trainings, saving=SAVING, stopping=STOPPING, is_stopping=is_stopping
    )


class TestDecision:
    def test_plenty_is_left(self) -> None:
        assert decided(10_000, Ahead(next=10, following=310)) is None

    def test_the_checkpoint_after_the_next_is_not_paid_for(self) -> None:
        assert decided(320, Ahead(next=10, following=310)) is StopMode.AFTER_STATE

    def test_it_is_not_decided_long_before(self) -> None:
        assert decided(320, Ahead(next=200, following=500)) is None

    def test_the_nearest_checkpoint_counts(self) -> None:
        # The other training can still be stopped at its own next one.
        assert decided(400, Ahead(next=10, following=310), Ahead(next=200, following=500)) is None

    def test_the_end_is_the_next_thing(self) -> None:
        assert decided(100, Ahead(next=10, following=None)) is None

    def test_no_checkpoint_can_be_reached(self) -> None:
        assert decided(100, Ahead(next=200, following=500)) is StopMode.NOW

    def test_while_nothing_can_be_timed_the_sum_is_kept_all_the_same(self) -> None:
        assert decided(13) is None
        assert decided(12) is StopMode.NOW

    def test_a_run_that_stops_already_is_only_ended_at_the_sum(self) -> None:
        assert decided(320, Ahead(next=10, following=310), is_stopping=True) is None
        assert decided(11, Ahead(next=10, following=310), is_stopping=True) is StopMode.NOW


class TestCheckpointsAhead:
    def test_between_two(self) -> None:
        found = checkpoints_ahead(step=25, steps_per_epoch=10, epochs=20, every=4, seconds_per_step=2)
        assert found == Ahead(next=15 * 2, following=55 * 2)

    def test_the_last_one_is_the_end(self) -> None:
        found = checkpoints_ahead(step=170, steps_per_epoch=10, epochs=20, every=4, seconds_per_step=2)
        assert found == Ahead(next=30 * 2, following=None)

    def test_samples_are_waited_for(self) -> None:
        found = checkpoints_ahead(
            step=25, steps_per_epoch=10, epochs=20, every=4, seconds_per_step=2, sample_every=2, sample_seconds=30
        )
        assert found == Ahead(next=15 * 2 + 30, following=55 * 2 + 3 * 30)


@dataclass
class Training:
    """A training that keeps its pace to within `doubt`."""

    every: int
    pace: float
    step: float = 0.0

    def ahead(self) -> Ahead:
        return checkpoints_ahead(
            step=int(self.step), steps_per_epoch=10, epochs=10_000, every=self.every, seconds_per_step=self.pace
        )


@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0.5, 4)), min_size=1, max_size=2),
    st.floats(0.0, 3000.0),
)
def test_everything_is_saved_before_the_sum_is_reached(kinds: list[tuple[int, float]], more: float) -> None:
    """Whatever the cadences: once one more checkpoint of each was affordable, the run ends within its budget, saved."""
    trainings = [Training(every, pace) for every, pace in kinds]
    longest = max(each.every * 10 * each.pace for each in trainings)
    left = 2.2 * longest + SAVING + STOPPING + 10 + more
    stopping, running = False, list(trainings)
    while running:
        mode = decided(left, *(each.ahead() for each in running), is_stopping=stopping)
        assert mode is not StopMode.NOW, "work would be lost"
        stopping = stopping or mode is StopMode.AFTER_STATE
        left -= 1
        for each in list(running):
            before = int(each.step) // (10 * each.every)
            each.step += 1 / each.pace
            if stopping and int(each.step) // (10 * each.every) > before:
                running.remove(each)
    assert left > 0

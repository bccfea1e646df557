"""How far a training is: positions, recent speed, time to go."""

from __future__ import annotations

from pathlib import Path

import pytest

from wan_train.engine.log_parser import CacheProgress, EpochStarted, Items, Stage, StepRecord, TotalSteps
from wan_train.run.progress import LogFollower, ProgressTracker, read_tail

SAMPLES = Path(__file__).parents[2] / "contract" / "samples"


def step(number: int, *, steps: int = 100, loss: float | None = 0.5) -> StepRecord:
    return StepRecord(step=number, steps=steps, loss=loss)


def tracked(*looks: tuple[float, StepRecord]) -> ProgressTracker:
    tracker = ProgressTracker()
    for now, record in looks:
        tracker.add(iter([record]), now)
    return tracker


def test_speed_and_time_to_go() -> None:
    progress = tracked((10.0, step(1)), (12.0, step(2)), (14.0, step(3))).progress
    assert (progress.step, progress.steps) == (3, 100)
    assert progress.seconds_per_step == pytest.approx(2.0)
    assert progress.eta_seconds == pytest.approx(2.0 * 97)


def test_samples_are_no_steps_and_count_as_time_to_go() -> None:
    tracker = ProgressTracker(sample_every=2)
    tracker.add(iter([EpochStarted(epoch=1, epochs=10)]), 0.0)
    for number in range(1, 21):
        if number % 10 == 1 and number > 1:
            tracker.add(iter([EpochStarted(epoch=number // 10 + 1, epochs=10)]), 2.0 * number)
        tracker.add(iter([step(number)]), 2.0 * number)
    before = tracker.progress.eta_seconds
    assert before == pytest.approx(2.0 * 80)
    tracker.add(iter([Stage(words="making samples")]), 41.0)
    assert tracker.progress.stage == "making samples"
    tracker.add(iter([EpochStarted(epoch=3, epochs=10)]), 341.0)
    tracker.add(iter([step(21)]), 343.0)
    assert tracker.progress.stage is None
    assert tracker.progress.seconds_per_step == pytest.approx(2.0)
    # After epochs 4, 6, 8 and 10.
    assert tracker.progress.eta_seconds == pytest.approx(2.0 * 79 + 4 * 300.0)


def test_samples_are_over_when_the_next_epoch_begins() -> None:
    """Its first step counts as a step, not as part of the pause."""
    tracker = ProgressTracker(sample_every=1)
    tracker.add(iter([EpochStarted(epoch=1, epochs=2), step(10), Stage(words="making samples")]), 10.0)
    tracker.add(iter([EpochStarted(epoch=2, epochs=2)]), 30.0)
    assert tracker.progress.stage is None
    loading = ProgressTracker()
    loading.add(iter([Stage(words="first step"), EpochStarted(epoch=1, epochs=2)]), 1.0)
    assert loading.progress.stage == "first step"


def test_time_to_go_is_that_to_an_early_end() -> None:
    tracker = ProgressTracker(ends_after=4, schedule_epochs=10)
    tracker.add(iter([TotalSteps(steps=100)]), 0.0)
    assert tracker.progress.steps == 40
    for epoch in range(1, 5):
        tracker.add(iter([EpochStarted(epoch=epoch, epochs=10)]), 20.0 * epoch - 0.5)
        tracker.add(iter([step(10 * epoch - 5)]), 20.0 * epoch)
    assert (tracker.progress.epoch, tracker.progress.epochs) == (4, 4)
    assert (tracker.progress.step, tracker.progress.steps, tracker.announced_steps) == (35, 40, 100)
    assert tracker.progress.eta_seconds == pytest.approx(2.0 * 5)
    # Nobody ends it at once: what it does beyond its end is not shown, and each epoch is told once.
    for epoch in range(5, 8):
        tracker.add(iter([EpochStarted(epoch=epoch, epochs=10), step(10 * epoch - 5)]), 20.0 * epoch)
    assert (tracker.progress.epoch, tracker.progress.step, tracker.progress.eta_seconds) == (4, 40, 0.0)
    assert [epoch for epoch, _ in tracker.take_finished_epochs()] == [1, 2, 3, 4, 5, 6]


def test_the_speed_is_the_recent_one() -> None:
    looks = [(float(number), step(number, steps=1000)) for number in range(1, 200)]
    looks += [(200.0 + 10 * number, step(200 + number, steps=1000)) for number in range(1, 40)]
    assert tracked(*looks).progress.seconds_per_step == pytest.approx(10.0, rel=0.05)


def test_nothing_is_known_after_one_step() -> None:
    progress = tracked((10.0, step(1))).progress
    assert (progress.seconds_per_step, progress.eta_seconds) == (None, None)


def test_all_steps_in_one_look_tell_no_speed() -> None:
    tracker = ProgressTracker()
    tracker.add(iter([step(number) for number in range(50)]), 10.0)
    assert tracker.progress.step == 49
    assert tracker.progress.seconds_per_step is None


def test_at_the_end_nothing_is_left() -> None:
    assert tracked((1.0, step(99)), (2.0, step(100))).progress.eta_seconds == 0


def test_a_loss_that_is_no_number() -> None:
    progress = tracked((1.0, step(1)), (2.0, step(2, loss=float("nan")))).progress
    assert (progress.loss, progress.loss_is_finite) == (None, False)
    progress = tracked((1.0, step(1, loss=float("inf"))), (2.0, step(2, loss=0.25))).progress
    assert (progress.loss, progress.loss_is_finite) == (0.25, True)


def test_a_bar_without_a_loss_keeps_the_last_one() -> None:
    assert tracked((1.0, step(1, loss=0.5)), (2.0, step(2, loss=None))).progress.loss == 0.5


def test_an_epoch_ends_when_the_next_begins() -> None:
    tracker = ProgressTracker()
    tracker.add(iter([EpochStarted(epoch=1, epochs=3), step(1, loss=0.5)]), 1.0)
    assert tracker.take_finished_epochs() == []
    tracker.add(iter([EpochStarted(epoch=2, epochs=3), step(2, loss=0.4), EpochStarted(epoch=3, epochs=3)]), 2.0)
    assert tracker.take_finished_epochs() == [(1, 0.5), (2, 0.4)]
    assert tracker.take_finished_epochs() == []
    assert (tracker.progress.epoch, tracker.progress.epochs) == (3, 3)


def test_what_is_known_before_the_first_step() -> None:
    tracker = ProgressTracker()
    tracker.add(iter([Stage(words="loading the DiT"), Items(count=6), TotalSteps(steps=24)]), 1.0)
    progress = tracker.progress
    assert (progress.stage, progress.items, progress.steps, progress.step) == ("loading the DiT", 6, 24, None)
    tracker.add(iter([step(0, steps=24, loss=None)]), 2.0)
    assert tracker.progress.stage == "loading the DiT"
    tracker.add(iter([step(1, steps=24)]), 3.0)
    assert tracker.progress.stage is None


def test_caching() -> None:
    tracker = ProgressTracker()
    tracker.add(iter([Stage(words="loading T5"), CacheProgress(done=3)]), 1.0)
    assert (tracker.progress.cached, tracker.progress.stage) == (3, None)


@pytest.mark.parametrize("version", ["d0a1930", "v0.3.4"])
def test_a_real_log(version: str) -> None:
    follower, tracker = LogFollower(SAMPLES / version / "train.log"), ProgressTracker()
    tracker.add(follower.new_records(), 1.0)
    tracker.add(follower.parser.finish(), 1.0)
    assert (tracker.progress.epoch, tracker.progress.step, tracker.progress.steps) == (4, 24, 24)
    assert [epoch for epoch, _ in tracker.take_finished_epochs()] == [1, 2, 3]


class TestFollowing:
    def test_only_what_is_new(self, tmp_path: Path) -> None:
        log = tmp_path / "output.log"
        follower = LogFollower(log)
        assert list(follower.new_records()) == []
        log.write_text("epoch 1/3\nepoch 2")
        assert list(follower.new_records()) == [EpochStarted(epoch=1, epochs=3)]
        with log.open("a") as file:
            file.write("/3\n")
        assert list(follower.new_records()) == [EpochStarted(epoch=2, epochs=3)]
        assert list(follower.new_records()) == []

    def test_the_end_of_a_long_log(self, tmp_path: Path) -> None:
        log = tmp_path / "output.log"
        log.write_bytes(b"x" * 100_000 + "夜 the end".encode())
        assert read_tail(log, 20).endswith("夜 the end")
        assert len(read_tail(log)) <= 65_536
        assert read_tail(tmp_path / "none") == ""

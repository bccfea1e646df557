"""How long silence is believed: by stage, by the speed of the steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wan_train.run.health import Pulse, is_stalled, patience, watch

BASE = 300.0
LOADING = Pulse(step=None, loading=True, log_bytes=100, activity=5, seconds_per_step=None)
FIRST = replace(LOADING, step=0)
TRAINING = Pulse(step=7, loading=False, log_bytes=900, activity=0, seconds_per_step=3.0)


@pytest.mark.parametrize(
    ("pulse", "minutes"),
    [(LOADING, 20), (FIRST, 30), (TRAINING, 5), (replace(TRAINING, seconds_per_step=60.0), 20)],
)
def test_patience_by_stage(pulse: Pulse, minutes: int) -> None:
    assert patience(pulse, BASE) == minutes * 60
    vigil = watch(watch(None, pulse, 1000.0), pulse, 1000.0 + minutes * 60)
    assert not is_stalled(vigil, 1000.0 + minutes * 60, BASE)
    assert is_stalled(vigil, 1000.0 + minutes * 60 + 1, BASE)


@pytest.mark.parametrize("change", [{"activity": 6}, {"log_bytes": 101}, {"step": 0}])
def test_anything_that_happens_while_loading_is_life(change: dict[str, int]) -> None:
    vigil = watch(watch(None, LOADING, 0.0), replace(LOADING, **change), 50.0)
    assert vigil.since == 50.0


def test_a_trainer_that_only_burns_time_between_steps_hangs() -> None:
    assert watch(watch(None, TRAINING, 0.0), replace(TRAINING, activity=99_999), 50.0).since == 0.0
    assert watch(watch(None, TRAINING, 0.0), replace(TRAINING, step=8), 50.0).since == 50.0
    assert watch(watch(None, TRAINING, 0.0), replace(TRAINING, log_bytes=901), 50.0).since == 50.0

"""Whether a box can be given up: only when nothing is on it alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from upload_world import BOTH, Place, append, make

from support.runs import OUT_OF_MEMORY, T0, events_of
from wan_train.engine.failures import Cause, Diagnosis
from wan_train.run.events import RunFinished, StateSaved
from wan_train.run.state import JobState
from wan_train.upload.status import unverified

DIVERGED = Diagnosis(cause=Cause.NAN_LOSS, meaning="the loss is not a number", advice="Lower it.", evidence="nan")


def ended(place: Place, low: JobState, diagnosis: Diagnosis = OUT_OF_MEMORY, *, saved: bool) -> None:
    """A run whose low-noise expert ended like this, with a checkpoint or without."""
    place.run.events.unlink()
    events = events_of(place.plan, {**BOTH, "train-low": low}, diagnosis=diagnosis)
    if saved:
        begun = next(n for n, event in enumerate(events) if getattr(event, "step", "") == "train-low")
        state = StateSaved(at=events[begun].at + 1, step="train-low", attempt=1, path="/a/state", epoch=40)
        events.insert(begun + 1, state)
    append(place.plan, [*events, RunFinished(at=T0 + 50_000, exit_code=5)])


@pytest.mark.parametrize(
    ("low", "diagnosis", "saved", "reason"),
    [
        (JobState.STOPPED, OUT_OF_MEMORY, True, "train-low can be resumed from its checkpoint of epoch 40"),
        (JobState.FAILED, OUT_OF_MEMORY, True, "train-low can be resumed from its checkpoint of epoch 40"),
        (JobState.FAILED, DIVERGED, True, None),
        (JobState.STOPPED, OUT_OF_MEMORY, False, None),
    ],
)
def test_a_checkpoint_that_can_be_resumed_keeps_the_box(  # noqa: PLR0917  the cases
    place: Place, tmp_path: Path, low: JobState, diagnosis: Diagnosis, saved: bool, reason: str | None, rclone: Path
) -> None:
    assert rclone
    ended(place, low, diagnosis, saved=saved)
    target = f"rclone:{tmp_path}/shelf"
    place.upload(target)
    reasons = unverified(place.run, [target])
    assert (not reasons) == (reason is None)
    assert reason is None or reason in reasons[0]


def test_without_a_target_nothing_is_safe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = make(tmp_path, capsys)
    assert unverified(place.run, []) == ("no upload target is set",)
    assert unverified(place.run, ["hf:me/cat"]) == ("hf:me/cat lacks 4 files",)


def test_a_dataset_that_is_gone_is_not_safe(place: Place, tmp_path: Path, rclone: Path) -> None:
    assert rclone
    target = f"rclone:{tmp_path}/shelf"
    place.run.dataset_config.write_text("this is no TOML [", encoding="utf-8")
    place.upload(target, "dataset")
    assert unverified(place.run, [target], ["dataset"]) == ("the dataset can no longer be read",)

"""How long silence is believed: by stage, by the speed of the steps."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from support.runs import SUPERVISOR, T0, make_plan
from wan_train.engine.failures import Cause
from wan_train.run.attempt_watch import AttemptWatch, Heartbeat, is_stalled, patience, watch
from wan_train.run.directory import RunDirectory
from wan_train.run.state import Attempt

BASE = 300.0
LOADING = Heartbeat(step=None, loading=True, log_bytes=100, activity=5, seconds_per_step=None)
FIRST = replace(LOADING, step=0)
TRAINING = Heartbeat(step=7, loading=False, log_bytes=900, activity=0, seconds_per_step=3.0)


@pytest.mark.parametrize(
    ("heartbeat", "minutes"),
    [(LOADING, 20), (FIRST, 30), (TRAINING, 5), (replace(TRAINING, seconds_per_step=60.0), 20)],
)
def test_patience_by_stage(heartbeat: Heartbeat, minutes: int) -> None:
    assert patience(heartbeat, BASE) == minutes * 60
    heartbeat_watch = watch(watch(None, heartbeat, 1000.0), heartbeat, 1000.0 + minutes * 60)
    assert not is_stalled(heartbeat_watch, 1000.0 + minutes * 60, BASE)
    assert is_stalled(heartbeat_watch, 1000.0 + minutes * 60 + 1, BASE)


@pytest.mark.parametrize("change", [{"activity": 6}, {"log_bytes": 101}, {"step": 0}])
def test_anything_that_happens_while_loading_is_life(change: dict[str, int]) -> None:
    heartbeat_watch = watch(watch(None, LOADING, 0.0), replace(LOADING, **change), 50.0)
    assert heartbeat_watch.since == 50.0


def test_a_trainer_that_only_burns_time_between_steps_hangs() -> None:
    assert watch(watch(None, TRAINING, 0.0), replace(TRAINING, activity=99_999), 50.0).since == 0.0
    assert watch(watch(None, TRAINING, 0.0), replace(TRAINING, step=8), 50.0).since == 50.0
    assert watch(watch(None, TRAINING, 0.0), replace(TRAINING, log_bytes=901), 50.0).since == 50.0


def test_ten_bad_steps_in_a_row_are_a_divergence_and_single_ones_are_not(tmp_path: Path) -> None:
    plan = make_plan(run_dir=tmp_path / "run")
    step = plan.step("train-high")
    directory = RunDirectory(plan.run_dir).attempt(step.id, 1)
    (directory.path / "logs").mkdir(parents=True)
    attempt = Attempt(number=1, gpu_uuid=None, gpu_label=None, identity=SUPERVISOR, started=T0)
    seen = AttemptWatch.of(plan, step, directory, attempt)
    nan = float("nan")
    losses = [0.1, nan, 0.1, *[nan] * 9, 0.1, *[nan] * 9]
    with (directory.path / "logs" / "events.out.tfevents.1").open("ab", buffering=0) as file:
        for number, loss in enumerate(losses):
            file.write(scalar_record("loss/current", number, loss))
            file.write(scalar_record("loss/average", number, nan))
            assert seen.trouble(float(number), 1e6) is None
        file.write(scalar_record("loss/current", len(losses), float("inf")))
        trouble = seen.trouble(100.0, 1e6)
    assert trouble is not None
    assert trouble.cause is Cause.NAN_LOSS
    assert "learning-rate" in trouble.advice


@pytest.mark.parametrize("shown", ["tensorboard", "log"])
def test_bad_numbers_from_the_first_step_on_point_to_the_model_files(tmp_path: Path, shown: str) -> None:
    """A damaged DiT gives no finite loss at all; a learning rate needs a step to do harm."""
    plan = make_plan(run_dir=tmp_path / "run")
    step = plan.step("train-high")
    directory = RunDirectory(plan.run_dir).attempt(step.id, 1)
    (directory.path / "logs").mkdir(parents=True)
    attempt = Attempt(number=1, gpu_uuid=None, gpu_label=None, identity=SUPERVISOR, started=T0)
    seen = AttemptWatch.of(plan, step, directory, attempt)
    if shown == "tensorboard":
        records = b"".join(scalar_record("loss/current", number, float("nan")) for number in range(12))
        (directory.path / "logs" / "events.out.tfevents.1").write_bytes(records)
        found = seen.trouble(0.0, 1e6)
    else:
        directory.log.write_text(bar(1, "nan"))
        seen.read_log(0.0, to_the_end=True)
        (directory.output).mkdir()
        tensors = directory.output / f"{step.produces}-000001.safetensors"
        header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        tensors.write_bytes(len(header).to_bytes(8, "little") + header + struct.pack("<f", float("nan")))
        found = seen.checkpoint_trouble(1)
    assert found is not None
    assert found.cause is Cause.NAN_LOSS
    assert "model files" in found.meaning
    assert "`wan-train provision --check --verify`" in found.advice
    assert "was kept" not in found.advice


def test_one_finite_loss_in_the_log_is_seen_however_late_it_is_read(tmp_path: Path) -> None:
    plan = make_plan(run_dir=tmp_path / "run")
    step = plan.step("train-high")
    directory = RunDirectory(plan.run_dir).attempt(step.id, 1)
    (directory.path / "logs").mkdir(parents=True)
    attempt = Attempt(number=1, gpu_uuid=None, gpu_label=None, identity=SUPERVISOR, started=T0)
    seen = AttemptWatch.of(plan, step, directory, attempt)
    directory.log.write_text(bar(1, "0.2") + bar(2, "nan"))
    seen.read_log(0.0, to_the_end=True)
    assert not seen.never_finite


def bar(step: int, loss: str) -> str:
    return f"steps:  10%|█         | {step}/10 [00:01<00:09,  1.00s/it, avr_loss={loss}]\n"


def scalar_record(tag: str, step: int, value: float) -> bytes:
    """One event of a TensorBoard file; tags shorter than 100 characters, steps below 128."""
    entry = b"\x0a" + bytes([len(tag)]) + tag.encode() + b"\x15" + struct.pack("<f", value)
    summary = b"\x0a" + bytes([len(entry)]) + entry
    event = b"\x10" + bytes([step]) + b"\x2a" + bytes([len(summary)]) + summary
    return struct.pack("<QI", len(event), 0) + event + bytes(4)

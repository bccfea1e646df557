"""LoRAs under their final names: whole, labelled as the whole training, never over another file."""

from __future__ import annotations

import errno
import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from support.runs import SUPERVISOR, T0, make_plan
from wan_train.engine.tensors import BrokenFileError, read_header
from wan_train.recipe.terms import Expert
from wan_train.run import results
from wan_train.run.directory import RunDirectory
from wan_train.run.plan import Plan
from wan_train.run.state import Attempt, Job, Result

STEP = "train-high"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    made = make_plan(run_dir=tmp_path / "run", epochs=10, experts=(Expert.HIGH,), keep_every_epochs=2)
    for number in (1, 2):
        RunDirectory(made.run_dir).attempt(STEP, number).output.mkdir(parents=True)
    return made


def attempt(number: int, *, before: int = 0, total: int = 10, schedule: int | None = None) -> Attempt:
    return Attempt(
        number=number,
        gpu_uuid=None,
        gpu_label=None,
        identity=SUPERVISOR,
        started=T0,
        epochs_before=before,
        total_epochs=total,
        schedule_epochs=schedule,
        total_steps=(schedule or total) * 3,
    )


def lora(path: Path, epoch: int, *, value: float = 1.0) -> Path:
    metadata = {"ss_epoch": str(epoch), "ss_steps": str(epoch * 3), "ss_output_name": "old", "modelspec.author": "me"}
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"__metadata__": metadata, "weight": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", value))
    return path


def place(plan: Plan, job: Job, source: Path) -> results.PlacedLora:
    return results.place_result(RunDirectory(plan.run_dir), plan, plan.step(STEP), job, source)


def output(plan: Plan, number: int) -> Path:
    return RunDirectory(plan.run_dir).attempt(STEP, number).output


def test_a_straight_training_is_moved_as_it_is(plan: Plan) -> None:
    source = lora(output(plan, 1) / "x.safetensors", 10)
    placed = place(plan, Job(step=STEP, attempts=(attempt(1),)), source)
    assert placed.path.read_bytes() == source.read_bytes()
    assert placed.epochs == 10


def test_one_that_ended_early_is_labelled_by_its_own_end(plan: Plan) -> None:
    source = lora(output(plan, 1) / "x-step00000018.safetensors", 6)
    placed = place(plan, Job(step=STEP, attempts=(attempt(1, total=6, schedule=10),)), source)
    metadata = read_header(placed.path).metadata
    assert placed.epochs == 6
    assert (metadata["ss_epoch"], metadata["ss_steps"]) == ("6", "18")
    assert metadata["ss_output_name"] == metadata["modelspec.title"] == plan.step(STEP).produces
    assert metadata["wan_train_ended"] == "after epoch 6 of 10"


def test_a_resumed_one_is_labelled_as_the_whole_training(plan: Plan) -> None:
    source = lora(output(plan, 2) / "x-step00000012.safetensors", 4)
    job = Job(step=STEP, attempts=(attempt(1), attempt(2, before=6)))
    placed = place(plan, job, source)
    name = plan.step(STEP).produces
    metadata = read_header(placed.path).metadata
    assert (metadata["ss_epoch"], metadata["ss_steps"]) == ("10", "30")
    assert metadata["ss_output_name"] == metadata["modelspec.title"] == name
    assert metadata["modelspec.author"] == "me"
    again = place(plan, job, source)
    assert again == placed
    assert not list(plan.run_dir.glob(".*partial"))


def test_the_lora_of_a_shorter_training_is_kept_under_its_epochs(plan: Plan) -> None:
    short = place(plan, Job(step=STEP, attempts=(attempt(1),)), lora(output(plan, 1) / "x.safetensors", 10))
    before = short.path.read_bytes()
    result = Result(path=str(short.path), bytes=short.bytes, sha256=short.sha256, epochs=10)
    job = Job(step=STEP, attempts=(attempt(1), attempt(2, before=10, total=15)), result=result)
    source = lora(output(plan, 2) / "x-step00000015.safetensors", 5)
    for _ in range(2):  # a supervisor that died in between does it again
        placed = place(plan, job, source)
        assert placed.epochs == 15
        assert read_header(placed.path).metadata["ss_epoch"] == "15"
        aside = plan.run_dir / f"{plan.step(STEP).produces}-000010.safetensors"
        assert aside.read_bytes() == before


def test_another_file_with_the_name_of_the_result_is_kept(plan: Plan) -> None:
    name = plan.step(STEP).produces
    other = lora(plan.run_dir / f"{name}.safetensors", 3, value=5.0).read_bytes()
    older = lora(plan.run_dir / f"{name}_earlier.safetensors", 2, value=7.0).read_bytes()
    source = lora(output(plan, 1) / "x.safetensors", 10)
    for _ in range(2):  # a supervisor that died in between does it again
        placed = place(plan, Job(step=STEP, attempts=(attempt(1),)), source)
        assert placed.path.read_bytes() == source.read_bytes()
        kept = {path.name: path.read_bytes() for path in plan.run_dir.glob(f"{name}_*")}
        assert kept == {f"{name}_earlier.safetensors": older, f"{name}_earlier-2.safetensors": other}


def test_a_shorter_training_is_kept_even_if_its_epoch_was_trained_again(plan: Plan) -> None:
    """An extension without a usable state begins anew, and keeps a LoRA of the epoch where the first one ended."""
    short = place(plan, Job(step=STEP, attempts=(attempt(1),)), lora(output(plan, 1) / "x.safetensors", 10))
    before, name = short.path.read_bytes(), plan.step(STEP).produces
    again = lora(plan.run_dir / f"{name}-000010.safetensors", 10, value=9.0).read_bytes()
    result = Result(path=str(short.path), bytes=short.bytes, sha256=short.sha256, epochs=10)
    job = Job(step=STEP, attempts=(attempt(1), attempt(2, total=15)), result=result)
    place(plan, job, lora(output(plan, 2) / "x.safetensors", 15))
    assert (plan.run_dir / f"{name}-000010.safetensors").read_bytes() == again
    assert (plan.run_dir / f"{name}-000010_earlier.safetensors").read_bytes() == before


def test_a_disk_that_knows_no_second_names_gets_copies(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    source = lora(output(plan, 1) / "x.safetensors", 10)
    placed = place(plan, Job(step=STEP, attempts=(attempt(1),)), source)
    assert placed.path.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("damage", ["cut", "nan", "missing"])
def test_a_checkpoint_that_is_not_good_is_not_kept(plan: Plan, damage: str) -> None:
    run, step = RunDirectory(plan.run_dir), plan.step(STEP)
    source = lora(output(plan, 1) / f"{step.produces}-000002.safetensors", 2, value=float("nan"))
    match damage:
        case "cut":
            source.write_bytes(source.read_bytes()[:-1])
        case "missing":
            source.unlink()
    assert results.keep_checkpoint(run, step, run.attempt(STEP, 1), attempt(1), 2) is None
    assert not list(plan.run_dir.glob("*.safetensors"))


def test_a_kept_checkpoint_of_a_resumed_attempt_counts_over_all(plan: Plan) -> None:
    run, step = RunDirectory(plan.run_dir), plan.step(STEP)
    lora(output(plan, 2) / f"{step.produces}-000002.safetensors", 2)
    kept = results.keep_checkpoint(run, step, run.attempt(STEP, 2), attempt(2, before=6), 2)
    assert kept == plan.run_dir / f"{step.produces}-000008.safetensors"
    metadata = read_header(kept).metadata
    assert (metadata["ss_epoch"], metadata["ss_steps"]) == ("8", "24")


def test_the_newest_finite_checkpoint_over_all_attempts(plan: Plan) -> None:
    run, step = RunDirectory(plan.run_dir), plan.step(STEP)
    job = Job(step=STEP, attempts=(attempt(1), replace(attempt(2), epochs_before=4)))
    assert results.newest_finite_checkpoint(run, step, job) is None
    lora(output(plan, 1) / f"{step.produces}-000004.safetensors", 4)
    lora(output(plan, 2) / f"{step.produces}-000002.safetensors", 2, value=float("inf"))
    (output(plan, 2) / f"{step.produces}-000001.safetensors").write_bytes(b"cut")
    found = results.newest_finite_checkpoint(run, step, job)
    assert found is not None
    assert (found[0].number, found[2]) == (1, 4)
    with pytest.raises(BrokenFileError):
        read_header(output(plan, 2) / f"{step.produces}-000001.safetensors")

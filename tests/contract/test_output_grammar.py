"""The grammar of the trainer's output against whole logs of real trainings at both supported versions."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_train.engine.log_parser import (
    CacheProgress,
    CheckpointBegun,
    EpochStarted,
    Items,
    OutputParser,
    Record,
    Stage,
    StateBegun,
    StepRecord,
    TotalSteps,
)

SAMPLES = Path(__file__).parent / "samples"
VERSIONS = ("d0a1930", "v0.3.4")
LAST_LOSS = {"d0a1930": 1.13, "v0.3.4": 1.14}

AnyRecord = TypeVar("AnyRecord", bound=Record)


def records(version: str, name: str) -> list[Record]:
    parser = OutputParser()
    return [*parser.feed((SAMPLES / version / f"{name}.log").read_bytes()), *parser.finish()]


def only(found: list[Record], kind: type[AnyRecord]) -> list[AnyRecord]:
    return [record for record in found if isinstance(record, kind)]


@pytest.mark.parametrize("version", VERSIONS)
class TestTraining:
    def test_every_step_is_seen_once_or_twice_and_in_order(self, version: str) -> None:
        steps = only(records(version, "train"), StepRecord)
        assert list(dict.fromkeys(record.step for record in steps)) == list(range(25))
        assert [record.step for record in steps] == sorted(record.step for record in steps)
        assert {record.steps for record in steps} == {24}

    def test_epochs_and_totals(self, version: str) -> None:
        found = records(version, "train")
        assert [(r.epoch, r.epochs) for r in only(found, EpochStarted)] == [(1, 4), (2, 4), (3, 4), (4, 4)]
        assert only(found, TotalSteps) == [TotalSteps(steps=24)]
        assert only(found, Items) == [Items(count=6)]

    def test_the_last_loss_also_where_a_message_sticks_to_the_bar(self, version: str) -> None:
        steps = only(records(version, "train"), StepRecord)
        assert steps[-1].loss == LAST_LOSS[version]
        assert all(record.loss is not None for record in steps if record.step == 24)
        assert steps[0].loss is None

    def test_checkpoints_and_states_in_the_order_they_are_written(self, version: str) -> None:
        written = [Path(r.path).name for r in records(version, "train") if isinstance(r, CheckpointBegun | StateBegun)]
        assert written == ["T-000002.safetensors", "T-000002-state", "T-state", "T.safetensors"]

    def test_the_stages_of_the_start(self, version: str) -> None:
        stages = list(dict.fromkeys(stage.words for stage in only(records(version, "train"), Stage)))
        assert stages == ["loading the DiT", "creating the LoRA", "first step"]

    def test_a_resumed_training_counts_from_one_again(self, version: str) -> None:
        found = records(version, "train-resumed")
        epochs = [r.epoch for r in only(found, EpochStarted)]
        steps = only(found, StepRecord)
        assert epochs == list(range(1, epochs[-1] + 1))
        assert "loading the state" in [stage.words for stage in only(found, Stage)]
        assert (steps[-1].step, steps[-1].steps) == (48, 48)

    def test_a_training_without_caches_makes_no_step(self, version: str) -> None:
        assert only(records(version, "train-no-cache"), StepRecord) == []


@pytest.mark.parametrize("version", VERSIONS)
class TestCaching:
    @pytest.mark.parametrize(("name", "stage"), [("cache-latents", "loading the VAE"), ("cache-text", "loading T5")])
    def test_six_pictures(self, version: str, name: str, stage: str) -> None:
        found = records(version, name)
        assert max(record.done for record in only(found, CacheProgress)) == 6
        assert next(iter(only(found, Stage))).words == stage


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["train", "cache-latents", "train-no-cache"])
@given(data=st.data())
def test_where_a_chunk_ends_does_not_matter(version: str, name: str, data: st.DataObject) -> None:
    log = (SAMPLES / version / f"{name}.log").read_bytes()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=40)))
    parser = OutputParser()
    pieces = [log[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(log)], strict=True)]
    found = [record for piece in pieces for record in parser.feed(piece)]
    assert [*found, *parser.finish()] == records(version, name)


@pytest.mark.parametrize("version", VERSIONS)
def test_one_byte_at_a_time(version: str) -> None:
    parser = OutputParser()
    log = (SAMPLES / version / "train.log").read_bytes()
    found = [record for index in range(len(log)) for record in parser.feed(log[index : index + 1])]
    assert [*found, *parser.finish()] == records(version, "train")

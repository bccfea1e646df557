"""`--until` with the real trainer: the LoRA of an epoch is the same to the bit, and close to that of the last one."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from musubi.test_wan_train import Box, box, eventually, rate_after
from musubi.trainer import SIZES, Trainer, text_of
from wan_train.engine.capabilities import stored
from wan_train.engine.schedule import epoch_reaching
from wan_train.engine.tensors import read_header
from wan_train.recipe.load import shipped
from wan_train.recipe.terms import Expert, Task

__all__ = ["box"]  # the fixture

EPOCHS = 40
NAMES = ("WAN2.2-HighNoise_t", "WAN2.2-LowNoise_t")


def trained(box: Box, place: Path, *words: str) -> Path:
    """The run that trains these pictures with these words, in a place of its own."""
    own = replace(box, runs=place)
    done = own.call(*own.train(*words, epochs=EPOCHS))
    assert done.returncode == 0, text_of(done)
    return own.run()


def data_of(path: Path) -> bytes:
    """A LoRA without its metadata: shapes and numbers."""
    tensors = json.dumps(sorted((name, each.dtype, each.shape) for name, each in read_header(path).tensors.items()))
    raw = path.read_bytes()
    return tensors.encode() + raw[8 + int.from_bytes(raw[:8], "little") :]


def test_it_is_the_very_lora_of_that_epoch_and_goes_on_to_the_whole_schedule(
    trainer: Trainer, box: Box, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = shipped(Task.T2V).spec(Expert.HIGH).training
    half = epoch_reaching(0.5, guide, EPOCHS, len(SIZES), stored(trainer.version))
    most = epoch_reaching(0.9965, guide, EPOCHS, len(SIZES), stored(trainer.version))
    assert 0 < half < 13 < most < EPOCHS

    whole = trained(box, tmp_path / "whole", "--save-every", "1")
    early = {
        half: trained(box, tmp_path / "half", "--until", "50%"),
        13: trained(box, tmp_path / "epoch", "--until", "13"),
        most: trained(box, tmp_path / "most", "--until", "99.65%"),
    }

    pairs = []
    for epoch, run in early.items():
        for name in NAMES:
            ended, straight = run / f"{name}.safetensors", whole / f"{name}-{epoch:06d}.safetensors"
            assert data_of(ended) == data_of(straight), (epoch, name)
            metadata = read_header(ended).metadata
            assert (metadata["ss_epoch"], metadata["ss_steps"]) == (str(epoch), str(epoch * len(SIZES)))
            assert metadata["ss_num_epochs"] == str(EPOCHS)
            assert metadata["ss_output_name"] == metadata["modelspec.title"] == name
            assert metadata["wan_train_ended"] == f"after epoch {epoch} of {EPOCHS}"
            pairs.append([str(ended), str(whole / f"{name}.safetensors")])
    distances = trainer.ask("lora_distances.py", stdin=json.dumps(pairs))
    with capsys.disabled():
        for epoch, pair in zip(early, zip(distances[::2], distances[1::2], strict=True), strict=True):
            said = ", ".join(f"{distance:.2%}" for distance in pair)
            sys.stdout.write(f"\n[{trainer.version}: after epoch {epoch} of {EPOCHS}: {said} from the last one]")
    assert max(distances[-2:]) < 0.01 < min(distances[:2])

    # Later the run goes on under the one curve.
    longer = replace(box, runs=tmp_path / "epoch")
    done = longer.call("resume", "--until", "all")
    assert done.returncode == 0, text_of(done)
    rates: dict[int, float] = {}
    for attempt, before in ((1, 0), (2, 13)):
        logs = longer.run() / "train-high" / str(attempt) / "logs"
        for step, rate in trainer.ask("dump_scalars.py", str(logs))["lr/unet"]:
            rates.setdefault(before * len(SIZES) + int(step), rate)
    total = EPOCHS * len(SIZES)
    assert {step: rates[step] for step in range(1, total + 1)} == pytest.approx(
        {step: rate_after(step, total) for step in range(1, total + 1)}
    )
    for name in NAMES:
        metadata = read_header(longer.run() / f"{name}.safetensors").metadata
        assert (metadata["ss_epoch"], metadata["ss_steps"]) == (str(EPOCHS), str(total))
        assert "wan_train_ended" not in metadata
        read_header(longer.run() / f"{name}-000013.safetensors")
    eventually(lambda: not replace(box, runs=tmp_path).processes())

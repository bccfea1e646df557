"""The precision a LoRA is saved in. What follows from a half-precision DiT needs a GPU: the trainer computes the
time embedding under a float32 autocast, which a CPU does not have.
"""

from __future__ import annotations

from pathlib import Path

from musubi.trainer import Dataset, Trainer, TrainingRun, text_of
from wan_train.engine.capabilities import stored
from wan_train.engine.checkpoints import lora_file
from wan_train.engine.tensors import read_header


def test_save_precision_halves_the_lora_where_it_exists(trainer: Trainer, cached: Dataset, tmp_path: Path) -> None:
    run = TrainingRun(output=tmp_path / "output", epochs=1)

    done = trainer.train(cached, run, "--save_precision", "bf16")

    if stored(trainer.version).saves_float32:
        assert done.returncode == 0, text_of(done)
        header = read_header(lora_file(run.output, run.name))
        assert {tensor.dtype for tensor in header.tensors.values()} == {"BF16"}
    else:
        assert done.returncode == 2, text_of(done)
        assert "unrecognized arguments: --save_precision" in done.stderr

"""Names, contents and wholeness of everything the trainer's scripts leave behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from musubi.trainer import RESOLUTION, SIZES, Dataset, Trainer, TrainingRun, draw_dataset, text_of
from wan_train.engine.checkpoints import ALWAYS_IN_A_STATE, checkpoint_epochs, complete_states, lora_file, state_dir
from wan_train.engine.log_parser import EpochStarted, Items, OutputParser, StepRecord, TotalSteps
from wan_train.engine.tensors import read_header

BLOCKS = 4
MODULES = (
    *(f"{attention}_{part}" for attention in ("self_attn", "cross_attn") for part in ("q", "k", "v", "o")),
    "ffn_0",
    "ffn_2",
)
"""What one block of the DiT has a LoRA for."""
LORA_KEYS = {
    f"lora_unet_blocks_{block}_{module}.{part}"
    for block in range(BLOCKS)
    for module in MODULES
    for part in ("lora_down.weight", "lora_up.weight", "alpha")
}


def test_caches_have_the_original_size_and_the_stem_in_their_names(cached: Dataset) -> None:
    latents = {f"p{number}_{width:04d}x{height:04d}_wan.safetensors" for number, (width, height) in enumerate(SIZES)}
    texts = {f"p{number}_wan_te.safetensors" for number in range(len(SIZES))}
    assert cached.caches() == latents | texts

    square = cached.cache / "p1_0064x0064_wan.safetensors"
    tensors = read_header(square).tensors
    assert set(tensors) == {f"latents_1x{RESOLUTION[1] // 8}x{RESOLUTION[0] // 8}_bfloat16"}
    text = read_header(cached.cache / "p1_wan_te.safetensors")
    assert set(text.tensors) == {"varlen_t5_bfloat16"}
    assert text.metadata["caption1"] == "a drawing, number 1"


def test_i2v_latents_carry_the_first_frame(trainer: Trainer, tmp_path: Path) -> None:
    dataset = draw_dataset(tmp_path, sizes=((64, 64),))

    done = trainer.cache_latents(dataset, "--i2v")

    assert done.returncode == 0, text_of(done)
    tensors = read_header(dataset.cache / "p0_0064x0064_wan.safetensors").tensors
    assert set(tensors) == {"latents_1x8x8_bfloat16", "latents_image_1x8x8_bfloat16"}


@pytest.mark.parametrize("expert", ["high", "low"])
def test_the_guides_command_trains_a_lora(trainer: Trainer, cached: Dataset, tmp_path: Path, expert: str) -> None:
    name = f"WAN2.2-{expert.title()}Noise_toy"
    run = TrainingRun(output=tmp_path / "output", expert=expert, name=name, save_every=2)

    done = trainer.train(cached, run, "--save_state", launcher=True)

    assert done.returncode == 0, text_of(done)
    # The trainer saves after every second epoch but the last, and once more at the end without a number.
    expected = {f"{name}-000002.safetensors", f"{name}-000002-state", f"{name}.safetensors", f"{name}-state"}
    assert {path.name for path in run.output.iterdir()} == expected
    assert checkpoint_epochs(run.output, name) == (2,)

    lora = lora_file(run.output, name)
    tensors = trainer.ask("dump_tensors.py", str(lora))[str(lora)]
    assert set(tensors) == LORA_KEYS
    assert {dtype for dtype, _, _, _ in tensors.values()} == {"float32"}
    assert all(finite for _, _, finite, _ in tensors.values())
    # lora_up starts at zero, so anything else in it was learnt.
    assert not any(zero for key, (_, _, _, zero) in tensors.items() if "lora_up" in key)

    metadata = read_header(lora).metadata
    assert metadata["modelspec.title"] == name
    assert metadata["modelspec.author"] == "MyName"
    assert metadata["modelspec.timestep_range"] == {"high": "875,1000", "low": "0,875"}[expert]
    assert (metadata["ss_epoch"], metadata["ss_steps"]) == ("4", str(4 * len(SIZES)))


def test_our_parser_reads_the_trainers_output(trainer: Trainer, cached: Dataset, tmp_path: Path) -> None:
    run = TrainingRun(output=tmp_path / "output", epochs=2)

    done = trainer.train(cached, run)

    assert done.returncode == 0, text_of(done)
    parser = OutputParser()
    records = [*parser.feed((done.stdout + "\n" + done.stderr).encode()), *parser.finish()]
    assert Items(count=len(SIZES)) in records
    assert TotalSteps(steps=2 * len(SIZES)) in records
    assert [r for r in records if isinstance(r, EpochStarted)] == [
        EpochStarted(epoch=1, epochs=2),
        EpochStarted(epoch=2, epochs=2),
    ]
    steps = [record for record in records if isinstance(record, StepRecord)]
    assert {record.steps for record in steps} == {2 * len(SIZES)}
    assert {record.step for record in steps} >= set(range(1, 2 * len(SIZES) + 1))
    assert steps[-1].loss is not None
    assert 0 < steps[-1].loss < 100


def test_states_are_complete_by_our_rule_and_old_ones_are_removed(
    trainer: Trainer, cached: Dataset, tmp_path: Path
) -> None:
    run = TrainingRun(output=tmp_path / "output", epochs=4)

    done = trainer.train(cached, run, "--save_state", "--save_last_n_epochs", "2", "--save_last_n_epochs_state", "2")

    assert done.returncode == 0, text_of(done)
    states = complete_states(run.output, run.name, ALWAYS_IN_A_STATE | {"scheduler.bin"})
    assert [state.epoch for state in states] == [2, 3, None]
    assert checkpoint_epochs(run.output, run.name) == (2, 3)
    # Under full precision there is no scaler, and nothing else that our rule would not know.
    assert {path.name for path in state_dir(run.output, run.name, 2).iterdir()} == {
        "model.safetensors",
        "optimizer.bin",
        "scheduler.bin",
        "random_states_0.pkl",
    }

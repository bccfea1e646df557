"""The training program: files, counting, resume, learning, and the words of its output."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rehearsal_programs import SEED_FLAGS, Tiny, Trained, train
from safetensors import safe_open

from wan_train.rehearsal.command_line import parse_training

NAME = "WAN2.2_REHEARSAL_t"
STATE_FILES = {"model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl"}


def last_rate(torch: Any, state: Path) -> tuple[int, float]:
    saved = torch.load(state / "scheduler.bin", weights_only=False)
    return saved["last_epoch"], saved["_last_lr"][0]


def seed_rate(step: int, total: int) -> float:
    """Transformers' get_polynomial_decay_schedule_with_warmup with power 8 from 3e-4 to 1e-7."""
    return (3e-4 - 1e-7) * (1 - step / total) ** 8 + 1e-7


def test_checkpoints_and_states_have_the_real_names(trained: Trained) -> None:
    names = {path.name for path in trained.output.iterdir()}
    assert names == {
        *(f"{NAME}-00000{epoch}.safetensors" for epoch in (1, 2)),
        *(f"{NAME}-00000{epoch}-state" for epoch in (1, 2)),
        f"{NAME}-state",
        f"{NAME}.safetensors",
    }
    for state in trained.output.glob("*-state"):
        assert {path.name for path in state.iterdir()} == STATE_FILES


def test_lora_has_the_real_keys_and_says_rehearsal(trained: Trained) -> None:
    with safe_open(trained.output / f"{NAME}.safetensors", "pt") as file:
        keys, metadata = set(file.keys()), file.metadata()
        tensors = {key: file.get_tensor(key) for key in keys}
    layers = [f"{attn}_attn_{part}" for attn in ("self", "cross") for part in "qkvo"] + ["ffn_0", "ffn_2"]
    assert keys == {
        f"lora_unet_blocks_{block}_{layer}.{part}"
        for block in range(4)
        for layer in layers
        for part in ("alpha", "lora_down.weight", "lora_up.weight")
    }
    assert tensors["lora_unet_blocks_0_cross_attn_k.lora_down.weight"].shape == (16, 64)
    assert tensors["lora_unet_blocks_0_cross_attn_k.lora_up.weight"].shape == (64, 16)
    assert tensors["lora_unet_blocks_0_cross_attn_k.alpha"] == 16
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert metadata["ss_rehearsal"].startswith("REHEARSAL")
    assert metadata["modelspec.title"] == "REHEARSAL WAN2.2_t"
    expected = {"ss_epoch": "3", "ss_steps": "12", "ss_num_train_items": "4", "ss_network_dim": "16"}
    expected |= {"modelspec.timestep_range": "875,1000", "modelspec.author": "me", "ss_seed": "5"}
    expected |= {"ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.1)", "ss_output_name": NAME}
    assert {key: metadata[key] for key in expected} == expected
    assert json.loads(metadata["ss_datasets"])[0]["resolution"] == [96, 96]


def test_resume_counts_from_zero_while_the_learning_rate_goes_on(trained: Trained, tmp_path: Path, torch: Any) -> None:
    assert last_rate(torch, trained.output / f"{NAME}-000002-state") == (8, pytest.approx(seed_rate(8, 12)))
    result = train(
        trained.dataset,
        tmp_path,
        *("--max_train_epochs", 3, "--save_every_n_epochs", 1, "--save_state"),
        *("--resume", trained.output / f"{NAME}-000002-state"),
    )
    assert result.returncode == 0, result.stderr
    assert re.findall(r"^epoch (\d)/3$", result.stdout, re.MULTILINE) == ["1", "2", "3"]
    assert "All random states loaded successfully" in result.stderr
    assert last_rate(torch, tmp_path / f"{NAME}-000001-state") == (12, pytest.approx(1e-7))
    with (
        safe_open(trained.output / f"{NAME}-000002.safetensors", "pt") as before,
        safe_open(tmp_path / f"{NAME}-000001.safetensors", "pt") as after,
    ):
        key = "lora_unet_blocks_0_self_attn_o.lora_up.weight"
        old, new = before.get_tensor(key), after.get_tensor(key)
        assert after.metadata()["ss_epoch"] == "1"
    # One more epoch at a small rate: near the weights of the state, far from the zeros of a fresh start.
    assert 0 < (new - old).norm() < 0.5 * old.norm()


def test_old_epochs_and_steps_go(cached: Tiny, tmp_path: Path, torch: Any) -> None:
    result = train(
        cached,
        tmp_path,
        *("--max_train_epochs", 5, "--save_every_n_epochs", 1, "--save_state", "--save_every_n_steps", 8),
        *("--save_last_n_epochs", 2, "--save_last_n_epochs_state", 1, "--save_precision", "bf16"),
    )
    assert result.returncode == 0, result.stderr
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        *(f"{NAME}-{which}.safetensors" for which in ("000003", "000004", "step00000008", "step00000016")),
        *(f"{NAME}-{which}-state" for which in ("000004", "step00000008", "step00000016")),
        f"{NAME}-state",
        f"{NAME}.safetensors",
    }
    assert f"removing old checkpoint: {tmp_path}/{NAME}-000002.safetensors" in result.stdout
    with safe_open(tmp_path / f"{NAME}.safetensors", "pt") as file:
        assert file.get_tensor("lora_unet_blocks_0_ffn_0.lora_up.weight").dtype == torch.bfloat16


@pytest.mark.parametrize("expert", [(875, 1000), (0, 875)])
def test_the_loss_falls_on_a_fixed_seed(cached: Tiny, tmp_path: Path, expert: tuple[int, int]) -> None:
    low, high = expert
    result = train(cached, tmp_path, "--max_train_epochs", 12, "--min_timestep", low, "--max_timestep", high)
    assert result.returncode == 0, result.stderr
    bars = re.findall(r"(\d+)/48 \[.*?avr_loss=([\d.e-]+)\]", result.stderr)
    average = {int(step): float(loss) for step, loss in bars}
    first = average[max(step for step in average if step <= 4)]
    assert average[48] < 0.85 * first


RUNNING = """\
running training / 学習開始
  num train items / 学習画像、動画数: N
  num batches per epoch / 1epochのバッチ数: N
  num epochs / epoch数: N
  batch size per device / バッチサイズ: 1
  gradient accumulation steps / 勾配を合計するステップ数 = 1
  total optimization steps / 学習ステップ数: N
"""
DATASET = r"""INFO:[\w.]+:glob images in \S+
INFO:[\w.]+:found \d+ images
INFO:[\w.]+:\[Dataset 0\]
  is_image_dataset: True
  resolution: \(\d+, \d+\)
  batch_size: 1
  num_repeats: 1
  caption_extension: "\.txt"
  enable_bucket: True
  bucket_no_upscale: False
  cache_directory: "\S+"
  debug_dataset: False
    image_directory: "\S+"
    image_jsonl_file: "None"$"""
STATE = r"""INFO:[\w.]+:
INFO:[\w.]+:saving state at epoch 2
INFO:accelerate\.accelerator:Saving current state to \S+-000002-state
INFO:accelerate\.checkpointing:Model weights saved in \S+/model\.safetensors
INFO:accelerate\.checkpointing:Optimizer state saved in \S+/optimizer\.bin
INFO:accelerate\.checkpointing:Scheduler state saved in \S+/scheduler\.bin
INFO:accelerate\.checkpointing:Sampler state for dataloader 0 saved in \S+/sampler\.bin
INFO:accelerate\.checkpointing:Random states saved in \S+/random_states_0\.pkl$"""
BAR = r"\rsteps: +\d+%\|.{10}\| +?\d+/\d+ \[\d\d:\d\d<\d\d:\d\d, +[\d.]+(?:it/s|s/it), avr_loss=[\d.e-]+\]"
STDOUT = (
    r"^accelerator device: cpu$",
    r"^import network module: networks\.lora_wan$",
    r"^prepare optimizer, data loader etc\.$",
    r"^override steps\. steps for \d+ epochs is / 指定エポックまでのステップ数: \d+$",
    re.escape(RUNNING).replace("N", r"\d+"),
    r"^epoch 1/\d+$",
    r"^saving checkpoint: \S+-000002\.safetensors$",
    r"^saving checkpoint: \S+[^0]\.safetensors$",
)
STDERR = (
    r"^INFO:[\w.]+:Load dataset config from \S+$",
    DATASET,
    r"^INFO:[\w.]+:bucket: \(\d+, \d+, 9\), count: \d+$",
    r"^INFO:[\w.]+:total batches: \d+$",
    r"^INFO:[\w.]+:preparing accelerator$",
    r"^INFO:[\w.]+:DiT precision: torch\.float32, weight precision: torch\.float32$",
    r"^INFO:[\w.]+:Loading DiT model from \S+$",
    r"^INFO:[\w.]+:create LoRA network\. base dim \(rank\): 16, alpha: 16\.0$",
    r"^INFO:[\w.]+:create LoRA for U-Net/DiT: 40 modules\.$",
    r"^INFO:[\w.]+:use AdamW optimizer \| \{'weight_decay': 0\.1\}$",
    r"^INFO:[\w.]+:set DiT model name for metadata: \S+$",
    r"^INFO:[\w.]+:set VAE model name for metadata: \S+$",
    r"\rsteps:   0%\| {10}\| 0/\d+ \[00:00<\?, \?it/s\]INFO:[\w.]+:DiT dtype: torch\.float32, device: cpu$",
    r"INFO:[\w.]+:epoch is incremented\. current_epoch: \d+, epoch: 1$",
    BAR,
    STATE,
    r"INFO:[\w.]+:saving last state\.$",
    r"INFO:[\w.]+:model saved\.$",
)


def unmatched(patterns: Sequence[str], text: str) -> list[str]:
    return [pattern for pattern in patterns if not re.search(pattern, text, re.MULTILINE)]


def test_output_has_the_grammar_of_the_real_trainer(trained: Trained) -> None:
    real = gzip.decompress((Path(__file__).parent / "real-train-d0a1930.log.gz").read_bytes()).decode()
    assert unmatched([*STDOUT, *STDERR], real) == []
    assert unmatched(STDOUT, trained.result.stdout) == []
    assert unmatched(STDERR, trained.result.stderr) == []


def test_options_without_effect_are_named(cached: Tiny, tmp_path: Path) -> None:
    given = ("--network_args", "conv_dim=4", "--log_with", "wandb", "--blocks_to_swap", 3, "--lr_scheduler_args")
    result = train(cached, tmp_path, "--max_train_epochs", 1, *given, "lr_end=1e-5")
    assert result.returncode == 0, result.stderr
    [line] = [line for line in result.stderr.splitlines() if "options without effect" in line]
    assert {"--network_args", "--log_with", "--blocks_to_swap", "--lr_scheduler_min_lr_ratio"} < set(line.split())
    assert "--lr_scheduler_args" not in line


def test_no_caches_is_an_error_before_anything_is_loaded(tiny: Tiny, tmp_path: Path) -> None:
    tiny.cache.mkdir()
    result = train(tiny, tmp_path / "out", "--max_train_epochs", 1)
    assert result.returncode == 1
    assert "ValueError: No training items found in the dataset" in result.stderr
    assert not (tmp_path / "out").exists()


def test_caches_without_image_condition_do_not_train_image_to_video(cached: Tiny, tmp_path: Path) -> None:
    result = train(cached, tmp_path, "--max_train_epochs", 1, "--task", "i2v-A14B")
    assert result.returncode == 1
    assert "KeyError: 'latents_image'" in result.stderr


def test_options_from_a_file_stand_below_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "options.toml"
    config.write_text("[length]\nmax_train_epochs = 7\nseed = 3\n[save]\noutput_name = 'x'\n", encoding="utf-8")
    args = parse_training([*SEED_FLAGS, "--max_train_epochs", "1", "--config_file", str(tmp_path / "options")])
    assert (args.max_train_epochs, args.seed, args.output_name, args.network_dim) == (1, 5, "x", 16)
    config.write_text("colour = 3\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        parse_training(["--config_file", str(config)])

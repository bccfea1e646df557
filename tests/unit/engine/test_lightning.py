"""Lightning's files as the trainer reads them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from wan_train.base.errors import NotReadyError
from wan_train.engine import lightning
from wan_train.engine.tensors import BrokenFileError
from wan_train.recipe.model_files import lightning as lightning_files
from wan_train.recipe.terms import Expert, Task

OWN = {
    "diffusion_model.blocks.0.self_attn.q.lora_down.weight": np.ones((2, 4), np.float32),
    "diffusion_model.blocks.0.self_attn.q.lora_up.weight": np.full((8, 2), 3, np.float32),
    "diffusion_model.blocks.0.self_attn.q.alpha": np.array(8, np.float32),
    "diffusion_model.blocks.39.ffn.0.lora_A.weight": np.full((2, 4), 5, np.float32),
    "diffusion_model.blocks.39.ffn.0.lora_B.weight": np.full((8, 2), 7, np.float32),
}


def test_tensors_get_the_trainers_names_and_keep_their_numbers(tmp_path: Path) -> None:
    source = tmp_path / "wan2.2_lora_high_noise.safetensors"
    save_file(OWN, source)
    path = lightning.converted(source)
    made = load_file(path)
    assert {name: value.tolist() for name, value in made.items()} == {
        "lora_unet_blocks_0_self_attn_q.lora_down.weight": np.ones((2, 4)).tolist(),
        "lora_unet_blocks_0_self_attn_q.lora_up.weight": np.full((8, 2), 3.0).tolist(),
        "lora_unet_blocks_0_self_attn_q.alpha": 8.0,
        "lora_unet_blocks_39_ffn_0.lora_down.weight": np.full((2, 4), 5.0).tolist(),
        "lora_unet_blocks_39_ffn_0.lora_up.weight": np.full((8, 2), 7.0).tolist(),
    }
    assert lightning.source_name(path) == source.name
    assert lightning.source_name(source) == source.name


def test_it_is_made_once_and_again_for_a_newer_download(tmp_path: Path) -> None:
    source = tmp_path / "lora.safetensors"
    save_file(OWN, source)
    first = lightning.converted(source).stat()
    assert lightning.converted(source).stat().st_ino == first.st_ino
    save_file({name: np.asarray(value + 1) for name, value in OWN.items()}, source)
    os.utime(source, ns=(first.st_mtime_ns + 10**9, first.st_mtime_ns + 10**9))
    assert load_file(lightning.converted(source))["lora_unet_blocks_0_self_attn_q.alpha"] == 9


@pytest.mark.parametrize("name", ["diffusion_model.blocks.0.norm.diff", "blocks.0.ffn.0.lora_down.weight"])
def test_a_tensor_that_would_be_lost_is_refused(tmp_path: Path, name: str) -> None:
    source = tmp_path / "lora.safetensors"
    save_file({**OWN, name: np.ones(2, np.float32)}, source)
    with pytest.raises(BrokenFileError, match="not the Lightning LoRA"):
        lightning.converted(source)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize("task", Task)
def test_where_it_is_missing_the_command_that_fetches_it_is_named(tmp_path: Path, task: Task) -> None:
    with pytest.raises(NotReadyError) as raised:
        lightning.installed(task, tmp_path)
    assert ("--with lightning --task i2v" in (raised.value.hint or "")) == (task is Task.I2V)
    for model in lightning_files(task).values():
        model.path(tmp_path).parent.mkdir(parents=True, exist_ok=True)
        save_file(OWN, model.path(tmp_path))
    assert lightning.installed(task, tmp_path).keys() == set(Expert)

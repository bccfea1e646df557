"""LoRA files that must not be drawn: the trainer would draw most of them wrongly, with exit code 0."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from wan_train.preview.loras import Model, fingerprint, flaws, shapes_of
from wan_train.recipe.terms import Expert, Task

HIGH = {"ss_sd_model_name": "wan2.2_t2v_high_noise_14B_fp16.safetensors"}
LOW = {"ss_sd_model_name": "wan2.2_t2v_low_noise_14B_fp16.safetensors"}
I2V = {"ss_sd_model_name": "wan2.2_i2v_high_noise_14B_fp16.safetensors"}
SHAPES = {"lora_unet_blocks_0_self_attn_q": (6, 4), "lora_unet_blocks_0_ffn_0": (8, 4)}
MODEL = Model(task=Task.T2V, is_real=True, shapes={Expert.HIGH: SHAPES, Expert.LOW: SHAPES})


def lora(
    path: Path, metadata: dict[str, str] = HIGH, *, rank: int = 2, module: str = "blocks_0", width: int = 4
) -> Path:
    tensors = {}
    for name, (out, _) in SHAPES.items():
        own = name.replace("blocks_0", module)
        tensors[f"{own}.lora_down.weight"] = np.ones((rank, width), np.float32)
        tensors[f"{own}.lora_up.weight"] = np.ones((out, rank), np.float32)
        tensors[f"{own}.alpha"] = np.array(2.0, np.float32)
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize("rank", [1, 2, 16])
def test_a_whole_lora_of_any_rank_may_be_drawn(tmp_path: Path, rank: int) -> None:
    assert flaws(lora(tmp_path / "a.safetensors", rank=rank), Expert.HIGH, MODEL) == ()


def test_swapped_experts_and_other_tasks_are_refused(tmp_path: Path) -> None:
    assert flaws(lora(tmp_path / "a.safetensors", LOW), Expert.HIGH, MODEL) == (
        "is a LoRA of the low-noise expert, not of the high-noise one",
    )
    assert flaws(lora(tmp_path / "b.safetensors", I2V), Expert.HIGH, MODEL) == (
        "is a LoRA for image to video, and this preview is text to video",
    )


def test_keys_that_match_nothing_and_other_widths_are_refused(tmp_path: Path) -> None:
    (unmatched,) = flaws(lora(tmp_path / "a.safetensors", module="blocks_77"), Expert.HIGH, MODEL)
    assert unmatched.startswith("has 2 keys that match nothing in the model: lora_unet_blocks_77_ffn_0")
    (wide,) = flaws(lora(tmp_path / "b.safetensors", width=5), Expert.HIGH, MODEL)
    assert wide == "does not match the model's width: lora_unet_blocks_0_ffn_0 maps 5 to 8, the model needs 4 to 8"


def test_files_of_other_tools_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"diffusion_model.blocks.0.q.lora_down.weight": np.ones((2, 4), np.float32)}, path, metadata=HIGH)
    (said,) = flaws(path, Expert.HIGH, MODEL)
    assert "match nothing" in said
    save_file({"something": np.ones((2, 4), np.float32)}, path, metadata=HIGH)
    (said,) = flaws(path, Expert.HIGH, MODEL)
    assert "match nothing" in said


def test_a_matrix_without_its_other_half_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"lora_unet_blocks_0_ffn_0.lora_down.weight": np.ones((2, 4), np.float32)}, path, metadata=HIGH)
    assert flaws(path, Expert.HIGH, MODEL) == ("has no matching pair of matrices in lora_unet_blocks_0_ffn_0",)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"lora_unet_blocks_0_ffn_0.lora_down.weight": np.full((2, 4), value, np.float16)}, path, metadata=HIGH)
    (said,) = flaws(path, Expert.HIGH, MODEL)
    assert said.startswith("contains NaN or infinity")


def test_cut_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = lora(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    (said,) = flaws(path, Expert.HIGH, MODEL)
    assert "incomplete" in said
    assert flaws(tmp_path / "none.safetensors", Expert.HIGH, MODEL) == ("does not exist",)
    (tmp_path / "text.safetensors").write_text("no LoRA at all, but a text")
    assert flaws(tmp_path / "text.safetensors", Expert.HIGH, MODEL)


def test_a_rehearsals_lora_is_drawn_by_the_rehearsal_alone(tmp_path: Path) -> None:
    path = lora(tmp_path / "a.safetensors", {**HIGH, "ss_rehearsal": "yes"})
    assert flaws(path, Expert.HIGH, MODEL) == ("is a rehearsal's LoRA and does not fit Wan 2.2",)
    assert flaws(path, Expert.HIGH, Model(task=Task.T2V, is_real=False, shapes={})) == ()


def test_shapes_are_read_from_the_dit_with_and_without_a_prefix(tmp_path: Path) -> None:
    for number, prefix in enumerate(("", "model.diffusion_model.")):
        path = tmp_path / f"{number}.safetensors"
        save_file(
            {f"{prefix}blocks.0.ffn.0.weight": np.ones((8, 4), np.float16), f"{prefix}head.bias": np.ones(3)}, path
        )
        assert shapes_of(path) == {"lora_unet_blocks_0_ffn_0": (8, 4)}


def test_another_model_of_the_same_size_has_another_fingerprint(tmp_path: Path) -> None:
    header = json.dumps({"a": 1}).encode()
    one, other = tmp_path / "one", tmp_path / "other"
    body = bytes(5 << 20)
    one.write_bytes(struct.pack("<Q", len(header)) + header + body)
    other.write_bytes(struct.pack("<Q", len(header)) + header + body[:-1] + b"\1")
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(one)

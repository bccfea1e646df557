"""A LoRA to continue from: whole, of the right expert, task, rank and kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.runs import with_settings
from wan_train.engine.network_weights import Judgement, judge_weights
from wan_train.recipe.load import shipped
from wan_train.recipe.terms import Expert, Task

DOWN = "lora_unet_blocks_0_self_attn_q.lora_down.weight"
MODEL = "wan2.2_t2v_{}_noise_14B_fp16.safetensors"


def write_lora(path: Path, metadata: dict[str, str], *, rank: int = 16, name: str = DOWN) -> Path:
    entry = {"dtype": "F16", "shape": [rank, 4], "data_offsets": [0, rank * 8]}
    header = json.dumps({"__metadata__": metadata, name: entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(rank * 8))
    return path


def judged(
    path: Path,
    *,
    expert: Expert = Expert.HIGH,
    is_real: bool = True,
    shapes: dict[str, tuple[int, ...]] | None = None,
    **settings: object,
) -> Judgement:
    recipe = with_settings(shipped(Task.T2V), network_weights=str(path), **settings)
    return judge_weights(recipe.spec(expert), Task.T2V, shapes, is_real=is_real)


def test_the_experts_own_lora_is_taken_without_a_word(tmp_path: Path) -> None:
    file = write_lora(tmp_path / "a.safetensors", {"ss_sd_model_name": MODEL.format("high"), "ss_network_alpha": "16"})
    assert judged(file) == Judgement()
    assert judged(file, shapes={DOWN: (16, 4)}) == Judgement()


@pytest.mark.parametrize(
    ("metadata", "name", "expert"),
    [
        ({"ss_sd_model_name": MODEL.format("low")}, "a.safetensors", Expert.HIGH),
        ({"ss_output_name": "WAN2.2-LowNoise_cat"}, "a.safetensors", Expert.HIGH),
        ({}, "WAN2.2-HighNoise_cat.safetensors", Expert.LOW),
        ({"modelspec.timestep_range": "875,1000"}, "a.safetensors", Expert.LOW),
        ({"modelspec.timestep_range": "0,875"}, "a.safetensors", Expert.HIGH),
        # The model that it was trained on counts more than a file's name.
        ({"ss_sd_model_name": MODEL.format("low")}, "cat_high_noise.safetensors", Expert.HIGH),
    ],
)
def test_a_lora_of_the_other_expert_is_refused(
    metadata: dict[str, str], name: str, expert: Expert, tmp_path: Path
) -> None:
    other = next(each for each in Expert if each is not expert)
    found = judged(write_lora(tmp_path / name, metadata), expert=expert)
    assert found.problems == (f"is a LoRA of the {other.value}-noise expert",)
    assert f"--{expert.value} network_weights=FILE" in found.hints[0]


@pytest.mark.parametrize("name", ["cat.safetensors", "low_poly_style.safetensors", "highway.safetensors"])
def test_a_lora_that_does_not_say_its_expert_is_a_note(name: str, tmp_path: Path) -> None:
    found = judged(write_lora(tmp_path / name, {}))
    assert found.problems == ()
    assert "which expert" in found.notes[0]


def test_another_rank_is_refused_with_the_option_that_fits(tmp_path: Path) -> None:
    file = write_lora(tmp_path / "high_noise.safetensors", {}, rank=8)
    found = judged(file)
    assert found.problems == ("has rank 8, and network_dim is 16",)
    assert found.hints[0].endswith("--rank 8")
    assert judged(file, network_dim=8) == Judgement()


def test_another_alpha_would_change_the_strength(tmp_path: Path) -> None:
    file = write_lora(tmp_path / "high_noise.safetensors", {"ss_network_alpha": "8.0"})
    assert "another strength" in judged(file).problems[0]
    assert judged(file).hints[0].endswith("--alpha 8.0")
    assert judged(file, network_alpha=8) == Judgement()


def test_another_task_is_refused(tmp_path: Path) -> None:
    file = write_lora(tmp_path / "a.safetensors", {"ss_sd_model_name": "wan2.2_i2v_high_noise_14B_fp16.safetensors"})
    assert judged(file).problems == ("is a LoRA for image to video, and this training is text to video",)


def test_a_rehearsals_lora_and_a_real_one_are_not_exchanged(tmp_path: Path) -> None:
    of_rehearsal = write_lora(tmp_path / "high_noise.safetensors", {"ss_rehearsal": "tiny"})
    assert "is a rehearsal's LoRA" in judged(of_rehearsal).problems[0]
    assert judged(of_rehearsal, is_real=False) == Judgement()
    real = write_lora(tmp_path / "real_high_noise.safetensors", {})
    assert "is a real LoRA" in judged(real, is_real=False).problems[0]


def test_names_that_the_trainer_passes_over_in_silence_are_refused(tmp_path: Path) -> None:
    peft = "diffusion_model.blocks.0.self_attn.q.lora_A.weight"
    found = judged(write_lora(tmp_path / "high_noise.safetensors", {}, name=peft))
    assert found.problems == (f"has no weights that networks.lora_wan reads: its tensors are called like {peft}",)
    lora = write_lora(tmp_path / "high_noise2.safetensors", {})
    assert "no weights that networks.lokr reads" in judged(
        lora, network_module="networks.lokr", shapes={"lora_unet_blocks_0_self_attn_q.lokr_w1": (64, 64)}
    ).problems[0]  # fmt: skip


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    name = "lora_unet_blocks_0_self_attn_q.lokr_w2_a"
    file = write_lora(tmp_path / "high_noise.safetensors", {}, name=name)
    assert "is [16, 4] instead of [80, 16]" in judged(file, shapes={name: (80, 16)}).problems[0]


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 a pickle of old", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_what_is_no_whole_safetensors_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "high_noise.safetensors"
    if content is not None:
        path.write_bytes(content)
    [problem] = judged(path).problems
    assert "does not exist" in problem or "safetensors" in problem

"""The workflow for ComfyUI, beside ComfyUI's own node definitions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.runs import make_plan
from wan_train.preview.comfyui import workflow, write_workflow
from wan_train.preview.model import BASE, Lora, Precision, Preview, PreviewDirectory, Prompt, Row, Solver
from wan_train.recipe.terms import Expert, Task

NODES: Mapping[str, Any] = json.loads((Path(__file__).parent / "comfyui_nodes.json").read_text(encoding="utf-8"))[
    "nodes"
]
PROMPT = Prompt(
    text='a red fox, "quoted"\\',
    negative=None,
    width=832,
    height=480,
    frames=1,
    steps=20,
    seed=7,
    guidance={Expert.HIGH: 4.0, Expert.LOW: 3.0},
    shift=12.0,
)
ROW = Row(
    name="60:40",
    loras={
        Expert.HIGH: Lora(path=Path("/runs/fox/HIGH-000060.safetensors"), sha256="aa", epoch=60),
        Expert.LOW: Lora(path=Path("/runs/fox/LOW-000040.safetensors"), sha256="bb", epoch=40),
    },
)
PREVIEW = Preview(
    name="prompts",
    run_id="fox",
    created=1.0,
    task=Task.T2V,
    trainer="0.3.4",
    models={},
    precision=Precision.AS_STORED,
    prompts=(PROMPT,),
    rows=(Row(name=BASE), ROW),
    model_negative="blurred",
    strength=0.8,
)
CLIP = replace(PROMPT, frames=17)
I2V = replace(PREVIEW, task=Task.I2V)
FAST = replace(
    PREVIEW,
    solver=Solver.VANILLA,
    uses_guidance=False,
    merged={expert: Lora(path=Path(f"/models/{expert.value}_lightning.safetensors"), sha256="cc") for expert in Expert},
)


def made(preview: Preview, prompt: Prompt) -> dict[str, Any]:
    return workflow(preview, ROW, prompt, make_plan().models)


@pytest.mark.parametrize(
    ("preview", "prompt"),
    [
        (PREVIEW, PROMPT),
        (PREVIEW, CLIP),
        (replace(PREVIEW, precision=Precision.FP8_SCALED), PROMPT),
        (I2V, replace(CLIP, image=Path("/runs/fox/preview/start.png"))),
        (FAST, replace(PROMPT, steps=4, shift=5.0, seed=2**65)),
    ],
    ids=["picture", "clip", "fp8", "i2v", "fast"],
)
def test_comfyui_takes_every_node(preview: Preview, prompt: Prompt) -> None:
    nodes = made(preview, prompt)
    for name, node in nodes.items():
        about = NODES[node["class_type"]]
        optional = about.get("optional", {})
        assert about["inputs"].keys() <= node["inputs"].keys() <= about["inputs"].keys() | optional.keys(), name
        for key, value in node["inputs"].items():
            fits(nodes, value, {**about["inputs"], **optional}[key], f"{name}: {key}")
    used = {value[0] for node in nodes.values() for value in node["inputs"].values() if isinstance(value, list)}
    assert nodes.keys() - used == {"save"}, "every node leads to the picture"


def fits(nodes: Mapping[str, Any], value: object, wanted: object, where: str) -> None:
    match wanted:
        case "file" | "text":
            assert isinstance(value, str), where
            assert wanted == "text" or "/" not in value, where
        case "switch":
            assert isinstance(value, bool), where
        case str():
            assert isinstance(value, list), where
            assert NODES[nodes[value[0]]["class_type"]]["outputs"][value[1]] == wanted, where
        case [str(), *_]:
            assert value in wanted, where
        case [least, most, *step]:
            assert isinstance(value, type(least)), where
            assert least <= value <= most, where
            assert not step or (value - least) % step[0] == 0, where


def test_it_draws_what_the_sheet_shows() -> None:
    nodes = made(PREVIEW, PROMPT)
    high, low = (nodes[f"{expert.value} sampler"]["inputs"] for expert in Expert)
    assert (high["start_at_step"], high["end_at_step"]) == (0, 13)
    assert (low["start_at_step"], low["end_at_step"]) == (13, 20)
    assert (high["add_noise"], high["return_with_leftover_noise"]) == ("enable", "enable")
    assert (low["add_noise"], low["return_with_leftover_noise"]) == ("disable", "disable")
    assert (high["cfg"], low["cfg"], low["noise_seed"]) == (4.0, 3.0, 7)
    assert nodes["high lora"]["inputs"]["lora_name"] == "HIGH-000060.safetensors"
    assert nodes["low lora"]["inputs"]["strength_model"] == 0.8
    assert nodes["high shift"]["inputs"]["shift"] == 12.0
    assert nodes["negative"]["inputs"]["text"] == "blurred"
    assert "high_noise" in nodes["high model"]["inputs"]["unet_name"]


def test_lightning_is_loaded_under_the_lora_and_without_guidance() -> None:
    nodes = made(FAST, replace(PROMPT, steps=4, shift=5.0))
    assert nodes["low lora"]["inputs"]["model"] == ["low lightning", 0]
    sampler = nodes["low sampler"]["inputs"]
    assert (sampler["cfg"], sampler["sampler_name"], sampler["start_at_step"]) == (1.0, "euler", 2)


def test_an_expert_without_lora_is_loaded_alone() -> None:
    only = replace(ROW, loras={Expert.HIGH: ROW.loras[Expert.HIGH]})
    nodes = workflow(PREVIEW, only, PROMPT, make_plan().models)
    assert nodes["low shift"]["inputs"]["model"] == ["low model", 0]
    assert "low lora" not in nodes


def test_it_is_written_for_the_last_row_and_not_without_a_lora(tmp_path: Path) -> None:
    directory, models = PreviewDirectory(tmp_path), make_plan().models
    assert write_workflow(directory, replace(PREVIEW, rows=(Row(name=BASE),)), models) is None
    assert not directory.workflow.exists()
    assert write_workflow(directory, PREVIEW, models) == directory.workflow
    written = json.loads(directory.workflow.read_bytes())
    titles = {node["_meta"]["title"]: number for number, node in written.items()}
    assert written[titles["high shift"]]["inputs"]["model"] == [titles["high lora"], 0]
    assert written[titles["high lora"]]["inputs"]["lora_name"] == "HIGH-000060.safetensors"
    assert written.keys() == {str(number) for number in range(1, len(written) + 1)}

"""A ComfyUI workflow that reproduces a preview: the same models, LoRAs, prompt, size, seed, steps and shift.

It uses the API format, `{id: {class_type, inputs}}`. ComfyUI opens it when the file is dropped on its page. A link is
`[id, output number]`. Nodes and inputs are from ComfyUI's nodes.py, comfy_extras/nodes_hunyuan.py, nodes_wan.py,
nodes_model_advanced.py and nodes_images.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wan_train.base import codec
from wan_train.base.files import write_whole
from wan_train.engine.commands import ModelPaths
from wan_train.engine.generate import high_noise_steps
from wan_train.engine.lightning import source_name
from wan_train.preview.model import Precision, Preview, PreviewDirectory, Prompt, Row, Solver
from wan_train.preview.thumbnails import FRAMES_PER_SECOND
from wan_train.recipe.terms import Expert, Task

_T5 = "umt5_xxl_fp16.safetensors"
"""The file that ComfyUI reads. The trainer's own .pth uses other tensor names."""
_SAMPLERS = {Solver.UNIPC: "uni_pc", Solver.VANILLA: "euler"}
_SEEDS = 2**64

Node = dict[str, Any]
Workflow = dict[str, Node]


def write_workflow(directory: PreviewDirectory, preview: Preview, models: ModelPaths) -> Path | None:
    """Write comfyui.json for the last row with a LoRA and the first prompt. Return None if no row has a LoRA.

    Raise OSError.
    """
    rows = [row for row in preview.rows if row.loras]
    if not rows:
        return None
    made = workflow(preview, rows[-1], preview.prompts[0], models)
    write_whole(directory.workflow, codec.dumps(_numbered(made), indent=1) + "\n")
    return directory.workflow


def workflow(preview: Preview, row: Row, prompt: Prompt, models: ModelPaths) -> Workflow:
    """Return the nodes by name. Links use names too."""
    is_i2v = preview.task is Task.I2V
    nodes: Workflow = {
        "text encoder": _node("CLIPLoader", clip_name=_T5, type="wan"),
        "vae": _node("VAELoader", vae_name=models.vae.name),
        "positive": _node("CLIPTextEncode", text=prompt.text, clip=_output("text encoder")),
        "negative": _node(
            "CLIPTextEncode", text=prompt.negative or preview.model_negative or "", clip=_output("text encoder")
        ),
    }
    size = {"width": prompt.width, "height": prompt.height, "length": prompt.frames, "batch_size": 1}
    positive, negative, latent = _output("positive"), _output("negative"), _output("latent")
    if is_i2v:
        nodes["start picture"] = _node("LoadImage", image=prompt.image.name if prompt.image is not None else "")
        nodes["latent"] = _node(
            "WanImageToVideo",
            positive=positive,
            negative=negative,
            vae=_output("vae"),
            start_image=_output("start picture"),
            **size,
        )
        positive, negative, latent = (_output("latent", number) for number in range(3))
    else:
        nodes["latent"] = _node("EmptyHunyuanLatentVideo", **size)
    for expert in Expert:
        nodes |= _expert(preview, row, prompt, models, expert)
    nodes |= _samplers(preview, prompt, positive, negative, latent)
    nodes["picture"] = _node("VAEDecode", samples=_output("low sampler"), vae=_output("vae"))
    if prompt.frames > 1:
        nodes["save"] = _node(
            "SaveAnimatedWEBP",
            images=_output("picture"),
            filename_prefix="preview",
            fps=float(FRAMES_PER_SECOND),
            lossless=False,
            quality=90,
            method="default",
        )
    else:
        nodes["save"] = _node("SaveImage", images=_output("picture"), filename_prefix="preview")
    return nodes


def _expert(preview: Preview, row: Row, prompt: Prompt, models: ModelPaths, expert: Expert) -> Workflow:
    """The model of an expert with its LoRAs; Lightning's comes first."""
    name = expert.value
    dtype = "fp8_e4m3fn" if preview.precision is Precision.FP8_SCALED else "default"
    nodes = {f"{name} model": _node("UNETLoader", unet_name=models.dit[name].name, weight_dtype=dtype)}
    last = f"{name} model"
    if expert in preview.merged:
        lora = source_name(preview.merged[expert].path)
        nodes[f"{name} lightning"] = _node(
            "LoraLoaderModelOnly", lora_name=lora, strength_model=1.0, model=_output(last)
        )
        last = f"{name} lightning"
    if expert in row.loras:
        lora = row.loras[expert].path.name
        nodes[f"{name} lora"] = _node(
            "LoraLoaderModelOnly", lora_name=lora, strength_model=preview.strength, model=_output(last)
        )
        last = f"{name} lora"
    nodes[f"{name} shift"] = _node("ModelSamplingSD3", shift=prompt.shift, model=_output(last))
    return nodes


def _samplers(
    preview: Preview, prompt: Prompt, positive: list[Any], negative: list[Any], latent: list[Any]
) -> Workflow:
    """Return one sampler for each expert. The high-noise one passes on its latents with the leftover noise."""
    split = high_noise_steps(preview.task, steps=prompt.steps, shift=prompt.shift, unipc=preview.solver is Solver.UNIPC)
    spans = {Expert.HIGH: (0, split), Expert.LOW: (split, prompt.steps)}
    nodes: Workflow = {}
    for expert, (first, last) in spans.items():
        is_first = expert is Expert.HIGH
        nodes[f"{expert.value} sampler"] = _node(
            "KSamplerAdvanced",
            model=_output(f"{expert.value} shift"),
            add_noise="enable" if is_first else "disable",
            noise_seed=prompt.seed % _SEEDS,
            steps=prompt.steps,
            cfg=float(prompt.guidance[expert]) if preview.uses_guidance else 1.0,
            sampler_name=_SAMPLERS[preview.solver],
            scheduler="simple",
            positive=positive,
            negative=negative,
            latent_image=latent if is_first else _output("high sampler"),
            start_at_step=first,
            end_at_step=last,
            return_with_leftover_noise="enable" if is_first else "disable",
        )
    return nodes


def _numbered(nodes: Workflow) -> Workflow:
    """Return the nodes with numeric ids, as ComfyUI writes them, and with their names as titles."""
    numbers = {name: str(number) for number, name in enumerate(nodes, start=1)}

    def relinked(value: object) -> object:
        return [numbers[value[0]], value[1]] if isinstance(value, list) else value

    return {
        numbers[name]: {
            "class_type": node["class_type"],
            "inputs": {key: relinked(value) for key, value in node["inputs"].items()},
            "_meta": {"title": name},
        }
        for name, node in nodes.items()
    }


def _node(kind: str, **inputs: object) -> Node:
    return {"class_type": kind, "inputs": inputs}


def _output(node: str, number: int = 0) -> list[Any]:
    return [node, number]

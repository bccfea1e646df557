"""Lightning: a LoRA per expert that lets Wan 2.2 draw in four steps, converted for the trainer's programs.

The files use ComfyUI's tensor names: `diffusion_model.blocks.0.self_attn.q.lora_down.weight`. The trainer (d0a1930 and
v0.3.4) silently ignores such names. Its own `convert_lora.py` writes wrong names at d0a1930.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from wan_train.base.errors import NotReadyError
from wan_train.base.text import one_line
from wan_train.engine.tensors import BrokenFileError, read_header, rename_tensors
from wan_train.recipe.model_files import lightning
from wan_train.recipe.terms import Expert, Task

STEPS: Final = 4
SHIFT: Final = 5.0
"""Lightning was made for this schedule, Euler steps and no guidance."""
VERIFY: Final = "Verify the download: wan-train provision --with lightning --verify"
_PREFIX = "diffusion_model."
_PARTS: Final = {
    ".lora_down.weight": ".lora_down.weight",
    ".lora_up.weight": ".lora_up.weight",
    ".alpha": ".alpha",
    # Other common names of the same two matrices.
    ".lora_A.weight": ".lora_down.weight",
    ".lora_B.weight": ".lora_up.weight",
}
_CONVERTED = ".musubi.safetensors"


def installed(task: Task, trainer_dir: Path) -> Mapping[Expert, Path]:
    """The downloaded files; raises NotReadyError if one is missing."""
    paths = {expert: model.path(trainer_dir) for expert, model in lightning(task).items()}
    if not all(path.is_file() for path in paths.values()):
        words = "" if task is Task.T2V else f" --task {task.word}"
        raise NotReadyError(
            "--fast needs Lightning, which is not on this box",
            hint=f"Download it (2.5 GB): wan-train provision --with lightning{words}\n"
            "Or draw without --fast, with fewer steps: --steps 12",
        )
    return paths


def converted(source: Path) -> Path:
    """The LoRA with the trainer's tensor names, written once next to its source; raises BrokenFileError and OSError."""
    target = source.with_name(source.name.removesuffix(".safetensors") + _CONVERTED)
    if target.is_file() and target.stat().st_mtime_ns >= source.stat().st_mtime_ns:
        return target
    names = {name: _renamed(name, source) for name in read_header(source).tensors}
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    rename_tensors(source, partial, names)
    partial.replace(target)
    return target


def source_name(path: Path) -> str:
    """The source file's name for a converted file, since other programs know only the source's name."""
    return path.name.removesuffix(_CONVERTED) + ".safetensors" if path.name.endswith(_CONVERTED) else path.name


def _renamed(name: str, source: Path) -> str:
    part = next((part for part in _PARTS if name.endswith(part)), None)
    if part is None or not name.startswith(_PREFIX):
        raise BrokenFileError(
            f"{source} is not the Lightning LoRA that this version knows: it has {one_line(name, 80)}",
            hint=VERIFY,
        )
    module = name.removeprefix(_PREFIX).removesuffix(part).replace(".", "_")
    return f"lora_unet_{module}{_PARTS[part]}"

"""Checks LoRA files before they are drawn: complete, finite, for this expert and task, every key in the model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from wan_train.base.text import one_line
from wan_train.engine.network_weights import expert_of, is_rehearsals, task_of
from wan_train.engine.tensors import BrokenFileError, Header, first_non_finite, read_header
from wan_train.recipe.terms import Expert, Task

_MODULE = "lora_unet_"
_DOWN, _UP, _ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
_PREFIX = re.compile(r"^(?:model\.)?(?:diffusion_model\.)?")
_SAMPLE_BYTES = 1 << 20
_MOST_KEYS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What a LoRA must fit: the task, and each expert's linear weight shapes by LoRA module name.

    The rehearsal's model has no file, so its shapes are unknown.
    """

    task: Task
    is_real: bool
    shapes: Mapping[Expert, Mapping[str, tuple[int, ...]]]


def shapes_of(dit: Path) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of a DiT's matrices by LoRA module name. Raise BrokenFileError."""
    return {
        _MODULE + _PREFIX.sub("", name).removesuffix(".weight").replace(".", "_"): tensor.shape
        for name, tensor in read_header(dit).tensors.items()
        if name.endswith(".weight") and len(tensor.shape) >= 2  # matrices
    }


def flaws(path: Path, expert: Expert, model: Model) -> tuple[str, ...]:
    """Return the reasons not to draw a LoRA for this expert, as clauses. Empty if it may be drawn.

    The trainer draws most flawed files with exit code 0: swapped experts, keys that match nothing, NaN.
    """
    if not path.is_file():
        return ("does not exist",)
    try:
        header = read_header(path)
        if (name := first_non_finite(path, header)) is not None:
            return (f"contains NaN or infinity, first in {one_line(name)}",)
    except BrokenFileError as error:
        return (error.message.removeprefix(f"{path} "),)
    except OSError as error:
        return (f"cannot be read: {error.strerror}",)
    return tuple(_of_another_kind(header, path, expert, model)) or tuple(_unmatched(header, model.shapes.get(expert)))


def _of_another_kind(header: Header, path: Path, expert: Expert, model: Model) -> Iterator[str]:
    if model.is_real and is_rehearsals(header, path):
        yield "is a rehearsal's LoRA and does not fit Wan 2.2"
    elif not model.is_real and not is_rehearsals(header, path):
        yield "is a real LoRA and does not fit the rehearsal's tiny model"
    found_expert, found_task = expert_of(header, path), task_of(header, path)
    if found_expert is not None and found_expert is not expert:
        yield f"is a LoRA of the {found_expert.value}-noise expert, not of the {expert.value}-noise one"
    if found_task is not None and found_task is not model.task:
        yield f"is a LoRA for {found_task.words}, and this preview is {model.task.words}"


def _unmatched(header: Header, shapes: Mapping[str, tuple[int, ...]] | None) -> Iterator[str]:
    modules = {name.removesuffix(_DOWN) for name in header.tensors if name.endswith(_DOWN)}
    odd = [name for name in header.tensors if not name.endswith((_DOWN, _UP, _ALPHA))]
    odd += [module for module in modules if shapes is not None and module not in shapes]
    if odd or not modules:
        shown = ", ".join(one_line(name, 60) for name in sorted(odd)[:_MOST_KEYS]) or "none of a LoRA"
        yield f"has {len(odd)} keys that match nothing in the model: {shown}"
        return
    for module in sorted(modules):
        up, down = header.tensors.get(module + _UP), header.tensors[module + _DOWN]
        if up is None or len(up.shape) < 2 or len(down.shape) < 2 or up.shape[1] != down.shape[0]:  # matrices
            yield f"has no matching pair of matrices in {one_line(module)}"
            return
        wanted = shapes.get(module) if shapes is not None else None
        if wanted is not None and (up.shape[0], down.shape[1]) != wanted[:2]:
            yield (
                f"does not match the model's width: {one_line(module)} maps "
                f"{down.shape[1]} to {up.shape[0]}, the model needs {wanted[1]} to {wanted[0]}"
            )
            return


def fingerprint(path: Path) -> str:
    """Return the size and a digest of three samples. Raise OSError.

    Model files have tens of GB, so a digest of the whole file takes minutes.
    """
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for place in (0, size // 2, max(0, size - _SAMPLE_BYTES)):
            file.seek(place)
            digest.update(file.read(_SAMPLE_BYTES))
    return f"{size}:{digest.hexdigest()[:32]}"

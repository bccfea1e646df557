"""Check a LoRA to continue from: complete, for this expert and task, and of the network's shape."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wan_train.base.text import one_line
from wan_train.engine.tensors import BrokenFileError, Header, read_header
from wan_train.engine.traits import REHEARSAL_PREFIX
from wan_train.recipe.model import ExpertSpec, format_number
from wan_train.recipe.terms import Expert, Task

_DOWN = ".lora_down.weight"
# In a model's name, any `high` or `low` is the expert. In a title it may be part of "low poly".
_IN_MODEL = re.compile(r"(?<![a-z])(high|low)(?![a-z])", re.IGNORECASE)
_IN_TITLE = re.compile(r"(?<![a-z])(high|low)[-_ ]?noise", re.IGNORECASE)
_TASK = re.compile(r"(?<![a-z0-9])(t2v|i2v)(?![a-z])", re.IGNORECASE)
_FIRST_BLOCK = "_blocks_0_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Problems with a file, hints to fix them, and notes."""

    problems: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def judge_weights(
    spec: ExpertSpec, task: Task, shapes: Mapping[str, tuple[int, ...]] | None, *, is_real: bool
) -> Judgement:
    """Check that the expert can continue from its `network_weights`.

    `shapes` are the network's tensors in the first block; None if unknown.
    """
    assert spec.training.network_weights is not None, "asked of a training that continues a LoRA"
    path = Path(spec.training.network_weights)
    if not path.is_file():
        return Judgement(problems=("does not exist",))
    try:
        header = read_header(path)
    except BrokenFileError as error:
        return Judgement(problems=(error.message.removeprefix(f"{path} "),))
    if is_real and is_rehearsals(header, path):
        return Judgement(problems=("is a rehearsal's LoRA and does not fit Wan 2.2",))
    if not is_real and not is_rehearsals(header, path):
        return Judgement(problems=("is a real LoRA and does not fit the rehearsal's tiny model",))
    shape = _shape_problem(header, spec, shapes)
    problems = [shape] if shape is not None else []
    hints = []
    if shape is None:
        rank = _rank(header)
        if rank is not None and rank != spec.training.network_dim:
            problems.append(f"has rank {rank}, and network_dim is {spec.training.network_dim}")
            hints.append(f"Continue with the rank of the LoRA: --rank {rank}")
        alpha = _alpha(header)
        # The trainer trains with the given alpha but saves the file's alpha (both versions).
        if rank == spec.training.network_dim and alpha is not None and alpha != spec.training.network_alpha:
            told = format_number(alpha)
            problems.append(
                f"was trained with alpha {told}, and network_alpha is {format_number(spec.training.network_alpha)}: "
                "the new LoRA would have another strength than the one that is trained"
            )
            hints.append(f"Continue with the alpha of the LoRA: --alpha {told}")
    expert, found_task = expert_of(header, path), task_of(header, path)
    if expert is not None and expert is not spec.expert:
        problems.append(f"is a LoRA of the {expert.value}-noise expert")
        hints.append(f"Give the expert its own file: --{spec.expert.value} network_weights=FILE")
    if found_task is not None and found_task is not task:
        problems.append(f"is a LoRA for {found_task.words}, and this training is {task.words}")
        hints.append(f"Continue it in its own task: --task {found_task.word}")
    notes = []
    if expert is None:
        notes.append(f"neither {one_line(path.name)} nor its metadata says which expert it belongs to")
    return Judgement(problems=tuple(problems), hints=tuple(hints), notes=() if problems else tuple(notes))


def is_rehearsals(header: Header, path: Path) -> bool:
    return "ss_rehearsal" in header.metadata or path.name.startswith(REHEARSAL_PREFIX)


def _shape_problem(header: Header, spec: ExpertSpec, shapes: Mapping[str, tuple[int, ...]] | None) -> str | None:
    """The trainer silently ignores other names and would start from zero; other shapes end it with an error."""
    names = header.tensors.keys()
    if shapes is None:
        fits = any(name.startswith("lora_unet_") and name.endswith(_DOWN) for name in names)
        common: list[str] = []
    else:
        common = [name for name in shapes if name in names]
        fits = bool(common)
    if not fits:
        example = one_line(next((name for name in names if _FIRST_BLOCK in name), next(iter(names), "none at all")))
        return (
            f"has no weights that {one_line(spec.training.network_module)} reads: its tensors are called like {example}"
        )
    for name in common:
        wanted, found = (shapes or {})[name], header.tensors[name].shape
        if wanted != found and not name.endswith((_DOWN, ".lora_up.weight")):  # the rank check covers these
            return f"has another shape than this network: {name} is {list(found)} instead of {list(wanted)}"
    return None


def _rank(header: Header) -> int | None:
    ranks = Counter(tensor.shape[0] for name, tensor in header.tensors.items() if name.endswith(_DOWN) and tensor.shape)
    return ranks.most_common(1)[0][0] if ranks else None


def _alpha(header: Header) -> float | None:
    try:
        return float(header.metadata["ss_network_alpha"])
    except (KeyError, ValueError):
        return None


def _titles(header: Header, path: Path) -> tuple[str, ...]:
    return (header.metadata.get("ss_output_name", ""), header.metadata.get("modelspec.title", ""), path.name)


def expert_of(header: Header, path: Path) -> Expert | None:
    """The expert, by the model it was trained on, else by its own name, else by its trained timesteps."""
    model = _IN_MODEL.findall(header.metadata.get("ss_sd_model_name", ""))
    said = model or next((found for title in _titles(header, path) if (found := _IN_TITLE.findall(title))), [])
    words = {word.lower() for word in said}
    if words:
        return Expert(words.pop()) if len(words) == 1 else None
    match header.metadata.get("modelspec.timestep_range", "").split(","):
        case ["0", highest] if highest != "1000":
            return Expert.LOW
        case [lowest, "1000"] if lowest != "0":
            return Expert.HIGH
        case _:
            return None


def task_of(header: Header, path: Path) -> Task | None:
    places = (header.metadata.get("ss_sd_model_name", ""), *_titles(header, path))
    said = next((found for place in places if (found := _TASK.findall(place))), [])
    match [task for task in Task if task.word in {word.lower() for word in said}]:
        case [task]:
            return task
        case _:
            return None

"""The recipe adapted to the machine: one table of rules, each choice with its reason and source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.base.units import GIB
from wan_train.recipe.effective import word_of
from wan_train.recipe.levers import OPTIONS, OWN_SETTINGS
from wan_train.recipe.measured import MEASURED, Measurement, Tuning, choice_for, day
from wan_train.recipe.model import ExpertSpec, Origin, Recipe, Source, Training, changed
from wan_train.recipe.terms import Attention, Expert

CHOSEN = "chosen"
"""Start of the reason for a setting that the user chose; its source follows in brackets."""
AS_IN_RECIPE = "as the recipe says"
"""The reason for a setting that the adaptation did not change."""

_BLACKWELL = 10
"""First major compute capability of the Blackwell generation (10.0 B200, 12.0 RTX 50). Source: CUDA GPU list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What the rules need to know about one GPU. `compute_capability` is None for a CPU slot."""

    name: str
    total_bytes: int
    compute_capability: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine as far as training settings depend on it. `cpus` is the container's share, not the host's."""

    cards: tuple[Card, ...]
    cpus: float
    has_xformers: bool
    has_flash: bool
    dit_dtype: str | None
    """Element type of the DiT weights as its safetensors header writes it (`F16`, `BF16`, `F32`), None if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One setting and why it has its value; `expert` is None if that holds for all experts of the run."""

    setting: str
    value: str
    reason: str
    expert: Expert | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapRule:
    """Blocks to swap for cards with less than `below_bytes` of memory."""

    below_bytes: int
    blocks: int
    reason: str


# Checked in order; the first rule whose limit is above the smallest card's memory applies.
# The whole fp16 DiT is 26.6 GiB in 40 blocks. With fp8_base the trainer moves (40 - N) / 40 of it to the GPU before
# casting (read in both supported versions, see docs/gpu.md), so the card's memory determines N.
SWAP_RULES: tuple[SwapRule, ...] = (
    SwapRule(below_bytes=14 * GIB, blocks=36, reason="less than 14 GiB: all but four of 40 blocks are kept in RAM"),
    SwapRule(
        below_bytes=20 * GIB, blocks=32, reason="16 GB: 8 of 40 fp16 blocks (5.3 GiB) are on the card while loading"
    ),
    SwapRule(below_bytes=30 * GIB, blocks=20, reason="24 GB: half the fp16 blocks (13.3 GiB) are there while loading"),
    SwapRule(below_bytes=36 * GIB, blocks=10, reason="32 GB: the guide's value for the RTX 5090; without it OOM"),
)

_PRECISION = {"F16": "fp16", "BF16": "bf16", "F32": "no"}


NOTHING_MEASURED = Tuning()


def adapt(recipe: Recipe, machine: Machine, tuning: Tuning = NOTHING_MEASURED) -> tuple[Recipe, tuple[Choice, ...]]:
    """Adapt every setting that the user did not choose to the machine; returns the recipe and the reasons.

    A chosen setting stays, and its reason says so. Measurements on this kind of card take precedence over the rules.
    The settings fit every card in `machine.cards`, since any of them may become free. Raises NotReadyError for weights
    that cannot be trained or a missing attention package, BadInputError for SageAttention.
    """
    experts: list[ExpertSpec] = []
    choices: list[Choice] = []
    for spec in recipe.experts:
        adapted, found = _adapt(spec, machine, choice_for(spec, tuning))
        experts.append(adapted)
        choices += found
    settings = dict.fromkeys(choice.setting for choice in choices)
    by_setting = [[choice for choice in choices if choice.setting == setting] for setting in settings]
    same = {choice.setting for choice, *others in by_setting if all(_shown(choice) == _shown(each) for each in others)}
    kept = [
        replace(choice, expert=None if choice.setting in same else choice.expert)
        for alike in by_setting
        for number, choice in enumerate(alike)
        if number == 0 or choice.setting not in same
    ]
    return replace(recipe, experts=tuple(experts)), tuple(kept)


def _shown(choice: Choice) -> tuple[str, str]:
    return choice.value, choice.reason


def _adapt(spec: ExpertSpec, machine: Machine, measured: Measurement | None) -> tuple[ExpertSpec, list[Choice]]:
    changes: dict[str, Any] = {}
    sources = dict(spec.sources)
    choices = []
    fastest = _fastest(spec, measured)
    for setting in (*_RULES, *(name for name in fastest if name not in _RULES)):
        value, reason = _RULES[setting](spec.training, machine) if setting in _RULES else (None, AS_IN_RECIPE)
        if setting in spec.sources:
            value, reason = getattr(spec.training, setting), f"{CHOSEN} ({spec.sources[setting]})"
        elif measured is not None and setting in fastest and fastest[setting] != value:
            value, reason = fastest[setting], f"{MEASURED} on {day(measured.at)}"
        if setting not in spec.sources and reason != AS_IN_RECIPE:
            sources[setting] = Source(origin=Origin.MACHINE, text=reason)
        changes[setting] = value
        choices.append(Choice(setting=setting, value=str(word_of(value)), reason=reason, expert=spec.expert))
    training = changed(spec.training, changes)
    _check_attention(training.attention, sources.get("attention"), machine)
    return replace(spec, training=training, sources=sources), choices


def _fastest(spec: ExpertSpec, measured: Measurement | None) -> dict[str, Any]:
    """The measured values of the settings that the user did not choose."""
    if measured is None:
        return {}
    free = {name: value for name, value in measured.settings.items() if name not in spec.sources}
    return {
        name: Attention(str(value)) if name == "attention" else value
        for name, value in free.items()
        if name in OPTIONS or name in OWN_SETTINGS
    }


def _attention(_: Training, machine: Machine) -> tuple[Attention, str]:
    if any(is_blackwell(card.compute_capability) for card in machine.cards):
        return Attention.SDPA, "xformers has no working fp16 kernels on Blackwell (xformers issue 1251, and the guide)"
    if not machine.has_xformers:
        return Attention.SDPA, "xformers is not installed in the trainer's environment; same speed and memory"
    return Attention.XFORMERS, AS_IN_RECIPE


def _check_attention(attention: Attention, source: Source | None, machine: Machine) -> None:
    """Raise if the attention cannot be used; the trainer notices a missing package only after loading 28 GB."""
    hint = "Leave the choice to wan-train (--attention auto), or use --attention sdpa: same speed and memory."
    if attention is Attention.SAGE:
        raise BadInputError(
            f"attention {attention} is set by {source}, and the trainer cannot train with SageAttention", hint=hint
        )
    missing = {Attention.XFORMERS: not machine.has_xformers, Attention.FLASH: not machine.has_flash}
    if missing.get(attention, False):
        raise NotReadyError(
            f"attention {attention} is set by {source}, but its package is not installed in the trainer's environment",
            hint=hint,
        )


def _blocks_to_swap(training: Training, machine: Machine) -> tuple[int, str]:
    sizes = [card.total_bytes for card in machine.cards if card.total_bytes]
    if training.blocks_to_swap or not sizes:
        return training.blocks_to_swap, AS_IN_RECIPE
    smallest = min(sizes)
    for rule in SWAP_RULES:
        if smallest < rule.below_bytes:
            return rule.blocks, rule.reason
    return 0, f"{smallest / GIB:.0f} GiB: the whole DiT fits"


def _mixed_precision(training: Training, machine: Machine) -> tuple[str, str]:
    dtype = machine.dit_dtype
    if dtype is None:
        return training.mixed_precision, AS_IN_RECIPE
    if dtype not in _PRECISION:
        raise NotReadyError(
            f"the DiT weights are stored as {dtype}, which cannot be trained: the trainer casts to fp8 itself",
            hint="Use the fp16 or bf16 files; `wan-train provision` fetches them.",
        )
    return _PRECISION[dtype], f"the DiT file is {dtype} and the trainer requires the same precision"


def _fp8(training: Training, machine: Machine) -> tuple[bool, str]:
    if training.fp8_base and machine.dit_dtype == "F32":
        return False, "a float32 DiT is trained as it is"
    return training.fp8_base, AS_IN_RECIPE


def _loader_workers(training: Training, machine: Machine) -> tuple[int, str]:
    most = max(1, int(machine.cpus) - 1)
    if training.max_data_loader_n_workers > most:
        return most, f"this container may use {machine.cpus:g} CPU(s)"
    return training.max_data_loader_n_workers, AS_IN_RECIPE


def _threads(training: Training, machine: Machine) -> tuple[int, str]:
    most = max(1, int(machine.cpus))
    if training.num_cpu_threads_per_process > most:
        return most, f"this container may use {machine.cpus:g} CPU(s)"
    return training.num_cpu_threads_per_process, AS_IN_RECIPE


_RULES: Mapping[str, Callable[[Training, Machine], tuple[Any, str]]] = {
    "attention": _attention,
    "blocks_to_swap": _blocks_to_swap,
    "mixed_precision": _mixed_precision,
    "fp8_base": _fp8,
    "max_data_loader_n_workers": _loader_workers,
    "num_cpu_threads_per_process": _threads,
}
"""The rule for each setting, which returns its value and the reason."""


def is_blackwell(compute_capability: tuple[int, int] | None) -> bool:
    return compute_capability is not None and compute_capability[0] >= _BLACKWELL

"""What can make a step faster on the same card: one table of levers, each with its source and its effect on the LoRA.

No lever makes the result worse: `Effect` has no word for that, and `levers_for` never offers fp8 to a training without
it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from wan_train.recipe.model import Training, Value, changed, settings_of
from wan_train.recipe.terms import Attention
from wan_train.recipe.values import ATTENTION_KEYS

Settings = Mapping[str, Value]
"""Values of the settings that levers change, by name. A trainer option that is missing here is not passed."""

DIT_PARAMETERS = 14_288_491_584
"""Parameters of one expert's DiT, counted in musubi-tuner's own model of Wan 2.2 A14B."""
OWN_SETTINGS = ("attention", "fp8_base", "blocks_to_swap")
"""The settings of every training that levers change; `blocks_to_swap` is searched, the others are switched."""


class Effect(StrEnum):
    """Whether a lever changes what is learned."""

    NONE = "no"
    ROUNDING = "to rounding"
    FINER = "finer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lever:
    """Settings to change together.

    `gain` is the fraction of a step's time that it saves where it helps, as `source` reports. It orders the candidates
    and is never shown as measured. `warmup_seconds` is the extra time of its first step, also as reported.
    """

    id: str
    words: str
    changes: Settings
    effect: Effect
    gain: float
    source: str
    package: str | None = None
    """The package that the trainer's environment must be able to import."""
    needs_swap: bool = False
    warmup_seconds: float = 0.0

    def options(self) -> tuple[str, ...]:
        """The trainer options that it needs, by name without dashes."""
        attention = [key for key, word in ATTENTION_KEYS.items() if word == self.changes.get("attention")]
        return (*attention, *(name for name in self.changes if name not in OWN_SETTINGS))


LEVERS: tuple[Lever, ...] = (
    Lever(
        id="one-way-swap",
        words="one-way swap",
        changes={"block_swap_h2d_only": True},
        effect=Effect.NONE,
        gain=0.21,
        source="musubi-tuner PR 972: 14 to 11 s a step on an RTX 3090 with 40 blocks of another model",
        needs_swap=True,
    ),
    Lever(
        id="pinned-swap",
        words="pinned memory",
        changes={"use_pinned_memory_for_block_swap": True},
        effect=Effect.NONE,
        gain=0.15,
        source="musubi-tuner PR 972, together with one-way swap; issue 700 found it slower alone",
        needs_swap=True,
    ),
    Lever(
        id="flash3",
        words="flash 3",
        changes={"attention": Attention.FLASH3},
        effect=Effect.ROUNDING,
        gain=0.2,
        source="reported on an H20 over flash 2; broken at d0a1930 (musubi-tuner issue 570)",
        package="flash_attn_interface",
    ),
    Lever(
        id="compile",
        words="compiled",
        changes={"compile": True, "compile_cache_size_limit": 32},
        effect=Effect.ROUNDING,
        gain=0.14,
        source="musubi-tuner's docs/torch_compile.md: -10 to -19 % on three cards with another model",
        warmup_seconds=60.0,
    ),
    Lever(
        id="no-fp8",
        words="no fp8",
        changes={"fp8_base": False},
        effect=Effect.FINER,
        gain=0.05,
        source="wan-training-webui trains without fp8 from 60 GB; it saves the casts of every step",
    ),
    Lever(
        id="flash",
        words="flash 2",
        changes={"attention": Attention.FLASH},
        effect=Effect.ROUNDING,
        gain=0.02,
        source="musubi-tuner issue 527 found sdpa, flash 2 and xformers equal",
        package="flash_attn",
    ),
    Lever(
        id="sdpa",
        words="sdpa",
        changes={"attention": Attention.SDPA},
        effect=Effect.ROUNDING,
        gain=0.02,
        source="musubi-tuner issue 527",
    ),
    Lever(
        id="xformers",
        words="xformers",
        changes={"attention": Attention.XFORMERS},
        effect=Effect.ROUNDING,
        gain=0.02,
        source="musubi-tuner issue 527",
        package="xformers",
    ),
    Lever(
        id="loaders",
        words="kept data loaders",
        changes={"persistent_data_loader_workers": True},
        effect=Effect.NONE,
        gain=0.01,
        source="the trainer's source: otherwise every epoch starts its data loaders anew",
    ),
)
"""Every lever; `levers_for` sorts by the reported gain."""

OPTIONS = frozenset(name for lever in LEVERS for name in lever.changes if name not in OWN_SETTINGS)
"""The trainer options that levers set."""

_BROKEN_FLASH3 = "d0a1930"
SWAP_GAIN_PER_BLOCK = 0.015
"""Fraction of a step's time that one swapped block costs: ten cost 10 to 20 % (musubi-tuner issue 700)."""


def settings_moved(training: Training) -> Settings:
    """A training's values of all settings that levers change."""
    every = settings_of(training)
    return {name: every[name] for name in OWN_SETTINGS} | {name: every[name] for name in OPTIONS if name in every}


def with_settings(training: Training, settings: Settings) -> Training:
    """The training with these settings, without the options of other levers."""
    off = dict.fromkeys(OPTIONS - settings.keys(), False)
    attention = {"attention": Attention(str(settings["attention"]))} if "attention" in settings else {}
    return changed(training, {**off, **settings, **attention})


def levers_for(
    training: Training,
    *,
    chosen: Collection[str],
    options: Collection[str],
    packages: Collection[str],
    version: str,
    blackwell: bool,
) -> tuple[Lever, ...]:
    """The levers that can be tried on a training, the most promising first.

    `chosen` are settings that the user chose, which no lever may change. `options` are the trainer's, without dashes.
    `packages` are those that its environment can import.
    """
    return tuple(
        lever
        for lever in sorted(LEVERS, key=lambda lever: -lever.gain)
        if not chosen & lever.changes.keys()
        and set(lever.options()) <= {*options, *OWN_SETTINGS}
        and (lever.package is None or lever.package in packages)
        and not (lever.id == "no-fp8" and not training.fp8_base)
        and not (lever.id == "flash3" and version == _BROKEN_FLASH3)
        # xformers has no working fp16 kernels on Blackwell (xformers issue 1251).
        and not (lever.id == "xformers" and blackwell)
        # The trainer requires checkpointing for these: without it, the activations of all blocks must be kept.
        and not (lever.needs_swap and not training.gradient_checkpointing)
    )


def describe(settings: Settings) -> str:
    """Settings in words, like `sdpa, 2 blocks swapped`; the guide's fp8 and no swapping are not named."""
    blocks = int(str(settings.get("blocks_to_swap", 0)))
    parts = [str(settings.get("attention", ""))]
    parts += [] if settings.get("fp8_base") else ["no fp8"]
    parts += [f"{blocks} {'block' if blocks == 1 else 'blocks'} swapped"] if blocks else []
    parts += [
        lever.words
        for lever in LEVERS
        if not lever.changes.keys() & set(OWN_SETTINGS)
        and all(settings.get(name) == value for name, value in lever.changes.items())
    ]
    return ", ".join(parts)


def expected_gain(levers: Collection[Lever], *, blocks: int) -> float:
    """The fraction of a step's time that the best single change saves, as others report; 0 if there is none to try."""
    fewer = [SWAP_GAIN_PER_BLOCK * blocks] if blocks else []
    return max([*fewer, *(lever.gain for lever in levers if blocks or not lever.needs_swap)], default=0.0)

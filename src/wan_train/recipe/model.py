"""What to train and how, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from wan_train.base import codec
from wan_train.recipe import until
from wan_train.recipe.terms import BLOCKS, Attention, Expert, Task

Value = bool | int | float | str | tuple[int | float | str, ...]
"""The value of any trainer option: True for one without a value, a tuple for one that takes a list."""
codec.register_values(Value)


class Origin(StrEnum):
    """What kind of source set a value; the shipped recipe's own values have no source."""

    RECIPE = "recipe"
    FLAG = "flag"
    CONFIG_FILE = "config_file"
    WORDS = "words"
    MACHINE = "machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What set a value, in words: `recipe cats.toml`, `--rank`, `after --`; for the machine, the reason."""

    origin: Origin
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The user's answers."""

    title: str
    author: str
    dataset: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Settings of one training job, under musubi-tuner's own option names.

    Integers and floats are kept as the recipe wrote them, so that commands show `8` and not `8.0`. Metadata of a field:
    `range` (outside it the trainer fails late or trains nothing), allowed `words`, `read` (its own parser), `is_file`,
    and `is_shared` if it cannot differ between the experts.

    Pass a new field on in `engine/commands.py`. `configs/recipes` has the shipped values; `wan-train recipe show`
    prints them.
    """

    attention: Attention
    mixed_precision: str = field(metadata={"words": ("no", "fp16", "bf16")})
    fp8_base: bool
    optimizer_type: str
    optimizer_args: tuple[str, ...]
    learning_rate: float = field(metadata={"range": (1e-9, 1.0)})
    gradient_checkpointing: bool
    gradient_accumulation_steps: int = field(metadata={"range": (1, 1024)})
    max_data_loader_n_workers: int = field(metadata={"range": (0, 64)})
    num_cpu_threads_per_process: int = field(metadata={"range": (1, 256)})
    network_module: str
    network_dim: int = field(metadata={"range": (1, 1024)})
    network_alpha: float = field(metadata={"range": (1e-3, 4096)})
    timestep_sampling: str
    discrete_flow_shift: float = field(metadata={"range": (1e-3, 100)})
    preserve_distribution_shape: bool
    max_train_epochs: int = field(metadata={"range": (1, 100_000)})
    """The epochs that the learning-rate schedule covers."""
    save_every_n_epochs: int = field(metadata={"range": (1, 100_000), "is_shared": True})
    seed: int = field(metadata={"range": (0, 2**32 - 1)})
    max_grad_norm: float = field(metadata={"range": (0, 1e6)})
    lr_scheduler: str
    lr_scheduler_power: float = field(metadata={"range": (1e-3, 100)})
    lr_scheduler_min_lr_ratio: float | None = field(default=None, metadata={"range": (0, 1)})
    lr_warmup_steps: float | None = field(default=None, metadata={"range": (0, 10_000_000)})
    """Steps, or below 1 a part of all steps."""
    network_weights: str | None = field(default=None, metadata={"is_file": True})
    """A LoRA to continue from; an absolute path once it is resolved."""
    blocks_to_swap: int = field(default=0, metadata={"range": (0, BLOCKS - 1)})  # one must stay
    until: str = field(default=until.ALL, metadata={"read": until.read})
    """When this expert ends (`recipe.until`). wan-train enforces it, since the trainer has no such option."""
    sample_prompts: str | None = field(default=None, metadata={"is_shared": True, "is_file": True})
    sample_every_n_epochs: int | None = field(default=None, metadata={"range": (1, 100_000), "is_shared": True})
    """0 for an attempt without samples; None until the plan chooses."""
    sample_at_first: bool = field(default=False, metadata={"is_shared": True})
    options: Mapping[str, Value] = field(default_factory=dict)
    """Further options of the trainer's training script, by name without dashes; never one that has a field above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSpec:
    """One expert to train: its base weights (a name in models.toml or a path), its timesteps (0 to 1000), its settings.

    `sources` has the source of every setting that differs from the shipped recipe.
    """

    expert: Expert
    dit: str
    min_timestep: int
    max_timestep: int
    training: Training
    sources: Mapping[str, Source] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A complete training recipe."""

    name: str
    task: Task
    experts: tuple[ExpertSpec, ...]
    t5: str
    vae: str

    def spec(self, expert: Expert) -> ExpertSpec:
        return next(spec for spec in self.experts if spec.expert is expert)


FIELD_NAMES = frozenset(f.name for f in fields(Training)) - {"options"}


def settings_of(training: Training) -> dict[str, Any]:
    """Every setting by name, including the options."""
    own = {f.name: getattr(training, f.name) for f in fields(Training) if f.name in FIELD_NAMES}
    return own | dict(training.options)


def training_of(settings: Mapping[str, Any]) -> Training:
    """The training with settings by name. An option that is False is left out: the trainer has no word for off."""
    options = {name: value for name, value in settings.items() if name not in FIELD_NAMES and value is not False}
    return Training(**{name: value for name, value in settings.items() if name in FIELD_NAMES}, options=options)


def changed(training: Training, changes: Mapping[str, Any]) -> Training:
    """The training with some settings replaced, by name."""
    return training_of(settings_of(training) | dict(changes))


def format_number(value: float) -> str:
    """A number as a person would write it in a command: the shorter of `0.0003` and `3e-4`."""
    plain = repr(value)
    if isinstance(value, int):
        return plain
    mantissa, exponent = f"{value:.15e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    scientific = f"{mantissa}e{int(exponent)}"
    return scientific if len(scientific) < len(plain) and float(scientific) == value else plain

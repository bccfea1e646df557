"""The plan of one run: pure data, shown before anything runs, written once, read by everyone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from wan_train.caching.decide import CacheNeed
from wan_train.engine.caches import CacheKind
from wan_train.engine.commands import ModelPaths
from wan_train.engine.sample_prompts import SamplePrompt
from wan_train.engine.trainer import Trainer
from wan_train.engine.traits import TrainerTraits
from wan_train.recipe.adaptation import Choice
from wan_train.recipe.measured import Tuned
from wan_train.recipe.model import Answers, Recipe, Training
from wan_train.recipe.terms import Expert, Task
from wan_train.run.end_epochs import steps_per_epoch

SCHEMA = 3


class StepKind(StrEnum):
    """What a step does."""

    CACHE_LATENTS = "cache_latents"
    CACHE_TEXT = "cache_text"
    TRAIN = "train"


CACHE_KINDS: Mapping[StepKind, CacheKind] = {
    StepKind.CACHE_LATENTS: CacheKind.LATENTS,
    StepKind.CACHE_TEXT: CacheKind.TEXT,
}
"""In step order: latents first, as they take longer."""

CACHING_STEPS: Mapping[StepKind, str] = {
    StepKind.CACHE_LATENTS: "cache-latents",
    StepKind.CACHE_TEXT: "cache-text",
}
"""Ids of the caching steps."""


class Devices(StrEnum):
    """Where GPU readings come from."""

    NVML = "nvml"
    CPU_SLOTS = "cpu_slots"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One process of the pipeline. `needs` are ids of earlier steps; `run.step_commands` derives its command."""

    id: str
    kind: StepKind
    needs: tuple[str, ...] = ()
    expert: Expert | None = None
    produces: str | None = None
    """Name of the result without extension, for a training step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """Counts of the training data. `cached_items`: by cache directory, the files that caching must leave there."""

    source: Path
    items: int
    captions: int
    repeats: int | None
    """Items times their repeats: what one epoch sees. None if the length of a video is unknown."""
    batches_per_epoch: int | None
    cached_items: Mapping[str, int]
    has_videos: bool = False
    caches: Mapping[str, CacheNeed] = field(default_factory=dict)
    """By step id, when planned. Caches are checked again before any are made, and only that check counts."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskNeed:
    """The most bytes this run will have on disk, by purpose."""

    caches: int
    states: int
    loras: int

    @property
    def total(self) -> int:
        return self.caches + self.states + self.loras


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Samples made during training: one per prompt every `every_epochs`, and with `at_first` before the first step.

    The trainer reads the run's own copy of the prompts; `source` is the file they came from.
    """

    prompts: tuple[SamplePrompt, ...]
    every_epochs: int
    at_first: bool
    source: Path


class QuoteBasis(StrEnum):
    """The source of a quote's speed."""

    RUNS = "runs"
    """Trainings on this box."""
    TUNE = "tune"
    """`wan-train tune` on this kind of card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """The estimate shown before the start: seconds from the start of the run to its end, and their basis.

    `measured` is when the seconds per batch were measured; `scaled_from` are the sizes used then, if others. `without`
    names parts that were never timed and are not included. `least` and `most` are the seconds with the quickest and
    the slowest of several `trainings` of the same work, if they differ much. `after_steps` are the seconds after a
    training's last step: saving, and the trainer's exit.
    """

    seconds: float
    seconds_per_batch: float
    measured: float
    scaled_from: str | None = None
    without: tuple[str, ...] = ()
    basis: QuoteBasis = QuoteBasis.RUNS
    trainings: int = 1
    least: float | None = None
    most: float | None = None
    after_steps: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a supervisor needs to know to carry out a run."""

    schema: int = SCHEMA
    run_id: str
    created: float
    answers: Answers
    recipe: Recipe
    trainer: Trainer
    models: ModelPaths
    run_dir: Path
    steps: tuple[Step, ...]
    devices: Devices
    gpu_uuids: tuple[str, ...]
    """GPUs this run may use: those that `--gpus` and an inherited CUDA_VISIBLE_DEVICES allowed when it was planned."""
    gpus_named: bool = True
    """Whether one of the two named them; otherwise they were all GPUs of the box."""
    dataset: DatasetFacts
    state_every_epochs: int
    ends: Mapping[str, int] = field(default_factory=dict)
    """The epoch after which each expert ends, by the value of Expert; only for those that end before their schedule."""
    keep_every_epochs: int | None
    """Epochs between LoRAs the user asked to keep, None when only the finished one is wanted."""
    choices: tuple[Choice, ...] = ()
    disk: DiskNeed
    speed_key: str = ""
    """The sizes under which this box stores the seconds per batch; in older plans, everything they depend on."""
    batch_cost: float | None = None
    """The cost of a mean batch, which scales speeds of other sizes. None while unknown, and in older plans."""
    quote: Quote | None = None
    """None if nothing similar was measured."""
    tuned: Tuned | None = None
    """The speed that `wan-train tune` measured for these settings; None if it did not."""
    stagger: bool = False
    """Two experts must not load their weights at the same time: RAM holds only one copy."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Additions to the environment of every trainer process."""
    caching_workers: int = 1
    """Threads of each caching program."""
    samples: Sampling | None = None
    """None when no prompts were given."""
    preview_prompts: int = 0
    """How many prompts are drawn with both LoRAs at the end."""

    def step(self, step_id: str) -> Step:
        return next(step for step in self.steps if step.id == step_id)

    def training(self, expert: Expert) -> Training:
        return self.recipe.spec(expert).training

    @property
    def epochs(self) -> int:
        """The most epochs that one expert is trained for."""
        return max(self.epochs_of(spec.expert) for spec in self.recipe.experts)

    def epochs_of(self, expert: Expert | None) -> int:
        """Return the epochs that one expert is trained for; without an expert, the most of any."""
        return self.epochs if expert is None else self.ends.get(expert.value, self.schedule_epochs_of(expert))

    def schedule_epochs_of(self, expert: Expert) -> int:
        """Return the epochs of one expert's schedule. They exceed the trained epochs if it ends early."""
        return self.training(expert).max_train_epochs

    def steps_of(self, expert: Expert) -> int | None:
        """Optimizer steps that one expert is trained for; None if the length of a video is unknown."""
        each = self.steps_per_epoch(expert)
        return each * self.epochs_of(expert) if each is not None else None

    def steps_per_epoch(self, expert: Expert) -> int | None:
        """Optimizer steps of one epoch, by the trainer's arithmetic; None if the length of a video is unknown."""
        return steps_per_epoch(self.training(expert), self.dataset.batches_per_epoch)

    def batches_of_step(self, expert: Expert) -> int:
        """Batches whose gradients one optimizer step accumulates."""
        return self.training(expert).gradient_accumulation_steps


def result_name(title: str, task: Task, expert: Expert, trainer: TrainerTraits) -> str:
    """Return the finished LoRA's name without extension. A prefix marks the LoRA of a rehearsal."""
    match task:
        case Task.T2V:
            name = f"WAN2.2-{expert.label}_{title}"
        case Task.I2V:
            name = f"WAN2.2-I2V_{expert.label}_{title}"
    return trainer.file_prefix + name

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
"""In the order of their steps: latents take longer."""

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
    """What will be trained, counted. `cached_items` is by cache directory: files that caching must leave there."""

    source: Path
    items: int
    captions: int
    repeats: int | None
    """Items times their repeats: what one epoch sees. None where the length of a video is unknown."""
    batches_per_epoch: int | None
    cached_items: Mapping[str, int]
    has_videos: bool = False
    caches: Mapping[str, CacheNeed] = field(default_factory=dict)
    """By step id. Looked at again before anything is made: what counts is what is there then."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskNeed:
    """Bytes this run will write at most, by what for."""

    caches: int
    states: int
    loras: int

    @property
    def total(self) -> int:
        return self.caches + self.states + self.loras


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Samples made while it trains: of each prompt one every `every_epochs`, and one before the first step.

    The trainer reads the run's own copy of the prompts; `source` is the file they came from.
    """

    prompts: tuple[SamplePrompt, ...]
    every_epochs: int
    at_first: bool
    source: Path


class QuoteBasis(StrEnum):
    """Where the speed comes from that a quote rests on."""

    RUNS = "runs"
    """Trainings on this box."""
    TUNE = "tune"
    """`wan-train tune` on this kind of card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What was said before the start: seconds from the start of the run to its end, and on what they rest.

    `measured` is when the seconds of a batch were; `scaled_from` are the sizes that they were measured with, where
    these are others. `without` names what was never timed and is not in it. It would be `least` and `most` seconds with
    the quickest and the slowest of several `trainings` with the same work, where they differ much. `after_steps` are
    those seconds after a training's last step: saving, and the trainer's end.
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
    """GPUs this run may use: those that `--gpus` and an inherited CUDA_VISIBLE_DEVICES left when it was planned."""
    gpus_named: bool = True
    """They were named by one of the two; otherwise they were all that the box had."""
    dataset: DatasetFacts
    state_every_epochs: int
    ends: Mapping[str, int] = field(default_factory=dict)
    """By the value of Expert, the epoch after which it ends; only of those that end before their schedule does."""
    keep_every_epochs: int | None
    """Epochs between LoRAs the user asked to keep, None when only the finished one is wanted."""
    choices: tuple[Choice, ...] = ()
    disk: DiskNeed
    speed_key: str = ""
    """The sizes under which this box remembers the seconds of a batch; in plans of older versions, everything."""
    batch_cost: float | None = None
    """Of a mean batch, by which speeds of other sizes are scaled. None while unknown, and in older plans."""
    quote: Quote | None = None
    """None where nothing like it was measured."""
    tuned: Tuned | None = None
    """The speed that `wan-train tune` measured of these settings; None where it did not."""
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
        """The epochs that one expert is trained for; of a step without one, the most."""
        return self.epochs if expert is None else self.ends.get(expert.value, self.schedule_epochs_of(expert))

    def schedule_epochs_of(self, expert: Expert) -> int:
        """The epochs that the schedule of one expert is made for: more than it is trained for where it ends early."""
        return self.training(expert).max_train_epochs

    def steps_of(self, expert: Expert) -> int | None:
        """Optimizer steps that one expert is trained for; None where the length of a video is unknown."""
        each = self.steps_per_epoch(expert)
        return each * self.epochs_of(expert) if each is not None else None

    def steps_per_epoch(self, expert: Expert) -> int | None:
        """Optimizer steps of one epoch, by the trainer's arithmetic; None where the length of a video is unknown."""
        return steps_per_epoch(self.training(expert), self.dataset.batches_per_epoch)

    def batches_of_step(self, expert: Expert) -> int:
        """Batches whose gradients one optimizer step accumulates."""
        return self.training(expert).gradient_accumulation_steps


def result_name(title: str, task: Task, expert: Expert, trainer: TrainerTraits) -> str:
    """The finished LoRA's name without extension; a rehearsal's can never be mistaken for a real one."""
    match task:
        case Task.T2V:
            name = f"WAN2.2-{expert.label}_{title}"
        case Task.I2V:
            name = f"WAN2.2-I2V_{expert.label}_{title}"
    return trainer.file_prefix + name

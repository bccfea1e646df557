"""From flags, variables and questions to a checked request."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wan_train.base.errors import BadInputError
from wan_train.base.files import can_be_written
from wan_train.base.settings import Settings
from wan_train.base.text import one_line
from wan_train.caching.homes import CacheHome
from wan_train.caching.survey import reading_of
from wan_train.cli import prompts
from wan_train.cli.last_answers import recall
from wan_train.cli.options import ExpertsWord, TaskWord
from wan_train.cli.weights import path_of, weights_layers
from wan_train.dataset.model import DatasetOverrides
from wan_train.dataset.resolve import NewConfig, resolve_dataset
from wan_train.dataset.scan import read_config
from wan_train.engine import trainer as trainers
from wan_train.engine.capabilities import Script
from wan_train.engine.commands import DEVICE_VARIABLE
from wan_train.engine.extra_arguments import TrainerOptions
from wan_train.gpu import selection
from wan_train.gpu.model import Gpu, GpuReading
from wan_train.gpu.probe import CpuSlots, NvmlProbe
from wan_train.recipe import load as recipes
from wan_train.recipe.effective import require, resolve, select
from wan_train.recipe.model import Answers, Origin, Recipe, Source
from wan_train.recipe.terms import Attention, EngineKind, Expert, Task
from wan_train.run import planner
from wan_train.run.plan import Devices
from wan_train.run.planner import Request
from wan_train.run.samples import read_sample_prompts
from wan_train.run.titles import DEFAULT_AUTHOR, DEFAULT_TITLE, check_author, check_title

_FLAGS = {
    "max_train_epochs": "--epochs",
    "save_every_n_epochs": "--save-every",
    "sample_every_n_epochs": "--sample-every",
    "network_dim": "--rank",
    "network_alpha": "--alpha",
    "learning_rate": "--learning-rate",
    "seed": "--seed",
    "blocks_to_swap": "--blocks-to-swap",
    "sample_prompts": "--sample-prompts",
    "fp8_base": "--fp8",
    "attention": "--attention",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the command line and the environment said; None for what they did not say."""

    title: str | None
    author: str | None
    dataset: str | None
    task: TaskWord
    experts: ExpertsWord
    recipe: str | None
    engine: EngineKind
    changes: Mapping[str, Any]
    """Training settings by their recipe names."""
    resolution: str | None
    batch_size: int | None
    repeats: int | None
    attention: Attention
    blocks_to_swap: str
    passthrough: tuple[str, ...]
    network_weights: str | None = None
    of_expert: Mapping[Expert, Sequence[str]] = field(default_factory=dict)
    """What `--high` and `--low` said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request, and what has to be written before it can run."""

    request: Request
    dataset_to_write: NewConfig | None
    reading: GpuReading


def ask(given: Given, settings: Settings, *, interactive: bool) -> Asked:
    """Answers from flags, else from the person, else defaults; everything after that is checked, not asked."""
    # Before the questions: nobody should answer three of them to hear that this box has no trainer.
    trainer = trainers.find(given.engine, settings)
    recipe = read_recipe(given, TrainerOptions(capabilities=trainer.capabilities), settings.runs)
    read_sample_prompts(recipe)
    answers = _answers(given, settings, interactive=interactive)
    located = resolve_dataset(answers.dataset)
    config = read_config(located, reading_of(trainer))
    answers = replace(answers, dataset=str(config.path))
    devices = devices_for(trainer, settings)
    reading = read_gpus(devices, settings)
    usable = usable_gpus(devices, reading, settings)
    return Asked(
        request=Request(
            answers=answers,
            recipe=recipe,
            trainer=trainer,
            config=config,
            overrides=DatasetOverrides(
                resolution=parse_resolution(given.resolution),
                batch_size=given.batch_size,
                num_repeats=given.repeats,
            ),
            devices=devices,
            usable=usable,
            gpus_named=selection.names_some(settings.gpus, os.environ.get(DEVICE_VARIABLE)),
            caches=CacheHome(chosen=settings.cache_dir, spare=settings.runs / "caches"),
            environ=os.environ,
        ),
        dataset_to_write=located
        if isinstance(located, NewConfig) and can_be_written(located.toml_path.parent)
        else None,
        reading=reading,
    )


def read_recipe(given: Given, options: TrainerOptions, runs: Path) -> Recipe:
    """The recipe with everything laid over it that this command says; raises BadInputError.

    Each later source counts more: recipe, flags, flags of one expert, a `--config_file` after `--`, the words there.
    """
    task = Task.T2V if given.task is TaskWord.T2V else Task.I2V
    recipe = recipes.shipped(task) if given.recipe is None else recipes.load(path_of(given.recipe), options)
    changes = dict(given.changes)
    if given.attention is not Attention.AUTO:
        changes["attention"] = given.attention
    if given.blocks_to_swap != "auto":
        changes["blocks_to_swap"] = _blocks(given.blocks_to_swap)
    recipe = recipes.override(recipe, changes, names=_FLAGS)
    recipe = select(recipe, _experts(given.experts))
    if not recipe.experts:
        raise BadInputError(
            f"the recipe {recipe.name} has no {given.experts} expert",
            hint="Leave --experts out, or take another --recipe.",
        )
    trained = [spec.expert for spec in recipe.experts]
    layers = [] if given.network_weights is None else weights_layers(given.network_weights, trained, runs)
    problems: list[str] = []
    here = Path.cwd()
    for expert, pairs in given.of_expert.items():
        if pairs and expert not in trained:
            problems.append(f"--{expert.value} is given, but the {expert.value}-noise expert is not trained")
        found, wrong = options.of_expert(pairs, expert, folder=here)
        layers += found
        problems += wrong
    source = Source(origin=Origin.WORDS, text="the words after `--`")
    found, wrong = options.layers(given.passthrough, folder=here, source=source)
    require(
        problems + wrong,
        f"these settings cannot be used with the trainer ({options.capabilities.version})",
        f"`wan-train recipe show` lists every setting; the options of {Script.TRAIN} can be given too.",
    )
    return resolve(recipe, [*layers, *found])


def parse_resolution(text: str | None) -> tuple[int, int] | None:
    """`960x544` or `960`; raises BadInputError."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{2,5})(?:\s*[xX×,*]\s*(\d{2,5}))?\s*", text)  # noqa: RUF001  people type the sign too
    if match is None:
        raise BadInputError(
            f"--resolution {one_line(text)!r} is no resolution", hint="Write it as WIDTHxHEIGHT, such as 960x960."
        )
    return int(match[1]), int(match[2] or match[1])


def devices_for(trainer: trainers.Trainer, settings: Settings) -> Devices:
    """A rehearsal runs on CPU slots unless GPUs are named for it."""
    if not trainer.is_real and settings.gpus is None:
        return Devices.CPU_SLOTS
    return Devices.NVML


def read_gpus(devices: Devices, settings: Settings) -> GpuReading:
    match devices:
        case Devices.CPU_SLOTS:
            return CpuSlots().read()
        case Devices.NVML:
            probe = NvmlProbe(timeout=settings.probe_timeout_seconds)
            try:
                return probe.read()
            finally:
                probe.close()


def usable_gpus(devices: Devices, reading: GpuReading, settings: Settings) -> tuple[Gpu, ...]:
    match devices:
        case Devices.CPU_SLOTS:
            return reading.gpus
        case Devices.NVML:
            return planner.usable_gpus(reading, settings.gpus, os.environ.get(DEVICE_VARIABLE))


def _answers(given: Given, settings: Settings, *, interactive: bool) -> Answers:
    last = recall() if interactive else None
    title = given.title
    author = given.author
    dataset = given.dataset
    if interactive:
        title = title if title is not None else prompts.ask_title(last.title if last else DEFAULT_TITLE)
        author = author if author is not None else prompts.ask_author(last.author if last else DEFAULT_AUTHOR)
        if dataset is None:
            dataset = prompts.ask_dataset(last.dataset if last else str(_default_dataset(settings)))
    return Answers(
        title=check_title(DEFAULT_TITLE if title is None else title),
        author=check_author(DEFAULT_AUTHOR if author is None else author),
        dataset=str(_default_dataset(settings)) if dataset is None else dataset,
    )


def _default_dataset(settings: Settings) -> Path:
    return settings.trainer_dir / "dataset" / "dataset.toml"


def _experts(word: ExpertsWord) -> tuple[Expert, ...]:
    match word:
        case ExpertsWord.BOTH:
            return tuple(Expert)
        case ExpertsWord.HIGH:
            return (Expert.HIGH,)
        case ExpertsWord.LOW:
            return (Expert.LOW,)


def _blocks(text: str) -> int:
    if not text.isdecimal():
        raise BadInputError(
            f"--blocks-to-swap must be auto or a whole number, not {one_line(text)!r}",
            hint="auto fits it to the GPU; 0 to 39 blocks can wait in RAM.",
        )
    return int(text)

"""Make a run's request from options, variables and questions."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wan_train.base.errors import BadInputError
from wan_train.base.files import can_be_written
from wan_train.base.home import expanded
from wan_train.base.settings import Settings
from wan_train.base.text import one_line
from wan_train.caching.homes import CacheHome, place
from wan_train.caching.survey import reading_of
from wan_train.cli import options, questions
from wan_train.cli.call import Call
from wan_train.cli.option import ExpertsChoice
from wan_train.dataset import fix
from wan_train.dataset.model import DatasetOverrides
from wan_train.dataset.resolve import NewConfig, resolve_dataset
from wan_train.dataset.scan import read_config, scan
from wan_train.dataset.snapshot import with_overrides
from wan_train.engine import tokenizer
from wan_train.engine import trainer as trainers
from wan_train.engine.capabilities import Script
from wan_train.engine.checkpoints import lora_file
from wan_train.engine.commands import DEVICE_VARIABLE
from wan_train.engine.extra_arguments import TrainerOptions
from wan_train.engine.sample_prompts import SamplePrompt, read_prompts
from wan_train.gpu.choose import names_some
from wan_train.gpu.model import Gpu
from wan_train.gpu.probe import CpuSlots, NvmlProbe
from wan_train.preview.prepared import PREVIEW_DEFAULTS
from wan_train.recipe import load as recipes
from wan_train.recipe.effective import Layer, require, resolve, select
from wan_train.recipe.model import Answers, Origin, Recipe, Source
from wan_train.recipe.terms import BLOCKS, Attention, EngineKind, Expert, Preset
from wan_train.run import planner
from wan_train.run.directory import RunDirectory, find
from wan_train.run.plan import Devices
from wan_train.run.planner import Request
from wan_train.run.samples import read_sample_prompts
from wan_train.run.titles import DEFAULT_AUTHOR, DEFAULT_TITLE, check_author, check_title
from wan_train.run.tuning import basis_of
from wan_train.tune import records

_KEPT = 10
"""LoRAs kept of each expert by a training with a preview."""
_CHECKPOINT = re.compile(r"-\d{6}$|-step\d{8}$")
"""The trainer's suffixes for LoRAs saved during training."""


def make_request(
    call: Call, *, interactive: bool, engine: EngineKind | None = None, dataset: str | None = None
) -> Request:
    """Return the request, with answers from options, else the person, else defaults. The rest is checked, not asked.

    `engine` and `dataset` replace the options.
    """
    settings = call.settings
    kind = engine or call[options.ENGINE]
    # Before the questions, so that a box without a trainer is reported first.
    trainer = trainers.find(kind, settings)
    recipe = read_recipe(call, TrainerOptions(capabilities=trainer.capabilities))
    recipe, drawn_at_end = _with_preview(call, recipe)
    prompts = read_sample_prompts(recipe)
    answers = _answers(call, dataset or call.get(options.DATASET), interactive=interactive)
    located = resolve_dataset(answers.dataset)
    new = located if isinstance(located, NewConfig) else None
    config = read_config(located, reading_of(trainer))
    devices = Devices.NVML if trainer.is_real or settings.gpus is not None else Devices.CPU_SLOTS
    usable, driver = gpus_and_driver(devices, settings)
    caches = CacheHome(chosen=settings.cache_dir, spare=settings.runs / "caches")
    placed = place(with_overrides(config, dataset_overrides(call)), trainer.traits, caches)
    inventory = scan(placed.config, reading=reading_of(trainer), tokenizer=tokenizer.cached_file(os.environ))
    if inventory.stopping:
        inventory.require(fix=fix.command_for(inventory))
    return Request(
        answers=replace(answers, dataset=str(config.path)),
        recipe=recipe,
        trainer=trainer,
        inventory=inventory,
        dataset_to_write=new if new is not None and can_be_written(new.toml_path.parent) else None,
        prompts=prompts,
        preview_prompts=drawn_at_end,
        notes=placed.notes,
        devices=devices,
        usable=usable,
        measurements=records.of(basis_of(trainer, usable, driver)) if trainer.is_real else (),
        gpus_named=names_some(settings.gpus, os.environ.get(DEVICE_VARIABLE)),
        environ=os.environ,
    )


def _with_preview(call: Call, recipe: Recipe) -> tuple[Recipe, tuple[SamplePrompt, ...]]:
    """Return the recipe, which keeps LoRAs for the preview at the end, and the checked prompts of the preview."""
    file = call.get(options.PROMPTS_AT_END)
    if file is None:
        return recipe, ()
    first = recipe.experts[0]
    prompts = read_prompts(expanded(file), recipe.task, seed=first.training.seed, defaults=PREVIEW_DEFAULTS)
    if "save_every_n_epochs" in first.sources:
        return recipe, prompts
    every = max(1, round(min(spec.training.max_train_epochs for spec in recipe.experts) / _KEPT))
    source = Source(origin=Origin.FLAG, text=options.PROMPTS_AT_END.flag)
    return resolve(recipe, [Layer(source=source, values={"save_every_n_epochs": every})]), prompts


def read_recipe(call: Call, trainer_options: TrainerOptions) -> Recipe:
    """Return the recipe with all settings of this command applied; raises BadInputError.

    Later sources override: recipe, options, options of one expert, a `--config_file` after `--`, arguments there.
    """
    recipe, experts = _recipe(call, trainer_options), call[options.EXPERTS]
    recipe = recipes.override(recipe, recipe_changes(call), flag_of=options.flag_of)
    wanted = tuple(Expert) if experts is ExpertsChoice.BOTH else (Expert(experts.value),)
    recipe = select(recipe, wanted)
    if not recipe.experts:
        raise BadInputError(
            f"the recipe {recipe.name} has no {experts} expert", hint="Leave --experts out, or choose another --recipe."
        )
    trained = [spec.expert for spec in recipe.experts]
    weights = call.get(options.NETWORK_WEIGHTS)
    layers = [] if weights is None else _weights_layers(weights, trained, call.settings.runs)
    problems: list[str] = []
    here = Path.cwd()
    for expert, option in ((Expert.HIGH, options.HIGH), (Expert.LOW, options.LOW)):
        pairs = call.all(option)
        if pairs and expert not in trained:
            problems.append(f"{option.flag} is given, but the {expert.value}-noise expert is not trained")
        found, wrong = trainer_options.of_expert(pairs, expert, folder=here)
        layers += found
        problems += wrong
    source = Source(origin=Origin.WORDS, text="the words after `--`")
    found, wrong = trainer_options.layers(call.passthrough, folder=here, source=source)
    require(
        problems + wrong,
        f"these settings cannot be used with the trainer ({trainer_options.capabilities.version})",
        f"`wan-train recipe show` lists every setting; the options of {Script.TRAIN} can be given too.",
    )
    return resolve(recipe, [*layers, *found])


def _recipe(call: Call, trainer_options: TrainerOptions) -> Recipe:
    file, preset = call.get(options.RECIPE), call[options.PRESET]
    if file is None:
        return recipes.load_preset(preset, call[options.TASK].task, trainer_options)
    if preset is not Preset.GUIDE:
        raise BadInputError(
            f"--recipe and --preset {preset} are two recipes",
            hint="Leave one of them out. The recipe file itself may have a `base`.",
        )
    return recipes.load(expanded(file), trainer_options)


def recipe_changes(call: Call) -> dict[str, Any]:
    """Return the options for all experts by recipe key; None for options that were not given."""
    changes: dict[str, Any] = {
        option.recipe_key: call.get(option) for option in call.options if option.recipe_key is not None
    }
    if changes.get("attention") is Attention.AUTO:
        del changes["attention"]
    if (blocks := changes.pop("blocks_to_swap", "auto")) != "auto":
        changes["blocks_to_swap"] = _blocks(blocks)
    return changes


def dataset_overrides(call: Call) -> DatasetOverrides:
    return DatasetOverrides(
        resolution=parse_resolution(call.get(options.RESOLUTION)),
        batch_size=call.get(options.BATCH_SIZE),
        num_repeats=call.get(options.REPEATS),
    )


def parse_resolution(text: str | None) -> tuple[int, int] | None:
    """Parse `960x544` or `960`; raises BadInputError."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{2,5})(?:\s*[xX×,*]\s*(\d{2,5}))?\s*", text)  # noqa: RUF001  people type the sign too
    if match is None:
        raise BadInputError(
            f"--resolution {one_line(text)!r} is not a resolution", hint="Use WIDTHxHEIGHT, such as 960x960."
        )
    return int(match[1]), int(match[2] or match[1])


def usable_gpus(devices: Devices, settings: Settings) -> tuple[Gpu, ...]:
    return gpus_and_driver(devices, settings)[0]


def gpus_and_driver(devices: Devices, settings: Settings) -> tuple[tuple[Gpu, ...], str | None]:
    """Return the usable GPUs and the version of their driver."""
    match devices:
        case Devices.CPU_SLOTS:
            return CpuSlots().read().gpus, None
        case Devices.NVML:
            probe = NvmlProbe(timeout=settings.probe_timeout_seconds)
            try:
                reading = probe.read()
            finally:
                probe.close()
            return planner.usable_gpus(reading, settings.gpus, os.environ.get(DEVICE_VARIABLE)), reading.driver


def _answers(call: Call, dataset: str | None, *, interactive: bool) -> Answers:
    last = questions.recall() if interactive else None
    title, author = call.get(options.TITLE), call.get(options.AUTHOR)
    usual = str(call.settings.trainer_dir / "dataset" / "dataset.toml")
    if interactive:
        title = title if title is not None else questions.ask_title(last.title if last else DEFAULT_TITLE)
        author = author if author is not None else questions.ask_author(last.author if last else DEFAULT_AUTHOR)
        dataset = dataset if dataset is not None else questions.ask_dataset(last.dataset if last else usual)
    return Answers(
        title=check_title(DEFAULT_TITLE if title is None else title),
        author=check_author(DEFAULT_AUTHOR if author is None else author),
        dataset=usual if dataset is None else dataset,
    )


def _blocks(text: str) -> int:
    if not text.isdecimal():
        raise BadInputError(
            f"--blocks-to-swap must be auto or a whole number, not {one_line(text)!r}",
            hint=f"auto fits it to the GPU; 0 to {BLOCKS - 1} blocks can stay in RAM.",
        )
    return int(text)


def _weights_layers(name: str, experts: Sequence[Expert], runs: Path) -> list[Layer]:
    """Return the LoRA that each expert continues from; raises BadInputError if it is missing or ambiguous."""
    path = expanded(name).absolute()
    if path.is_file():
        found = dict.fromkeys(experts, path)
    elif path.is_dir() and not RunDirectory(path).plan.is_file():
        found = {expert: _in_folder(path, expert) for expert in experts}
    elif path.exists() or "/" not in name:
        run = RunDirectory(path) if path.exists() else find(runs, name)
        found = {expert: _of_run(run, expert) for expert in experts}
    else:
        raise BadInputError(f"--network-weights {one_line(name)}: file or folder not found", hint="Check the path.")
    source = Source(origin=Origin.FLAG, text=options.NETWORK_WEIGHTS.flag)
    return [
        Layer(source=source, values={"network_weights": str(file)}, expert=expert) for expert, file in found.items()
    ]


def _of_run(run: RunDirectory, expert: Expert) -> Path:
    step = next((step for step in run.read_plan().steps if step.expert is expert), None)
    file = lora_file(run.path, step.produces) if step is not None and step.produces is not None else None
    if file is None or not file.is_file():
        raise BadInputError(
            f"--network-weights: the run {run.run_id} has no finished LoRA of the {expert.value}-noise expert",
            hint=f"Name the file with `--{expert.value} network_weights=FILE`, or train the other expert alone.",
        )
    return file


def _in_folder(folder: Path, expert: Expert) -> Path:
    label = re.compile(rf"{expert.value}[-_ ]?noise", re.IGNORECASE)
    fitting = sorted(file for file in folder.glob("*.safetensors") if label.search(file.name))
    match [file for file in fitting if not _CHECKPOINT.search(file.stem)] or fitting:
        case [file]:
            return file
        case []:
            what = f"no file of {folder} has {expert.label} in its name"
        case several:
            what = f"{folder} has several LoRAs of the {expert.value}-noise expert: " + ", ".join(
                one_line(file.name) for file in several
            )
    raise BadInputError(
        f"--network-weights: {what}", hint=f"Name the file with `--{expert.value} network_weights=FILE`."
    )

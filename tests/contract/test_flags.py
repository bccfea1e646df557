"""Every option we can build exists in the version it is built for, and its value fits."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from support.runs import make_recipe, make_trainer
from wan_train.engine import commands
from wan_train.engine.capabilities import KNOWN_COMMITS, REHEARSAL_VERSION, Script
from wan_train.engine.commands import Command, ModelPaths, TrainingJob
from wan_train.engine.extra_arguments import parse
from wan_train.recipe.adaptation import Card
from wan_train.recipe.load import override
from wan_train.recipe.model import FIELD_NAMES, Recipe
from wan_train.recipe.terms import Attention, EngineKind, Task

VERSIONS = [*KNOWN_COMMITS.values(), REHEARSAL_VERSION]
MODELS = ModelPaths(vae=Path("/m/vae"), t5=Path("/m/t5"), dit={"high": Path("/m/high"), "low": Path("/m/low")})
CONFIG = Path("/r/dataset.toml")
CARDS = [
    Card(name="H100", total_bytes=80 * 1024**3, compute_capability=(9, 0)),
    Card(name="RTX 5090", total_bytes=32 * 1024**3, compute_capability=(12, 0)),
]


def table(version: str, script: Script) -> dict[str, dict[str, Any]]:
    text = resources.files("wan_train.engine").joinpath(f"contract/{version}.json").read_text(encoding="utf-8")
    entries: dict[str, dict[str, Any]] = json.loads(text)[script]
    return entries


def recipes() -> Iterator[Recipe]:
    for task, card, attention in itertools.product(Task, CARDS, set(Attention) - {Attention.AUTO, Attention.SAGE}):
        recipe = make_recipe(task, cards=(card,))[0]
        further = {"attention": attention, "lr_warmup_steps": 10, "network_alpha": 0.5, "learning_rate": 1e-5}
        yield override(recipe, {"attention": attention})
        yield override(recipe, further)
    samples = {"sample_prompts": "/r/prompts.json", "sample_every_n_epochs": 10, "sample_at_first": True}
    yield override(make_recipe()[0], samples)


def trainings(version: str) -> Iterator[Command]:
    kind = EngineKind.REHEARSAL if version == REHEARSAL_VERSION else EngineKind.MUSUBI
    trainer = replace(make_trainer(kind), version=version)
    resumes = [{}, {"resume_from": Path("/r/state"), "stop_at_step": 600}, {"keep_all_checkpoints": True}]
    for recipe, more in itertools.product(recipes(), resumes):
        known = {name: value for name, value in more.items() if name in TrainingJob.__slots__}
        for spec in recipe.experts:
            job = TrainingJob(
                trainer=trainer,
                recipe=recipe,
                spec=spec,
                models=MODELS,
                dataset_config=CONFIG,
                accelerate_config=Path("/r/accelerate.yaml"),
                attempt_dir=Path("/r/train/1"),
                output_name="name",
                author="-me",
                state_every_epochs=4,
                **known,  # type: ignore[arg-type]  # names checked above
            )
            yield commands.train(job, env={})


def cachings(version: str) -> Iterator[tuple[Script, Command]]:
    trainer = replace(make_trainer(), version=version)
    for recipe in recipes():
        yield Script.CACHE_LATENTS, commands.cache_latents(trainer, recipe, MODELS, CONFIG, workers=3, env={})
        yield Script.CACHE_TEXT, commands.cache_text(trainer, MODELS, CONFIG, workers=3, env={})


def parsed(command: Command) -> Iterator[tuple[str, list[str]]]:
    """Options of the script with their values."""
    script = next(index for index, word in enumerate(command.argv) if word.endswith(".py"))
    name, values = "", list[str]()
    for word in command.argv[script + 1 :]:
        if word.startswith("--"):
            if name:
                yield name, values
            name, has_value, value = word.partition("=")
            values = [value] if has_value else []
        else:
            values = [*values, word]
    yield name, values


def check(entries: dict[str, dict[str, Any]], command: Command) -> None:
    given = list(parsed(command))
    names = [name for name, _ in given]
    assert len(names) == len(set(names))
    for name, values in given:
        assert name in entries, f"{name} does not exist"
        entry = entries[name]
        if entry["kind"] == "flag":
            assert values == [], f"{name} takes no value"
            continue
        assert values if "nargs" in entry else len(values) == 1, f"{name} has {len(values)} values"
        for value in values:
            if entry.get("choices"):
                assert value in entry["choices"], f"{name} must not be {value}"
            match entry.get("type"):
                case "int":
                    int(value)
                case "float" | "int_or_float" | "_int_or_float":
                    float(value)
                case _:
                    pass
    required = {name for name, entry in entries.items() if entry.get("required")}
    assert required <= set(names), f"{required - set(names)} must be given"


@pytest.mark.parametrize("version", VERSIONS)
def test_trainings(version: str) -> None:
    for command in trainings(version):
        check(table(version, Script.TRAIN), command)


@pytest.mark.parametrize("version", VERSIONS)
def test_cachings(version: str) -> None:
    for script, command in cachings(version):
        check(table(version, script), command)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_check_of_words_after_the_dashes_accepts_all_of_ours(version: str) -> None:
    capabilities = replace(make_trainer(), version=version).capabilities
    for command in trainings(version):
        script = next(index for index, word in enumerate(command.argv) if word.endswith(".py"))
        assert parse(command.argv[script + 1 :], capabilities)[1] == []


def test_an_option_of_the_newer_version_is_passed_to_it_only() -> None:
    assert all("--save_precision" not in command.argv for command in trainings("d0a1930"))
    assert any("--save_precision" in command.argv for command in trainings("v0.3.4"))


def test_the_recipes_own_words_are_the_trainers() -> None:
    """Recipes use the trainer's option names, so that a guide's command can be copied into one."""
    for version in KNOWN_COMMITS.values():
        names = FIELD_NAMES - {"attention", "num_cpu_threads_per_process", "until"}
        assert {f"--{name}" for name in names} <= table(version, Script.TRAIN).keys()

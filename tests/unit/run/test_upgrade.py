"""Plans that an earlier version wrote: read as the same run, with its words as settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.old_plans import of_schema_2, sharded
from support.runs import make_plan
from wan_train.base import codec
from wan_train.recipe.model import Origin, Source
from wan_train.recipe.terms import Attention, Expert
from wan_train.run.directory import RunDirectory
from wan_train.run.step_commands import AttemptSpec, command_of


def of_schema_1(data: dict[str, Any], *words: str) -> dict[str, Any]:
    """A plan as it was written when both experts had one training, with words for the trainer beside."""
    recipe = data["recipe"]
    training = {k: v for k, v in recipe["experts"][0]["training"].items() if k not in {"options", "network_weights"}}
    experts = [
        {key: spec[key] for key in ("expert", "dit", "min_timestep", "max_timestep")} for spec in recipe["experts"]
    ]
    old = recipe | {
        "experts": experts,
        "training": training,
        "passthrough": list(words),
        "chosen": {"seed": "recipe mine.toml", "max_train_epochs": "flag"},
    }
    choices = [{key: choice[key] for key in ("setting", "value", "reason")} for choice in data["choices"]]
    return of_schema_2(data) | {"schema": 1, "recipe": old, "choices": choices}


def read(folder: Path, *words: str) -> RunDirectory:
    run = RunDirectory(folder)
    data = json.loads(codec.to_json(make_plan(run_dir=folder)))
    run.plan.write_text(json.dumps(of_schema_1(data, *words)), encoding="utf-8")
    return run


def test_a_plan_without_words_is_the_same(tmp_path: Path) -> None:
    plan, made = read(tmp_path).read_plan(), make_plan(run_dir=tmp_path)
    assert plan.schema == 3
    for mine, theirs in zip(plan.recipe.experts, made.recipe.experts, strict=True):
        assert mine.training == theirs.training
        assert mine.sources["seed"] == Source(origin=Origin.RECIPE, text="recipe mine.toml")
        assert mine.sources["max_train_epochs"].origin is Origin.FLAG
    assert plan.choices == made.choices


def test_words_are_settings(tmp_path: Path) -> None:
    words = ("--gradient_accumulation_steps", "3", "--network_args", "a=1", "b=2", "--xformers", "--network_dim=4")
    plan = read(tmp_path, *words).read_plan()
    for spec in plan.recipe.experts:
        training = spec.training
        assert (training.network_dim, training.attention) == (4, Attention.XFORMERS)
        assert training.options == {"network_args": ("a=1", "b=2")}
        assert spec.sources["network_dim"].origin is Origin.WORDS
    assert plan.steps_of(Expert.HIGH) == 800
    argv = command_of(
        plan, plan.step("train-low"), AttemptSpec(number=2, state_every_epochs=4, total_epochs=100, schedule_epochs=100)
    ).argv
    assert (argv.count("--network_dim"), argv[argv.index("--network_dim") + 1]) == (1, "4")
    assert argv[argv.index("--network_args") + 1 :][:2] == ("a=1", "b=2")


@pytest.mark.parametrize("words", [("--network_dim", "abc"), ("--no_such",), ("--config_file", "x.toml")])
def test_words_that_ended_the_trainer_can_still_be_looked_at(words: tuple[str, ...], tmp_path: Path) -> None:
    plan = read(tmp_path, *words).read_plan()
    assert plan.training(Expert.HIGH).network_dim == 16


def test_caching_that_was_split_is_done_whole_one_step_after_the_other(tmp_path: Path) -> None:
    made = make_plan(run_dir=tmp_path)
    data = sharded(json.loads(codec.to_json(made)))
    RunDirectory(tmp_path).plan.write_text(json.dumps(data), encoding="utf-8")
    plan = RunDirectory(tmp_path).read_plan()
    assert [(step.id, step.needs) for step in plan.steps[:4]] == [
        ("cache-latents-1", ()),
        ("cache-latents-2", ("cache-latents-1",)),
        ("cache-text-1", ()),
        ("cache-text-2", ("cache-text-1",)),
    ]
    for split, whole in zip(plan.steps[:4:2], made.steps[:2], strict=True):
        assert command_of(plan, split) == command_of(made, whole)
    assert plan.step("train-low").needs == tuple(step.id for step in plan.steps[:4])


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema": 1}', '{"schema": 1, "recipe": []}'])
def test_what_is_no_plan(text: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.plan.write_text(text, encoding="utf-8")
    with pytest.raises(codec.CorruptRecordError):
        run.read_plan()

"""Command lines: quoting, values that look like options, and what depends on recipe and version."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.runs import make_recipe, make_trainer, with_settings
from wan_train.engine import commands
from wan_train.engine.commands import ACCELERATE_CONFIG, Command, ModelPaths, TrainingJob
from wan_train.recipe.load import override
from wan_train.recipe.model import Origin, Recipe, Source, changed
from wan_train.recipe.terms import Attention, EngineKind, Expert, Task
from wan_train.run.samples import WITHOUT

MODELS = ModelPaths(vae=Path("/m/vae"), t5=Path("/m/t5"), dit={"high": Path("/m/high"), "low": Path("/m/low")})


def job(recipe: Recipe | None = None, **changes: Any) -> TrainingJob:
    recipe = recipe or make_recipe()[0]
    facts: dict[str, Any] = {
        "trainer": make_trainer(),
        "recipe": recipe,
        "spec": recipe.experts[0],
        "models": MODELS,
        "dataset_config": Path("/r/dataset.toml"),
        "accelerate_config": Path("/r/accelerate.yaml"),
        "attempt_dir": Path("/r/train-high/1"),
        "output_name": "name",
        "author": "me",
        "state_every_epochs": 4,
    }
    return TrainingJob(**{**facts, **changes})


def words(**changes: Any) -> tuple[str, ...]:
    return commands.train(job(**changes), env={}).argv


@given(
    argv=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=6),
    value=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
)
def test_what_is_shown_is_what_a_shell_would_run(argv: list[str], value: str) -> None:
    command = Command(argv=tuple(argv), cwd="/", env={"NAME": value})
    shown = command.shell()
    if "[hidden]" not in shown:
        assert shlex.split(shown) == [f"NAME={value}", *argv]


def test_a_real_shell_reads_it_back() -> None:
    nasty = ["a b", "it's", '"$HOME"', "`id`", "*", "é\n2", "--x=-1", "#no", "a;b"]
    program = ["python3", "-c", "import sys; sys.stdout.write(repr(sys.argv[1:]))", *nasty]
    shown = Command(argv=tuple(program), cwd="/").shell()
    done = subprocess.run(["/bin/sh", "-c", shown], capture_output=True, text=True, check=True)
    assert done.stdout == repr(nasty)


def test_secrets_are_not_shown() -> None:
    token = "hf_" + "a1B2c3D4e5" * 3
    command = Command(argv=("train", "--huggingface_token", token), cwd="/", env={"HF_TOKEN": "very-secret"})
    assert token not in command.shell()
    assert "very-secret" not in command.shell()


def test_a_value_that_looks_like_an_option_is_joined_to_its_name() -> None:
    found = words(author="-me", output_name="--title")
    assert "--metadata_author=-me" in found
    assert "--metadata_title=--title" in found
    assert "--output_name=--title" in found


@pytest.mark.parametrize(
    ("attention", "option"),
    [(Attention.SDPA, "--sdpa"), (Attention.XFORMERS, "--xformers"), (Attention.FLASH, "--flash_attn")],
)
def test_exactly_one_attention(attention: Attention, option: str) -> None:
    recipe = override(make_recipe()[0], {"attention": attention})
    assert {"--sdpa", "--xformers", "--flash_attn"} & set(words(recipe=recipe)) == {option}


def test_what_is_off_is_left_out() -> None:
    off = {
        "fp8_base": False,
        "gradient_checkpointing": False,
        "blocks_to_swap": 0,
        "preserve_distribution_shape": False,
    }
    recipe = override(make_recipe()[0], off)
    found = words(recipe=recipe)
    assert {"--fp8_base", "--gradient_checkpointing", "--blocks_to_swap", "--preserve_distribution_shape"}.isdisjoint(
        found
    )
    assert "None" not in found


def test_a_resume() -> None:
    found = words(resume_from=Path("/r/state"))
    assert found[found.index("--resume") + 1] == "/r/state"
    assert "--resume" not in words()


def sampling(**more: object) -> Recipe:
    changes = {"sample_prompts": "/r/prompts.json", "sample_every_n_epochs": 5, **more}
    return override(make_recipe()[0], changes)


def test_samples() -> None:
    asked = ("--sample_prompts", "/r/prompts.json", "--sample_every_n_epochs", "5")
    given = words(recipe=sampling())
    place = given.index("--sample_prompts")
    assert given[place : place + 4] == asked
    assert given[:place] + given[place + 4 :] == words()
    first = sampling(sample_at_first=True)
    assert "--sample_at_first" in words(recipe=first)
    # A second start would make the samples of that moment again.
    assert "--sample_at_first" not in words(recipe=first, resume_from=Path("/r/state"))


def test_an_attempt_that_goes_on_without_samples() -> None:
    assert words(recipe=with_settings(sampling(sample_at_first=True), **WITHOUT)) == words()


def test_every_checkpoint_or_the_last_ones() -> None:
    assert "--save_last_n_epochs" in words()
    assert "--save_last_n_epochs" not in words(keep_all_checkpoints=True)


def test_options_come_last_once_and_are_listed_with_their_source() -> None:
    recipe = make_recipe()[0]
    spec = replace(
        recipe.experts[0],
        training=changed(
            recipe.experts[0].training, {"metadata_title": "other", "compile": (), "network_args": ("a=1", "b=2")}
        ),
        sources={
            "network_args": Source(origin=Origin.FLAG, text="--high"),
            "compile": Source(origin=Origin.MACHINE, text="measured here on 28 Nov"),
        },
    )
    command = commands.train(job(spec=spec), env={})
    assert command.argv[-3:] == ("--network_args", "a=1", "b=2")
    assert command.argv.count("--metadata_title") == 1
    assert command.argv[command.argv.index("--metadata_title") + 1] == "other"
    added = [(each.what, each.reason) for each in command.additions]
    assert ("--network_args a=1 b=2", "set by --high") in added
    assert ("--compile", "measured here on 28 Nov") in added


def test_an_option_of_ours_that_somebody_chose_is_theirs() -> None:
    recipe = make_recipe()[0]
    spec = replace(recipe.experts[0], training=changed(recipe.experts[0].training, {"save_precision": "bf16"}))
    argv = commands.train(job(spec=spec, trainer=replace(make_trainer(), version="v0.3.4")), env={}).argv
    assert [argv[at + 1] for at, word in enumerate(argv) if word == "--save_precision"] == ["bf16"]


def test_image_to_video_caches_first_frames_too() -> None:
    trainer, config = make_trainer(), Path("/r/dataset.toml")
    for task, expected in ((Task.T2V, False), (Task.I2V, True)):
        recipe = make_recipe(task)[0]
        command = commands.cache_latents(trainer, recipe, MODELS, config, workers=2, env={})
        assert ("--i2v" in command.argv) is expected
        assert words(recipe=recipe)[words(recipe=recipe).index("--task") + 1] == task


def test_the_experts_have_their_own_weights_and_timesteps() -> None:
    recipe = make_recipe()[0]
    for expert, dit, limits in ((Expert.HIGH, "/m/high", ("875", "1000")), (Expert.LOW, "/m/low", ("0", "875"))):
        found = words(recipe=recipe, spec=recipe.spec(expert))
        values = [found[found.index(name) + 1] for name in ("--dit", "--min_timestep", "--max_timestep")]
        assert values == [dit, *limits]


def test_the_environment_of_trainers() -> None:
    command = commands.train(job(), env={"HF_HUB_OFFLINE": "1"})
    assert command.env["HF_HUB_OFFLINE"] == "1"
    assert command.env["PYTHONUNBUFFERED"] == "1"
    # Images set these; the first ends every download where its package is missing.
    assert (command.env["HF_HUB_ENABLE_HF_TRANSFER"], command.env["HF_XET_HIGH_PERFORMANCE"]) == ("0", "0")
    assert command.with_env(CUDA_VISIBLE_DEVICES="GPU-1").env["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert "CUDA_VISIBLE_DEVICES" not in command.env


def test_the_rehearsal_gets_the_same_options() -> None:
    real = commands.train(job(), env={}).argv
    rehearsed = commands.train(job(trainer=make_trainer(EngineKind.REHEARSAL)), env={}).argv
    assert [word for word in real if word.startswith("--")] == [word for word in rehearsed if word.startswith("--")]


def test_accelerate_is_kept_on_one_process() -> None:
    lines = ACCELERATE_CONFIG.splitlines()
    assert "distributed_type: 'NO'" in lines
    assert "num_processes: 1" in lines
    assert "mixed_precision: 'no'" in lines

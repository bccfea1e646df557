"""Our command lines against those of the guide this program automates, flag for flag, in the guide's own order."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest

from support.runs import make_plan
from wan_train.base import codec
from wan_train.engine import commands
from wan_train.engine.capabilities import Script
from wan_train.engine.commands import Command, TrainingJob
from wan_train.engine.trainer import Trainer
from wan_train.engine.traits import MUSUBI
from wan_train.recipe import adaptation
from wan_train.recipe.adaptation import Card, Machine
from wan_train.recipe.load import shipped
from wan_train.recipe.model import Recipe, Training, format_number
from wan_train.recipe.terms import EngineKind, Expert, Task
from wan_train.run.directory import RunDirectory
from wan_train.run.plan import result_name
from wan_train.run.planner import find_models
from wan_train.run.step_commands import command_of

HERE = Path(__file__).parent
ROOT = Path("/workspace/musubi-tuner")
DATASET = ROOT / "dataset" / "dataset.toml"
ATTEMPT = Path("/workspace/runs/1/train/1")
GIB = 1024**3
H100 = Card(name="NVIDIA H100 80GB HBM3", total_bytes=80 * GIB, compute_capability=(9, 0))
RTX5090 = Card(name="NVIDIA GeForce RTX 5090", total_bytes=32 * GIB, compute_capability=(12, 0))

Options = dict[str, tuple[str, ...]]


def options_of(words: Sequence[str]) -> Options:
    """Options with their values, in order; `--name=value` and `--name value` are the same."""
    found: Options = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, has_value, value = word.partition("=")
            assert name not in found, f"{name} twice"
            found[name] = (value,) if has_value else ()
        elif name:
            found[name] = (*found[name], word)
    return found


def seed(name: str) -> tuple[list[str], Options]:
    """The words before the script with it, and the script's options, of a command in the guide."""
    words = shlex.split((HERE / f"seed_{name}.txt").read_text(encoding="utf-8").replace("\\\n", " "))
    return split(words)


def split(words: Sequence[str]) -> tuple[list[str], Options]:
    script = next(index for index, word in enumerate(words) if word.endswith(".py"))
    return list(words[: script + 1]), options_of(words[script + 1 :])


def trainer(version: str = "d0a1930") -> Trainer:
    return Trainer(
        kind=EngineKind.MUSUBI,
        version=version,
        commit=None,
        python=ROOT / "venv" / "bin" / "python",
        root=ROOT,
        scripts={script: f"src/musubi_tuner/{script}" for script in Script},
    )


def recipe_for(card: Card) -> Recipe:
    machine = Machine(cards=(card,), cpus=16, has_xformers=True, has_flash=False, dit_dtype="F16")
    recipe, _ = adaptation.adapt(shipped(Task.T2V), machine)
    return recipe


def ours(expert: Expert, card: Card, version: str = "d0a1930") -> Command:
    recipe = recipe_for(card)
    job = TrainingJob(
        trainer=trainer(version),
        recipe=recipe,
        spec=recipe.spec(expert),
        models=find_models(recipe, ROOT),
        dataset_config=DATASET,
        accelerate_config=ATTEMPT / "accelerate.yaml",
        attempt_dir=ATTEMPT,
        output_name=result_name("MyLoRA", recipe.task, expert, MUSUBI),
        author="MyName",
        state_every_epochs=4,
    )
    return commands.train(job, env={})


def additions(command: Command) -> Options:
    assert all(addition.reason for addition in command.additions)
    return options_of([word for addition in command.additions for word in addition.what.split(" instead")[0].split()])


@pytest.mark.parametrize("expert", list(Expert))
class TestTraining:
    def test_on_an_h100_every_option_of_the_guide_is_there_with_its_value(self, expert: Expert) -> None:
        _, theirs = seed(expert)
        _, mine = split(ours(expert, H100).argv)
        changed = {name: mine.get(name) for name in theirs if mine.get(name) != theirs[name]}
        assert changed == {"--save_every_n_epochs": ("4",), "--output_dir": (f"{ATTEMPT}/output",)}

    def test_the_order_is_the_guides(self, expert: Expert) -> None:
        _, theirs = seed(expert)
        _, mine = split(ours(expert, H100).argv)
        assert [name for name in mine if name in theirs] == list(theirs)

    def test_everything_else_is_listed_with_a_reason(self, expert: Expert) -> None:
        _, theirs = seed(expert)
        command = ours(expert, H100)
        before, mine = split(command.argv)
        further = {name: value for name, value in mine.items() if name not in theirs}
        listed = additions(command)
        assert set(further) == {"--save_state", "--save_last_n_epochs_state", "--save_last_n_epochs", "--logging_dir"}
        assert {name: listed[name] for name in further} == further
        assert set(listed) - set(further) == {
            "--config_file",
            "--save_every_n_epochs",
            "--output_dir",
            "--dataset_config",
        }
        assert listed["--save_every_n_epochs"] == ("4",)
        assert "--config_file" in before

    def test_the_launcher_is_accelerate_with_the_guides_option(self, expert: Expert) -> None:
        theirs, _ = seed(expert)
        mine, _ = split(ours(expert, H100).argv)
        assert theirs[:2] == ["accelerate", "launch"]
        assert mine[:3] == [f"{ROOT}/venv/bin/python", "-m", "accelerate.commands.launch"]
        assert (
            mine[-3:] == theirs[-3:] == ["--num_cpu_threads_per_process", "1", "src/musubi_tuner/wan_train_network.py"]
        )
        assert options_of(mine[3:-1]) == {
            "--config_file": (f"{ATTEMPT}/accelerate.yaml",),
            "--num_cpu_threads_per_process": ("1",),
        }
        assert ours(expert, H100).cwd == str(ROOT)

    def test_numbers_read_as_in_the_guide(self, expert: Expert) -> None:
        _, mine = split(ours(expert, H100).argv)
        assert {
            "--learning_rate": ("3e-4",),
            "--discrete_flow_shift": ("1.0",),
            "--lr_scheduler_power": ("8",),
            "--lr_scheduler_min_lr_ratio": ("5e-5",),
            "--max_grad_norm": ("0",),
            "--seed": ("5",),
            "--network_alpha": ("16",),
        }.items() <= mine.items()

    def test_on_an_rtx_5090_exactly_what_the_guide_says(self, expert: Expert) -> None:
        before, h100 = split(ours(expert, H100).argv)
        before_5090, rtx5090 = split(ours(expert, RTX5090).argv)
        assert before == before_5090
        assert set(h100) - set(rtx5090) == {"--xformers"}
        assert {name: rtx5090[name] for name in set(rtx5090) - set(h100)} == {"--sdpa": (), "--blocks_to_swap": ("10",)}
        assert {name: value for name, value in rtx5090.items() if name in h100} == {
            name: value for name, value in h100.items() if name != "--xformers"
        }
        assert list(rtx5090).index("--sdpa") == list(h100).index("--xformers")
        assert additions(ours(expert, RTX5090))["--blocks_to_swap"] == ("10",)

    def test_the_newest_version_gets_one_option_more(self, expert: Expert) -> None:
        _, old = split(ours(expert, H100).argv)
        command = ours(expert, H100, "v0.3.4")
        _, new = split(command.argv)
        assert {name: new[name] for name in set(new) - set(old)} == {"--save_precision": ("fp16",)}
        assert {name: value for name, value in new.items() if name in old} == old
        assert additions(command)["--save_precision"] == ("fp16",)

    def test_a_run_changes_nothing_else_but_its_paths(self, expert: Expert) -> None:
        recipe = recipe_for(H100)
        run = RunDirectory(Path("/workspace/runs/1"))
        plan = make_plan(
            title="MyLoRA",
            author="MyName",
            run_dir=run.path,
            recipe=recipe,
            trainer=trainer(),
            models=find_models(recipe, ROOT),
        )
        command = command_of(plan, plan.step(f"train-{expert}"))
        _, alone = split(ours(expert, H100).argv)
        _, mine = split(command.argv)
        assert {name for name, value in mine.items() if alone.get(name) != value} == {
            "--dataset_config",
            "--output_dir",
            "--logging_dir",
        }
        assert alone.keys() == mine.keys()
        assert additions(command)["--dataset_config"] == (str(run.dataset_config),)


@pytest.mark.parametrize("card", [H100, RTX5090])
class TestCaching:
    def test_latents(self, card: Card) -> None:
        recipe = recipe_for(card)
        models = find_models(recipe, ROOT)
        command = commands.cache_latents(trainer(), recipe, models, DATASET, workers=7, env={})
        self.check(command, "cache_latents")

    def test_text(self, card: Card) -> None:
        models = find_models(recipe_for(card), ROOT)
        self.check(commands.cache_text(trainer(), models, DATASET, workers=7, env={}), "cache_text")

    def check(self, command: Command, name: str) -> None:
        before, theirs = seed(name)
        mine_before, mine = split(command.argv)
        assert before[-1] == mine_before[-1]
        assert mine_before == [f"{ROOT}/venv/bin/python", before[-1]]
        ours = {"--num_workers": ("7",), "--skip_existing": (), "--keep_cache": ()}
        assert list(mine) == [*theirs, *ours]
        assert {name: mine[name] for name in theirs} == theirs
        assert additions(command) == ours == {name: mine[name] for name in ours}


def test_the_numbers_survive_the_plan_on_disk() -> None:
    """A supervisor builds commands from plan.json: they must not read 16.0 where the guide has 16."""
    training = shipped(Task.T2V).experts[0].training
    again: Training = codec.from_json(codec.to_json(training), Training, where="here")
    assert [format_number(value) for value in _numbers(again)] == [format_number(value) for value in _numbers(training)]
    assert format_number(again.network_alpha) == "16"
    assert format_number(again.discrete_flow_shift) == "1.0"


def _numbers(training: Training) -> list[float]:
    return [value for f in fields(training) if isinstance(value := getattr(training, f.name), int | float)]

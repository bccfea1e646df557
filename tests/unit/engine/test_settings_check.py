"""Settings judged before the start: arguments, named files, and what a trainer of a few lines builds of them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from support.runs import make_trainer, with_settings
from wan_train.base.errors import BadInputError
from wan_train.engine import settings_check
from wan_train.engine.trainer import Trainer
from wan_train.recipe.effective import Layer, resolve
from wan_train.recipe.load import shipped
from wan_train.recipe.model import Origin, Recipe, Source
from wan_train.recipe.terms import EngineKind, Expert, Task

STEPS = dict.fromkeys(Expert, 10)

# The parts that are asked of a trainer, with rules of its own.
TOY_TRAINER = """
import argparse
import a_library_that_only_training_needs
import importlib

KNOWN = ("good",)

def setup_parser_common():
    parser = argparse.ArgumentParser()
    for name in ("network_module", "optimizer_type", "lr_scheduler", "lr_scheduler_type"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--network_dim", type=int)
    parser.add_argument("--network_alpha", type=float)
    parser.add_argument("--network_dropout", type=float)
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--network_args", nargs="*")
    parser.add_argument("--optimizer_args", nargs="*")
    return parser

class NetworkTrainer:
    def get_optimizer(self, args, params):
        if "." in args.optimizer_type:
            importlib.import_module(args.optimizer_type.rpartition(".")[0])
        if args.optimizer_type == "needs_gpu":
            raise RuntimeError("CUDA is not available")
        if args.optimizer_args == ["dacay=1"]:
            optimizer_class = Optimizer
            optimizer_class(dacay=1)
        if args.optimizer_type not in KNOWN:
            raise AttributeError("module 'torch.optim' has no attribute 'x'")
        return "name", "args", Optimizer()

    def get_lr_scheduler(self, args, optimizer, processes):
        return Scheduler(args)

    def train(self):
        a_library_that_only_training_needs.start()

class Optimizer:
    def __init__(self, params=(), lr=0.1, decay=0): pass

    def step(self):
        pass

class Scheduler:
    def __init__(self, args):
        self.left = 5 if args.lr_scheduler == "short" else 100

    def step(self):
        self.left -= 1
        if self.left == 0:
            raise ValueError("Tried to step 6 times. The total number of steps is 5")

    def get_last_lr(self):
        return [1e-4]
"""

TOY_NETWORK = """
class Network:
    def __init__(self, dim): self.dim = dim
    def apply_to(self, *args, **kwargs): pass
    def prepare_optimizer_params(self, unet_lr): return [], None
    def state_dict(self):
        import types
        down = "lora_unet_blocks_0_self_attn_q.lora_down.weight"
        return {down: types.SimpleNamespace(shape=(self.dim, 5120))}

def create_arch_network(multiplier, dim, alpha, vae, text, unet, neuron_dropout=None, **kwargs):
    int(kwargs.get("conv_dim", 0))
    return Network(dim)
"""


# Of torch the layers of one block are enough; the real one takes seconds to import.
TOY_TORCH = """
class Module:
    def __init__(self, *args, **kwargs): pass
    def add_module(self, name, module): pass

Linear = GELU = Sequential = ModuleDict = ModuleList = Module
"""


def refusal(recipe: Recipe, trainer: Trainer | None = None) -> str:
    """Everything that a refused recipe's error says."""
    with pytest.raises(BadInputError) as error:
        settings_check.judge(recipe, trainer or make_trainer(), STEPS, environ={})
    return f"{error.value.message}\n{error.value.hint}"


@pytest.fixture
def toy(tmp_path: Path) -> Trainer:
    """A trainer of a few lines."""
    package = tmp_path / "src/musubi_tuner"
    (package / "networks").mkdir(parents=True)
    (package / "hv_train_network.py").write_text(TOY_TRAINER)
    (package / "networks/lora_wan.py").write_text(TOY_NETWORK)
    (package / "networks/__init__.py").touch()
    (package / "torch").mkdir()
    (package / "torch/__init__.py").touch()
    (package / "torch/nn.py").write_text(TOY_TORCH)
    return replace(make_trainer(), root=tmp_path, python=Path(sys.executable))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optimizer_args": ("weight_decay 0.1",)}, "optimizer_args 'weight_decay 0.1' must be written KEY=VALUE"),
        ({"optimizer_args": ("betas=0.9=1",)}, "one `=`"),
        ({"optimizer_args": ("weight_decay=ten",)}, "'ten' is not a number, True, False, None, list or quoted text"),
        ({"optimizer_args": ("weight_decay=",)}, "'' is not a number"),
        ({"network_args": ("conv_dim 4",)}, "network_args 'conv_dim 4' must be written KEY=VALUE"),
        ({"lr_scheduler_args": ("T_max",)}, "lr_scheduler_args 'T_max' must be written KEY=VALUE"),
        (
            {"timestep_sampling": "nonsense"},
            "timestep_sampling 'nonsense' is not supported by musubi-tuner d0a1930. Valid: ",
        ),
        ({"weighting_scheme": "nonsense"}, "logit_normal"),
    ],
)
def test_arguments_and_choices_are_refused_without_asking_the_trainer(settings: dict[str, object], said: str) -> None:
    assert said in refusal(with_settings(shipped(Task.T2V), **settings))


def test_an_argument_cannot_act_on_the_terminal() -> None:
    told = refusal(with_settings(shipped(Task.T2V), optimizer_args=("\x1b[2Jx",)))
    assert "\x1b" not in told


@pytest.mark.parametrize("name", ["base_weights", "clip", "dit_high_noise", "log_tracker_config"])
def test_a_named_file_must_exist(name: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.safetensors")
    told = refusal(with_settings(shipped(Task.T2V), **{name: (missing,) if name == "base_weights" else missing}))
    assert f"{name} {missing}: file not found" in told


def test_base_weights_cut_short_are_refused(tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    assert "not a complete safetensors file" in refusal(with_settings(shipped(Task.T2V), base_weights=(str(cut),)))


def test_the_shipped_recipe_starts_no_python_and_says_nothing() -> None:
    for task in Task:
        recipe = with_settings(shipped(task), network_dim=64, learning_rate=1e-4)
        assert settings_check.judge(recipe, make_trainer(), STEPS, environ={}) == []


def test_each_problem_says_who_set_it_and_which_expert_has_it() -> None:
    flag, recipe = (Source(origin=Origin.FLAG, text="--high"), Source(origin=Origin.RECIPE, text="recipe a.toml"))
    told = refusal(
        resolve(
            shipped(Task.T2V),
            [
                Layer(source=recipe, values={"network_args": ("a b",)}),
                Layer(source=flag, values={"optimizer_args": ("c d",)}, expert=Expert.HIGH),
            ],
        )
    )
    lines = [line.strip() for line in told.splitlines()]
    assert len([line for line in lines if "network_args" in line]) == 1
    assert any(line.startswith("network_args 'a b'") and "(set by recipe a.toml)" in line for line in lines)
    assert any(line.startswith("high-noise expert: optimizer_args 'c d'") and "--high" in line for line in lines)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"optimizer_type": "prodigy"},
            "optimizer_type 'prodigy' is not supported by the rehearsal. Valid: adamw, adamw8bit",
        ),
        ({"lr_scheduler": "rex"}, "lr_scheduler 'rex' is not supported by the rehearsal. Valid: constant,"),
    ],
)
def test_a_rehearsal_is_judged_by_what_it_can_do(settings: dict[str, object], said: str) -> None:
    rehearsal = make_trainer(EngineKind.REHEARSAL)
    assert said in refusal(with_settings(shipped(Task.T2V), **settings), rehearsal)
    ordinary = with_settings(shipped(Task.T2V), optimizer_type="AdamW", lr_scheduler="cosine")
    assert settings_check.judge(ordinary, rehearsal, STEPS, environ={}) == []


def test_the_trainers_own_functions_decide_without_the_rest_of_its_program(toy: Trainer) -> None:
    recipe = with_settings(shipped(Task.T2V), optimizer_type="good")
    assert settings_check.judge(recipe, toy, STEPS, environ={}) == []
    several = with_settings(recipe, Expert.HIGH, optimizer_type="absent_package.Thing", optimizer_args=())
    several = with_settings(several, Expert.LOW, lr_scheduler="short")
    told = refusal(several, toy)
    assert "absent_package is not installed in the trainer's environment" in told
    assert "wan-train provision --with absent_package" in told
    assert "low-noise expert: lr_scheduler 'short': Tried to step 6 times" in told


def test_a_wrong_argument_is_told_with_the_right_ones_and_who_set_it(toy: Trainer) -> None:
    layers = [
        Layer(source=Source(origin=Origin.RECIPE, text="recipe a.toml"), values={"optimizer_type": "good"}),
        Layer(
            source=Source(origin=Origin.FLAG, text="--high"),
            values={"optimizer_args": ("dacay=1",)},
            expert=Expert.HIGH,
        ),
        Layer(
            source=Source(origin=Origin.FLAG, text="--low"),
            values={"optimizer_args": (), "network_args": ("conv_dmi=4", "conv_dim=4")},
            expert=Expert.LOW,
        ),
    ]
    high, low = refusal(resolve(shipped(Task.T2V), layers), toy).splitlines()[1:3]
    assert "optimizer_args dacay=1: " in high
    assert "unexpected keyword argument 'dacay'. It takes decay " in high
    assert high.endswith("(optimizer_type set by recipe a.toml; optimizer_args set by --high)")
    assert "it does not read conv_dmi; it reads conv_dim " in low
    assert low.endswith("(network_args set by --low)")


def test_what_may_be_for_want_of_a_gpu_is_a_note(toy: Trainer) -> None:
    recipe = with_settings(shipped(Task.T2V), optimizer_type="needs_gpu")
    announced: list[str] = []
    [note] = settings_check.judge(recipe, toy, STEPS, environ={}, say=announced.append)
    assert announced == ["Checking optimizer, network and schedule with the trainer's Python..."]
    assert note == "optimizer_type could not be checked before the start: CUDA is not available"


@pytest.mark.parametrize("program", ["exit 1", "echo nonsense", "echo '[]'", "echo '{\"trainings\": 3}'"])
def test_a_python_that_gives_no_answer_refuses_nothing_and_says_so(program: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    trainer = replace(make_trainer(), python=python, root=tmp_path)
    recipe = with_settings(shipped(Task.T2V), optimizer_type="anything")
    [note] = settings_check.judge(recipe, trainer, STEPS, environ={})
    assert note.endswith("could not be checked: the trainer's Python gave no answer")


def test_a_python_that_gave_no_answer_is_asked_again(tmp_path: Path) -> None:
    """The first answer may be lacking because torch came from a cold disk; the plan is made again in the same run."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    trainer = replace(make_trainer(), python=python, root=tmp_path)
    recipe = with_settings(shipped(Task.T2V), optimizer_type="anything")
    [note] = settings_check.judge(recipe, trainer, STEPS, environ={})
    assert "could not be checked" in note

    answer = {"trainings": [{"failure": None, "weights": {}}] * 2}
    python.write_text(f"#!/bin/sh\ncat >/dev/null\necho '{json.dumps(answer)}'\n")
    assert settings_check.judge(recipe, trainer, STEPS, environ={}) == []

    python.write_text("#!/bin/sh\nexit 1\n")  # an answer is not asked for twice
    assert settings_check.judge(recipe, trainer, STEPS, environ={}) == []


def test_a_trainer_built_in_another_way_refuses_nothing(toy: Trainer) -> None:
    (toy.root / "src/musubi_tuner/hv_train_network.py").unlink()
    recipe = with_settings(shipped(Task.T2V), optimizer_type="anything")
    [note] = settings_check.judge(recipe, toy, STEPS, environ={})
    assert "is built in another way" in note

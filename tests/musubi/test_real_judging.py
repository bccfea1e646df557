"""What the real trainer would build of optimizer, network and schedule, found out before the start.

Every refusal here is what the trainer dies of after the models are loaded; what is taken here it trains with.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from musubi.trainer import VARIABLE, VERSIONS
from wan_train.base.errors import BadInputError
from wan_train.engine import settings_check
from wan_train.engine.capabilities import KNOWN_COMMITS, Script
from wan_train.engine.settings_check_failures import Findings, explain
from wan_train.engine.trainer import Trainer
from wan_train.recipe.effective import Layer, resolve
from wan_train.recipe.load import shipped
from wan_train.recipe.model import Origin, Source, Training, changed
from wan_train.recipe.terms import EngineKind, Expert, Task

STEPS = 120
BASE = shipped(Task.T2V).experts[0].training

TAKEN: dict[str, dict[str, object]] = {
    "the guide's": {},
    "8-bit": {"optimizer_type": "AdamW8bit"},
    "adafactor, whose schedule the trainer chooses": {"optimizer_type": "adafactor", "optimizer_args": ()},
    "adafactor with a fixed rate": {
        "optimizer_type": "Adafactor",
        "optimizer_args": ("relative_step=False", "scale_parameter=False", "warmup_init=False"),
        "lr_scheduler": "constant_with_warmup",
        "lr_warmup_steps": 10,
    },
    "a class of torch": {"optimizer_type": "NAdam", "optimizer_args": ("betas=0.9,0.99",)},
    "a package's class": {"optimizer_type": "bitsandbytes.optim.Lion8bit", "optimizer_args": ()},
    "warm-up as a part": {"lr_scheduler": "cosine", "lr_warmup_steps": 0.1},
    "warm-up as steps": {"lr_scheduler": "linear", "lr_warmup_steps": 10},
    "warm-up, stable, decay": {"lr_scheduler": "warmup_stable_decay", "lr_warmup_steps": 5, "lr_decay_steps": 0.2},
    "steps": {"lr_scheduler": "piecewise_constant", "lr_scheduler_args": ("step_rules='1:60,0.1'",)},
    "another scheduler": {"lr_scheduler_type": "CosineAnnealingLR", "lr_scheduler_args": ("T_max=120",)},
    "LoRA+": {"network_args": ("loraplus_lr_ratio=4",)},
    "layers": {"network_args": ("include_patterns=[r'.*ffn.*']", "exclude_patterns=[r'.*ffn.*']")},
}

REFUSED: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "prodigy": (
        {"optimizer_type": "prodigy", "optimizer_args": ()},
        (
            "optimizer_type 'prodigy'",
            "torch.optim",
            "package.Class such as prodigyopt.Prodigy",
            "Classes of torch.optim",
        ),
    ),
    "the wrong case": ({"optimizer_type": "nadam"}, ("close: NAdam",)),
    "a package that is not there": (
        {"optimizer_type": "prodigyopt.Prodigy", "optimizer_args": ()},
        ("prodigyopt is not installed", "wan-train provision --with prodigyopt"),
    ),
    "a class that is not there": ({"optimizer_type": "bitsandbytes.optim.Lyon"}, ("no such class",)),
    "an argument that the class lacks": (
        {"optimizer_args": ("weight_decya=0.1",)},
        ("optimizer_args weight_decya=0.1", "unexpected keyword argument 'weight_decya'. It takes betas, eps, "),
    ),
    "a value that the class refuses": ({"optimizer_args": ("weight_decay=-1",)}, ("Invalid weight_decay value: -1",)),
    "a closure": ({"optimizer_type": "LBFGS", "optimizer_args": ()}, ("closure",)),
    "an unknown schedule": ({"lr_scheduler": "cosin"}, ("lr_scheduler 'cosin'", "cosine_with_restarts", "polynomial")),
    "constant with warm-up": (
        {"lr_scheduler": "constant", "lr_warmup_steps": 10},
        ("lr_scheduler 'constant' takes no warm-up with lr_warmup_steps 10; constant_with_warmup takes one",),
    ),
    "a minimum that is missing": (
        {"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_min_lr_ratio": None},
        ("lr_scheduler 'cosine_with_min_lr'", "min_lr"),
    ),
    "a schedule that wants losses": ({"lr_scheduler": "reduce_lr_on_plateau"}, ("is not one of", "polynomial")),
    "a class that wants losses": (
        {"lr_scheduler_type": "ReduceLROnPlateau"},
        ("lr_scheduler_type 'ReduceLROnPlateau'", "metrics"),
    ),
    "an argument that the schedule lacks": ({"lr_scheduler_args": ("powr=2",)}, ("lr_scheduler_args powr=2", "powr")),
    "a schedule that ends early": (
        {"lr_scheduler_type": "OneCycleLR", "lr_scheduler_args": ("max_lr=1e-3", "total_steps=20")},
        ("OneCycleLR", "20"),
    ),
    "adafactor's schedule for another": ({"lr_scheduler": "adafactor:1e-3"}, ("Adafactor",)),
    "a module that is not there": (
        {"network_module": "networks.lora_wann"},
        ("does not exist in musubi-tuner", "networks.lora_wan"),
    ),
    "a network of another model": ({"network_module": "networks.lora_flux"}, ("nothing to train in Wan 2.2",)),
    "an argument that no network reads": (
        {"network_args": ("conv_dmi=4",)},
        ("it does not read conv_dmi; it reads conv_alpha, conv_dim, exclude_patterns, include_patterns,",),
    ),
    "no number": ({"network_args": ("conv_dim=four",)}, ("network_args conv_dim=four", "invalid literal for int()")),
    "no list": ({"network_args": ("exclude_patterns=.*ffn.*",)}, ("network_args exclude_patterns=.*ffn.*",)),
}

ONLY_AT: dict[str, dict[str, tuple[dict[str, object], tuple[str, ...]]]] = {
    "d0a1930": {
        "LoKr": (
            {"network_module": "networks.lokr"},
            ("does not exist in musubi-tuner d0a1930. It has networks.lora,",),
        ),
        "rex": ({"lr_scheduler": "rex"}, ("is not one of",)),
        "schedule-free": (
            {"optimizer_type": "schedulefree.AdamWScheduleFree"},
            ("musubi-tuner d0a1930 cannot train with this schedule-free class", "provision --engine v0.3.4"),
        ),
    },
    "v0.3.4": {},
}
ALSO_TAKEN: dict[str, dict[str, dict[str, object]]] = {
    "d0a1930": {},
    "v0.3.4": {
        "LoKr": {"network_module": "networks.lokr", "network_args": ("factor=4", "rank_dropout=0.1")},
        "LoHa": {"network_module": "networks.loha"},
        "rex": {"lr_scheduler": "rex"},
        "schedule-free": {"optimizer_type": "schedulefree.AdamWScheduleFree"},
    },
}


@pytest.fixture(scope="module", params=VERSIONS)
def installed(request: pytest.FixtureRequest) -> Trainer:
    """The real trainer of one version as wan-train finds it. Neither models nor a GPU are needed."""
    if not os.environ.get(VARIABLE):
        pytest.skip(f"set {VARIABLE}=DIR to test with the real musubi-tuner (tests/musubi/README.md makes DIR)")
    home = Path(os.environ[VARIABLE]).absolute() / request.param
    return Trainer(
        kind=EngineKind.MUSUBI,
        version=request.param,
        commit=next(commit for commit, version in KNOWN_COMMITS.items() if version == request.param),
        python=home / "venv/bin/python",
        root=home / "repo",
        scripts={script: f"src/musubi_tuner/{script}" for script in Script},
    )


def told(trainer: Trainer, cases: list[dict[str, object]]) -> list[Findings]:
    trainings: list[Training] = [changed(BASE, case) for case in cases]
    answer = settings_check.ask(trainer, [(training, STEPS) for training in trainings], {})
    assert not isinstance(answer, str), answer
    found = []
    for training, one in zip(trainings, answer["trainings"], strict=True):
        findings = Findings()
        if one["failure"] is not None:
            explain(one["failure"], training, trainer, answer, findings)
        found.append(findings)
    return found


def test_what_the_trainer_trains_with_is_taken(installed: Trainer) -> None:
    cases = TAKEN | ALSO_TAKEN[installed.version]
    wrong = {
        name: found.problems + found.notes
        for name, found in zip(cases, told(installed, list(cases.values())), strict=True)
        if found.problems or found.notes
    }
    assert wrong == {}


def test_what_the_trainer_dies_of_is_refused_with_what_is_valid(installed: Trainer) -> None:
    cases = REFUSED | ONLY_AT[installed.version]
    said = {
        name: "\n".join([*(text for _, text in found.problems), *found.hints])
        for name, found in zip(cases, told(installed, [settings for settings, _ in cases.values()]), strict=True)
    }
    missing = {name: text for name, text in said.items() if not all(word in text for word in cases[name][1])}
    assert missing == {}


def test_both_experts_are_judged_in_one_error_that_says_who_set_what(installed: Trainer) -> None:
    recipe = resolve(
        shipped(Task.T2V),
        [
            Layer(
                source=Source(origin=Origin.FLAG, text="--high"),
                values={"optimizer_type": "prodigy"},
                expert=Expert.HIGH,
            ),
            Layer(
                source=Source(origin=Origin.RECIPE, text="recipe a.toml"),
                values={"lr_scheduler": "cosin"},
                expert=Expert.LOW,
            ),
        ],
    )
    with pytest.raises(BadInputError) as error:
        settings_check.judge(recipe, installed, dict.fromkeys(Expert, STEPS), environ={})
    high, low = error.value.message.splitlines()[1:]
    assert high.strip().startswith("high-noise expert: optimizer_type 'prodigy'")
    assert high.endswith("(set by --high)")
    assert low.strip().startswith("low-noise expert: lr_scheduler 'cosin'")
    assert low.endswith("(set by recipe a.toml)")


def test_a_lora_to_continue_from_is_compared_with_the_networks_own_tensors(installed: Trainer, tmp_path: Path) -> None:
    taken, rank_4, other = (tmp_path / f"{name}.safetensors" for name in ("taken", "rank-4", "other"))
    recipe = resolve(shipped(Task.T2V), [given(network_args=("rank_dropout=0.1",))])  # not the shipped one: it is built
    answer = settings_check.ask(installed, [(recipe.experts[0].training, STEPS)], {})
    assert not isinstance(answer, str), answer
    shapes = answer["trainings"][0]["weights"]
    write(taken, shapes)
    write(rank_4, {name: [4 if size == BASE.network_dim else size for size in shape] for name, shape in shapes.items()})
    write(other, {name.replace("lora_", "loha_"): shape for name, shape in shapes.items()})

    def judged(file: Path) -> list[str]:
        with_file = resolve(recipe, [given(network_weights=str(file))])
        return settings_check.judge(with_file, installed, dict.fromkeys(Expert, STEPS), environ={})

    assert judged(taken) == ["neither taken.safetensors nor its metadata says which expert it belongs to"]
    with pytest.raises(
        BadInputError, match=f"rank-4.safetensors has rank 4, and network_dim is {BASE.network_dim}"
    ) as no:
        judged(rank_4)
    assert "--rank 4" in str(no.value.hint)
    with pytest.raises(BadInputError, match=r"has no weights that networks\.lora_wan reads"):
        judged(other)


def given(**values: object) -> Layer:
    return Layer(source=Source(origin=Origin.FLAG, text="--high"), values=values)


def write(path: Path, shapes: dict[str, list[int]]) -> None:
    """A whole file of zeros that take no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded)
    os.truncate(path, 8 + len(encoded) + end)

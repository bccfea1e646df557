"""The learning rate of every step, as we compute it and as the trainer's own functions set it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from musubi.trainer import Trainer
from wan_train.engine import settings_check_child
from wan_train.engine.capabilities import stored
from wan_train.engine.commands import option_words
from wan_train.engine.schedule import factor
from wan_train.recipe.load import shipped
from wan_train.recipe.model import Training, settings_of
from wan_train.recipe.terms import Expert, Task

STEPS = 57
TRIED = (
    "optimizer_type", "optimizer_args", "learning_rate", "lr_scheduler", "lr_scheduler_args", "lr_scheduler_power",
    "lr_scheduler_min_lr_ratio", "lr_scheduler_num_cycles", "lr_scheduler_timescale", "lr_warmup_steps",
    "lr_decay_steps",
)  # fmt: skip


def trainings(version: str) -> list[Training]:
    """Every schedule that the version has, plain and with what it takes."""
    guide = shipped(Task.T2V).spec(Expert.HIGH).training

    def of(lr_scheduler: str, options: dict[str, Any] | None = None, **changes: Any) -> Training:
        return replace(guide, lr_scheduler=lr_scheduler, options=options or {}, **changes)

    found = [
        guide,
        of("constant", lr_warmup_steps=None),
        of("polynomial", {"lr_scheduler_args": ("lr_end=1e-6",)}, lr_warmup_steps=9),
        of("piecewise_constant", {"lr_scheduler_args": ("step_rules='1:10,0.1:30,0.01'",)}),
        of("cosine", {"lr_scheduler_args": ("num_cycles=1.5",)}, lr_warmup_steps=3),
        of("cosine", {"lr_scheduler_num_cycles": 3}),
        of("cosine_with_restarts", {"lr_scheduler_num_cycles": 3}, lr_warmup_steps=4),
        of("cosine_with_min_lr", {"lr_scheduler_num_cycles": 3}, lr_scheduler_min_lr_ratio=0.2),
        of("inverse_sqrt", {"lr_scheduler_timescale": 20}, lr_warmup_steps=5),
        of("warmup_stable_decay", {"lr_decay_steps": 20}, lr_warmup_steps=11, lr_scheduler_min_lr_ratio=0.3),
        of("warmup_stable_decay", {"lr_decay_steps": 0.4, "lr_scheduler_num_cycles": 2}, lr_warmup_steps=0.1),
    ]
    names = ["constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"]
    if version != "d0a1930":
        names.append("rex")
        ramps = ("warmup_type='cosine'", "decay_type='1-sqrt'")
        more = {"lr_decay_steps": 20, "lr_scheduler_args": ramps}
        found += [
            of("warmup_stable_decay", more, lr_warmup_steps=11, lr_scheduler_min_lr_ratio=0.3),
            of("rex", {"lr_scheduler_args": ("rex_alpha=0.2",)}, lr_scheduler_min_lr_ratio=None),
            of("rex", lr_warmup_steps=1),
        ]
    return [*found, *(of(name, lr_warmup_steps=warmup) for name in names for warmup in (None, 0, 6, 0.25))]


def test_every_step_has_the_learning_rate_that_the_trainer_gives_it(trainer: Trainer) -> None:
    wanted = trainings(trainer.version)
    asked = [
        {
            "words": option_words({name: value for name, value in settings_of(each).items() if name in TRIED}),
            "steps": STEPS,
        }
        for each in wanted
    ]
    package = trainer.repo / "src" / "musubi_tuner"

    answers = trainer.ask("dump_rates.py", settings_check_child.__file__, str(package), stdin=json.dumps(asked))

    capabilities = stored(trainer.version)
    for training, rates in zip(wanted, answers, strict=True):
        said = f"{training.lr_scheduler} {training.lr_warmup_steps} {dict(training.options)}"
        assert isinstance(rates, list), f"{said}: {rates}"
        made = factor(training, STEPS, capabilities)
        ours = [training.learning_rate * made(step) for step in range(STEPS)]
        assert ours == pytest.approx(rates, rel=1e-9, abs=1e-15), said

"""What the trainer will be told on a card, before anybody trains: the shipped recipe, adapted to that card alone."""

from __future__ import annotations

from pathlib import Path

from wan_train.base.host import cpus
from wan_train.engine.trainer import has_package
from wan_train.gpu.model import Gpu
from wan_train.recipe import adaptation
from wan_train.recipe.adaptation import Card, Machine
from wan_train.recipe.load import shipped
from wan_train.recipe.model import Recipe
from wan_train.recipe.terms import Task


def recipe_for(task: str) -> Recipe:
    """The shipped recipe of `t2v` or `i2v`; of `both` the first, since hardware rules do not tell them apart."""
    return shipped(Task.I2V if task == "i2v" else Task.T2V)


def adapted(recipe: Recipe, gpu: Gpu, python: Path) -> Recipe:
    """The recipe as a run on this GPU alone would use it; `python` is the trainer's, and may not be there yet."""
    machine = Machine(
        cards=(Card(name=gpu.name, total_bytes=gpu.total_bytes, compute_capability=gpu.compute_capability),),
        cpus=cpus(),
        has_xformers=has_package(python, "xformers"),
        has_flash=has_package(python, "flash_attn"),
        dit_dtype=None,
    )
    return adaptation.adapt(recipe, machine)[0]

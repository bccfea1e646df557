"""Prepares a measurement from a recipe and a dataset: the workload, the levers to try, the trainer's job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wan_train.base.errors import BadInputError
from wan_train.dataset.layout import summary
from wan_train.dataset.model import Inventory
from wan_train.engine.commands import TrainingJob
from wan_train.engine.trainer import Trainer
from wan_train.gpu.model import Gpu
from wan_train.recipe import adaptation
from wan_train.recipe.adaptation import is_blackwell
from wan_train.recipe.levers import settings_moved
from wan_train.recipe.measured import Length, Shape, Workload
from wan_train.recipe.model import Recipe
from wan_train.recipe.terms import Task
from wan_train.run.planner import check_models, find_models, machine_of
from wan_train.run.tuning import buckets_of, length_of, levers_of, workload_of
from wan_train.tune.candidate_data import Pick, Picked, pick
from wan_train.tune.search import Space

_NAME = "tune"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What to try on which workload. The bench fills in the directories of `job`."""

    space: Space
    workload: Workload
    picked: Picked
    job: TrainingJob


def prepare(recipe: Recipe, trainer: Trainer, gpu: Gpu, data: Inventory | Shape, scratch: Path) -> Prepared:
    """Return what to measure for a recipe's first expert. The other expert has the same size.

    `data` is a dataset, or the shape of made-up data. Raise NotReadyError for missing model files, BadInputError for
    clips of unknown length, and what `adapt` raises.
    """
    models = find_models(recipe, trainer.root)
    machine = machine_of(trainer, (gpu,), check_models(models))
    adapted, _ = adaptation.adapt(recipe, machine)
    spec, chosen = adapted.experts[0], recipe.experts[0].sources.keys()
    if isinstance(data, Shape):
        picked, length = Picked(commonest=Pick(shape=data), largest=Pick(shape=data)), Length()
    else:
        counted = summary(data, image_to_video=recipe.task is Task.I2V)
        buckets = buckets_of(counted)
        if buckets is None:
            raise BadInputError(
                "the lengths of these clips are unknown, so nothing can be measured with them",
                hint="Install video support: pip install 'wan-train[video]'\nOr leave --dataset out.",
            )
        picked = pick(data, buckets)
        length = length_of(spec.training, counted, buckets.shapes)
    levers = levers_of(spec.training, trainer, chosen=chosen, blackwell=is_blackwell(gpu.compute_capability))
    return Prepared(
        space=Space(
            guide=settings_moved(spec.training),
            levers=levers,
            may_swap="blocks_to_swap" not in chosen,
            total_bytes=gpu.total_bytes,
            precision=spec.training.mixed_precision,
            length=length,
        ),
        workload=workload_of(
            adapted,
            spec.training,
            commonest=picked.commonest.shape,
            largest=picked.largest.shape,
            batch_size=picked.commonest.batch_size,
        ),
        picked=picked,
        job=TrainingJob(
            trainer=trainer,
            recipe=adapted,
            spec=spec,
            models=models,
            dataset_config=scratch / "dataset.toml",
            accelerate_config=scratch / "accelerate.yaml",
            attempt_dir=scratch,
            output_name=_NAME,
            author=_NAME,
            state_every_epochs=1,
        ),
    )

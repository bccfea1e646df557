"""Making a run: its directory, with everything a supervisor needs."""

from __future__ import annotations

import shutil

from wan_train.base.errors import WanTrainError
from wan_train.base.files import write_whole
from wan_train.base.settings import Settings
from wan_train.engine.commands import ACCELERATE_CONFIG
from wan_train.recipe.load import to_toml
from wan_train.run import sampling
from wan_train.run.directory import RunDirectory, create
from wan_train.run.plan import Plan
from wan_train.run.planner import Prepared, dataset_files, make_plan


def write_run(prepared: Prepared, settings: Settings, *, created: float) -> tuple[RunDirectory, Plan]:
    """A new run directory with everything a supervisor needs. Nothing runs yet.

    `created` is the time the plan was shown with, so that the directory has the name that was shown.
    """
    run = create(settings.runs, prepared.request.answers.title, now=created)
    try:
        plan = make_plan(prepared, run, created=created)
    except WanTrainError:
        run.path.rmdir()
        raise
    try:
        write_inputs(run, plan, prepared)
    except WanTrainError:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    write_whole(run.recipe, to_toml(plan.recipe))
    run.write_plan(plan)
    return run, plan


def write_inputs(run: RunDirectory, plan: Plan, prepared: Prepared) -> None:
    """What the commands of a plan read: the dataset, accelerate's settings, the samples' prompts and pictures."""
    if plan.samples is not None:
        sampling.write(run, plan.samples, prepared.prompts)
    for path, text in dataset_files(prepared, run).items():
        write_whole(path, text)
    write_whole(run.accelerate_config, ACCELERATE_CONFIG)

"""The command of each step and attempt, derived from the plan's data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wan_train.engine import commands
from wan_train.engine.commands import DEVICE_VARIABLE, Command, ModelPaths, TrainingJob
from wan_train.engine.trainer import Trainer
from wan_train.recipe.model import Answers, Recipe
from wan_train.recipe.terms import Expert
from wan_train.run.directory import RunDirectory
from wan_train.run.plan import Devices, Plan, result_name


def training_command(
    *,
    run: RunDirectory,
    trainer: Trainer,
    recipe: Recipe,
    models: ModelPaths,
    answers: Answers,
    expert: Expert,
    state_every_epochs: int,
    attempt_dir: Path,
    env: Mapping[str, str],
    resume_from: Path | None = None,
) -> Command:
    """The command line that trains one expert into `attempt_dir`."""
    job = TrainingJob(
        trainer=trainer,
        recipe=recipe,
        spec=recipe.spec(expert),
        models=models,
        dataset_config=run.dataset_config,
        accelerate_config=run.accelerate_config,
        attempt_dir=attempt_dir,
        output_name=result_name(answers.title, recipe.task, expert, trainer.kind),
        author=answers.author,
        state_every_epochs=state_every_epochs,
        resume_from=resume_from,
    )
    return commands.train(job, env=env)


def for_attempt(plan: Plan, step_id: str, number: int, *, resume_from: Path | None = None) -> Command:
    """The command of any attempt at a step. The first one's is also in the plan, for people to read."""
    step = plan.step(step_id)
    if step.expert is None:
        return step.command
    run = RunDirectory(plan.run_dir)
    return training_command(
        run=run,
        trainer=plan.trainer,
        recipe=plan.recipe,
        models=plan.models,
        answers=plan.answers,
        expert=step.expert,
        state_every_epochs=plan.state_every_epochs,
        attempt_dir=run.attempt(step_id, number).path,
        env=plan.env,
        resume_from=resume_from,
    )


def on_device(command: Command, devices: Devices, gpu_uuid: str | None) -> Command:
    """The command bound to one GPU by UUID: NVML's order of indices is not CUDA's. On a CPU slot it sees no GPU."""
    match devices:
        case Devices.NVML:
            return command.with_env(**{DEVICE_VARIABLE: gpu_uuid or ""})
        case Devices.CPU_SLOTS:
            return command.with_env(**{DEVICE_VARIABLE: ""})

"""The command of each step and attempt, derived from the plan's data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from wan_train.engine import commands
from wan_train.engine.commands import DEVICE_VARIABLE, Command, ModelPaths, TrainingJob
from wan_train.engine.trainer import Trainer
from wan_train.recipe.model import Answers, ExpertSpec, Recipe, changed
from wan_train.run.directory import RunDirectory
from wan_train.run.events import Setting
from wan_train.run.plan import Devices, Plan, Step, StepKind, result_name

CACHING_STEPS: Mapping[StepKind, str] = {
    StepKind.CACHE_LATENTS: "cache-latents",
    StepKind.CACHE_TEXT: "cache-text",
}
"""Their ids."""


def caching_steps(
    run: RunDirectory, trainer: Trainer, recipe: Recipe, *, models: ModelPaths, workers: int, env: Mapping[str, str]
) -> Iterator[Step]:
    """Latents first: they take longer."""
    config = run.dataset_config
    latents = commands.cache_latents(trainer, recipe, models, config, workers=workers, env=env)
    text = commands.cache_text(trainer, models, config, workers=workers, env=env)
    for kind, command in ((StepKind.CACHE_LATENTS, latents), (StepKind.CACHE_TEXT, text)):
        yield Step(id=CACHING_STEPS[kind], kind=kind, command=command)


def training_command(
    *,
    run: RunDirectory,
    trainer: Trainer,
    recipe: Recipe,
    models: ModelPaths,
    answers: Answers,
    spec: ExpertSpec,
    state_every_epochs: int,
    attempt_dir: Path,
    env: Mapping[str, str],
    resume_from: Path | None = None,
    stop_at_step: int | None = None,
    keep_all_checkpoints: bool = False,
) -> Command:
    """The command line that trains one expert into `attempt_dir`."""
    job = TrainingJob(
        trainer=trainer,
        recipe=recipe,
        spec=spec,
        models=models,
        dataset_config=run.dataset_config,
        accelerate_config=run.accelerate_config,
        attempt_dir=attempt_dir,
        output_name=result_name(answers.title, recipe.task, spec.expert, trainer.traits),
        author=answers.author,
        state_every_epochs=state_every_epochs,
        resume_from=resume_from,
        stop_at_step=stop_at_step,
        keep_all_checkpoints=keep_all_checkpoints,
    )
    return commands.train(job, env=env)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSpec:
    """In what an attempt differs from the plan. `changes` are training settings by their recipe names."""

    number: int
    state_every_epochs: int
    total_epochs: int
    changes: Mapping[str, Setting] = field(default_factory=dict)
    resume_from: Path | None = None
    stop_at_step: int | None = None


def for_attempt(plan: Plan, step_id: str, spec: AttemptSpec) -> Command:
    """The command of any attempt at a step. The first one's is also in the plan, for people to read."""
    step = plan.step(step_id)
    if step.expert is None:
        return step.command
    run = RunDirectory(plan.run_dir)
    planned = plan.recipe.spec(step.expert)
    training = changed(planned.training, {"max_train_epochs": spec.total_epochs, **spec.changes})
    return training_command(
        run=run,
        trainer=plan.trainer,
        recipe=plan.recipe,
        models=plan.models,
        answers=plan.answers,
        spec=replace(planned, training=training),
        state_every_epochs=spec.state_every_epochs,
        attempt_dir=run.attempt(step_id, spec.number).path,
        env=plan.env,
        resume_from=spec.resume_from,
        stop_at_step=spec.stop_at_step,
        # The trainer would remove them while no supervisor is there to keep them; wan-train removes the others itself.
        keep_all_checkpoints=plan.keep_every_epochs is not None,
    )


def on_device(command: Command, devices: Devices, gpu_uuid: str | None) -> Command:
    """The command bound to one GPU by UUID: NVML's order of indices is not CUDA's. On a CPU slot it sees no GPU."""
    match devices:
        case Devices.NVML:
            return command.with_env(**{DEVICE_VARIABLE: gpu_uuid or ""})
        case Devices.CPU_SLOTS:
            return command.with_env(**{DEVICE_VARIABLE: ""})

"""The command of each attempt, derived from the plan's data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from wan_train.engine import commands
from wan_train.engine.commands import DEVICE_VARIABLE, Command, TrainingJob
from wan_train.recipe.model import changed
from wan_train.run.directory import RunDirectory
from wan_train.run.events import Setting
from wan_train.run.plan import Devices, Plan, Step, StepKind


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSpec:
    """How an attempt differs from the plan. `changes` are training settings by their recipe names."""

    number: int
    state_every_epochs: int
    total_epochs: int
    """The epochs after which it ends, counted over all attempts."""
    schedule_epochs: int
    """The epochs given to the trainer, so that the learning rate follows the whole schedule."""
    changes: Mapping[str, Setting] = field(default_factory=dict)
    resume_from: Path | None = None
    stop_at_step: int | None = None


def command_of(plan: Plan, step: Step, spec: AttemptSpec | None = None) -> Command:
    """Return the command of an attempt at a step; without `spec`, that of the first attempt."""
    run = RunDirectory(plan.run_dir)
    workers = plan.caching_workers
    match step.kind:
        case StepKind.CACHE_LATENTS:
            return commands.cache_latents(
                plan.trainer, plan.recipe, plan.models, run.dataset_config, workers=workers, env=plan.env
            )
        case StepKind.CACHE_TEXT:
            return commands.cache_text(plan.trainer, plan.models, run.dataset_config, workers=workers, env=plan.env)
        case StepKind.TRAIN:
            return _training_command(plan, step, spec or _first_attempt(plan, step))


def _first_attempt(plan: Plan, step: Step) -> AttemptSpec:
    total = plan.epochs_of(step.expert)
    schedule = plan.schedule_epochs_of(step.expert) if step.expert is not None else total
    return AttemptSpec(
        number=1,
        state_every_epochs=plan.state_every_epochs,
        total_epochs=total,
        schedule_epochs=schedule,
        stop_at_step=plan.steps_of(step.expert) if step.expert is not None and total < schedule else None,
    )


def _training_command(plan: Plan, step: Step, spec: AttemptSpec) -> Command:
    assert step.expert is not None and step.produces is not None, "a training"
    run = RunDirectory(plan.run_dir)
    planned = plan.recipe.spec(step.expert)
    training = changed(planned.training, {"max_train_epochs": spec.schedule_epochs, **spec.changes})
    job = TrainingJob(
        trainer=plan.trainer,
        recipe=plan.recipe,
        spec=replace(planned, training=training),
        models=plan.models,
        dataset_config=run.dataset_config,
        accelerate_config=run.accelerate_config,
        attempt_dir=run.attempt(step.id, spec.number).path,
        output_name=step.produces,
        author=plan.answers.author,
        state_every_epochs=spec.state_every_epochs,
        resume_from=spec.resume_from,
        stop_at_step=spec.stop_at_step,
        # The trainer could remove one while no supervisor is alive to keep it; wan-train removes the others itself.
        keep_all_checkpoints=plan.keep_every_epochs is not None,
    )
    return commands.train(job, env=plan.env)


def on_device(command: Command, devices: Devices, gpu_uuid: str | None) -> Command:
    """Bind the command to one GPU by UUID, as NVML's index order is not CUDA's. On a CPU slot it sees no GPU."""
    match devices:
        case Devices.NVML:
            return command.with_env(**{DEVICE_VARIABLE: gpu_uuid or ""})
        case Devices.CPU_SLOTS:
            return command.with_env(**{DEVICE_VARIABLE: ""})

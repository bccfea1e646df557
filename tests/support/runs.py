"""Plans, histories and views of runs built from a few arguments, for tests of code that reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from wan_train.base.host import ProcessIdentity
from wan_train.cli.options import flag_of
from wan_train.engine.capabilities import Script
from wan_train.engine.commands import ModelPaths
from wan_train.engine.failures import Cause, Diagnosis
from wan_train.engine.trainer import Trainer
from wan_train.gpu.model import Gpu
from wan_train.recipe import adaptation
from wan_train.recipe.adaptation import Card, Machine
from wan_train.recipe.effective import select
from wan_train.recipe.load import override, shipped
from wan_train.recipe.model import Answers, Recipe, changed
from wan_train.recipe.terms import EngineKind, Expert, Task
from wan_train.run.directory import RunDirectory
from wan_train.run.events import (
    EpochEnded,
    Event,
    Exited,
    ResultPlaced,
    RunFinished,
    StepExited,
    StepFailed,
    StepSkipped,
    StepStarted,
    StepStopped,
    StepStopping,
    StepSucceeded,
    SupervisorStarted,
)
from wan_train.run.live import Live
from wan_train.run.plan import (
    CACHE_KINDS,
    CACHING_STEPS,
    DatasetFacts,
    Devices,
    DiskNeed,
    Plan,
    Step,
    StepKind,
    result_name,
)
from wan_train.run.state import JobState, fold_all
from wan_train.views.model import RunView

T0 = 1_763_812_800.0
"""When the tests' runs begin: 2025-11-22 12:00:00 UTC."""

GIB = 1024**3
SUPERVISOR = ProcessIdentity(pid=4242, start_time=1, boot_id="a boot of long ago")
OUT_OF_MEMORY = Diagnosis(
    cause=Cause.OUT_OF_MEMORY,
    meaning="the GPU's memory was not enough",
    advice="Try `--blocks-to-swap 10` (more saves more), a smaller `--resolution`, or a GPU with more memory.",
    evidence="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
)


def make_trainer(engine: EngineKind = EngineKind.MUSUBI) -> Trainer:
    match engine:
        case EngineKind.MUSUBI:
            root = Path("/workspace/musubi-tuner")
            return Trainer(
                kind=engine,
                version="d0a1930",
                commit="d0a193061a23a51c90664282205d753605a641c1",
                python=root / "venv/bin/python",
                root=root,
                scripts={script: f"src/musubi_tuner/{script}" for script in Script},
            )
        case EngineKind.REHEARSAL:
            root = Path("/opt/wan_train/rehearsal")
            return Trainer(
                kind=engine,
                version="rehearsal",
                commit=None,
                python=Path("/opt/venv/bin/python"),
                root=root,
                scripts={script: script.value for script in Script},
            )


def make_recipe(
    task: Task = Task.T2V,
    *,
    epochs: int = 100,
    experts: tuple[Expert, ...] = (Expert.HIGH, Expert.LOW),
    cards: tuple[Card, ...] = (),
) -> tuple[Recipe, tuple[adaptation.Choice, ...]]:
    """Return the shipped recipe adapted to a machine with these cards (by default two RTX 5090)."""
    recipe = override(shipped(task), {"max_train_epochs": epochs}, flag_of=flag_of)
    rtx5090 = Card(name="NVIDIA GeForce RTX 5090", total_bytes=32 * GIB, compute_capability=(12, 0))
    machine = Machine(cards=cards or (rtx5090, rtx5090), cpus=16.0, has_xformers=True, has_flash=False, dit_dtype="F16")
    return adaptation.adapt(select(recipe, experts), machine)


def with_settings(recipe: Recipe, expert: Expert | None = None, **changes: object) -> Recipe:
    """Return the recipe with settings of one expert, or of all, replaced. They have no source."""
    experts = tuple(
        replace(spec, training=changed(spec.training, changes)) if expert in {None, spec.expert} else spec
        for spec in recipe.experts
    )
    return replace(recipe, experts=experts)


def make_plan(
    *,
    title: str = "mylora",
    author: str = "authorName",
    task: Task = Task.T2V,
    engine: EngineKind = EngineKind.MUSUBI,
    experts: tuple[Expert, ...] = (Expert.HIGH, Expert.LOW),
    epochs: int = 100,
    items: int = 24,
    run_dir: Path = Path("/workspace/runs/20251122-120000-mylora"),
    **overrides: Any,
) -> Plan:
    """Return a plan like the planner's, without reading any disk. `overrides` replace fields of the Plan."""
    trainer, answers = make_trainer(engine), Answers(title=title, author=author, dataset="/workspace/pictures")
    recipe, choices = make_recipe(task, epochs=epochs, experts=experts)
    weights = trainer.root / "models"
    models = ModelPaths(
        vae=weights / "vae/wan_2.1_vae.safetensors",
        t5=weights / "text_encoders/models_t5_umt5-xxl-enc-bf16.pth",
        dit={
            expert.value: weights / f"diffusion_models/wan2.2_t2v_{expert.value}_noise_14B_fp16.safetensors"
            for expert in experts
        },
    )
    is_real = engine is EngineKind.MUSUBI
    devices = Devices.NVML if is_real else Devices.CPU_SLOTS
    plan = Plan(
        run_id=run_dir.name,
        created=T0,
        answers=answers,
        recipe=recipe,
        trainer=trainer,
        models=models,
        run_dir=run_dir,
        steps=tuple(_steps(trainer, recipe, answers)),
        devices=devices,
        gpu_uuids=tuple(gpu.uuid for gpu in make_gpus(devices=devices)),
        dataset=DatasetFacts(
            source=Path("/workspace/pictures/dataset.toml"),
            items=items,
            captions=items,
            repeats=items,
            batches_per_epoch=items,
            cached_items={"/workspace/pictures/cache": items},
        ),
        state_every_epochs=4,
        keep_every_epochs=None,
        choices=choices,
        disk=DiskNeed(caches=40_000_000, states=7_400_000_000, loras=1_200_000_000),
    )
    return replace(plan, **overrides)


def make_gpus(*, devices: Devices = Devices.NVML, count: int = 2, used: tuple[int, ...] = ()) -> tuple[Gpu, ...]:
    """Return RTX 5090s of 32 GiB, idle except for `used` GiB each, or CPU slots."""
    if devices is Devices.CPU_SLOTS:
        return tuple(
            Gpu(index=index, uuid=f"cpu-slot-{index}", name="CPU slot", total_bytes=0, used_bytes=0, pids=())
            for index in range(count)
        )
    return tuple(
        Gpu(
            index=index,
            uuid=f"GPU-{index}",
            name="NVIDIA GeForce RTX 5090",
            total_bytes=32 * GIB,
            used_bytes=(used[index] if index < len(used) else 0) * GIB,
            utilization=98 if index < len(used) and used[index] else 0,
            temperature=71 if index < len(used) and used[index] else 34,
            compute_capability=(12, 0),
        )
        for index in range(count)
    )


def events_of(
    plan: Plan,
    jobs: Mapping[str, JobState],
    *,
    gpus: Mapping[str, int] | None = None,
    epochs: Mapping[str, int] | None = None,
    diagnosis: Diagnosis = OUT_OF_MEMORY,
    exit_code: int | None = None,
) -> list[Event]:
    """Return a history that leaves each named step in the given state. Other steps have not begun.

    A started step begins 10 s after the previous one. Caching takes 40 s, training an hour. `gpus` maps steps to GPU
    indices (default 0), `epochs` maps steps to completed epochs. `exit_code` ends the run.
    """
    events: list[Event] = [SupervisorStarted(at=T0, identity=SUPERVISOR)]
    at = T0
    for step in plan.steps:
        if step.id in jobs:
            at += 10
            index = (gpus or {}).get(step.id, 0)
            events += _history(
                plan, step, jobs[step.id], at=at, gpu=index, epochs=(epochs or {}).get(step.id, 0), diagnosis=diagnosis
            )
    events.sort(key=lambda event: event.at)
    if exit_code is not None:
        events.append(RunFinished(at=max(event.at for event in events) + 1, exit_code=exit_code))
    return events


def make_view(
    plan: Plan,
    events: list[Event],
    *,
    live: Live | None = None,
    supervisor_alive: bool = True,
    tails: Mapping[str, tuple[str, ...]] | None = None,
) -> RunView:
    return RunView(
        run=RunDirectory(plan.run_dir),
        plan=plan,
        state=fold_all(plan, events),
        live=live,
        supervisor_alive=supervisor_alive,
        tails=tails or {},
    )


def _steps(trainer: Trainer, recipe: Recipe, answers: Answers) -> Iterator[Step]:
    caching = tuple(Step(id=CACHING_STEPS[kind], kind=kind) for kind in CACHE_KINDS)
    yield from caching
    for spec in recipe.experts:
        yield Step(
            id=f"train-{spec.expert.value}",
            kind=StepKind.TRAIN,
            needs=tuple(step.id for step in caching),
            expert=spec.expert,
            produces=result_name(answers.title, recipe.task, spec.expert, trainer.traits),
        )


def _history(
    plan: Plan, step: Step, state: JobState, *, at: float, gpu: int, epochs: int, diagnosis: Diagnosis
) -> Iterator[Event]:
    begun_never = {JobState.WAITING, JobState.SKIPPED, JobState.BACKOFF}
    if state is JobState.SKIPPED:
        yield StepSkipped(at=at, step=step.id, reason=f"{(*step.needs, step.id)[0]} failed")
    if state in begun_never:
        return
    label = f"CPU slot {gpu}" if plan.devices is Devices.CPU_SLOTS else f"GPU {gpu}"
    uuid = f"cpu-slot-{gpu}" if plan.devices is Devices.CPU_SLOTS else f"GPU-{gpu}"
    identity = replace(SUPERVISOR, pid=5000 + gpu)
    total = plan.epochs_of(step.expert) if step.kind is StepKind.TRAIN else None
    yield StepStarted(
        at=at, step=step.id, attempt=1, gpu_uuid=uuid, gpu_label=label, identity=identity, total_epochs=total
    )
    for epoch in range(1, epochs + 1):
        yield EpochEnded(at=at + 30 * epoch, step=step.id, attempt=1, epoch=epoch, loss=0.12 - 0.0005 * epoch)
    end = at + (3600 if step.kind is StepKind.TRAIN else 40)
    if state in {JobState.STOPPING, JobState.STOPPED}:
        yield StepStopping(at=end, step=step.id, attempt=1)
    if state in {JobState.RUNNING, JobState.STOPPING}:
        return
    code = 0 if state is JobState.SUCCEEDED else 1
    yield StepExited(at=end, step=step.id, attempt=1, exit=Exited(code=code))
    match state:
        case JobState.SUCCEEDED:
            if step.produces is not None:
                path = str(plan.run_dir / f"{step.produces}.safetensors")
                yield ResultPlaced(at=end, step=step.id, path=path, bytes=153_400_000, sha256="ab" * 32)
            loss = 0.0707 if step.kind is StepKind.TRAIN else None
            yield StepSucceeded(at=end, step=step.id, attempt=1, loss=loss)
        case JobState.FAILED:
            yield StepFailed(at=end, step=step.id, attempt=1, diagnosis=diagnosis)
        case _:
            yield StepStopped(at=end, step=step.id)

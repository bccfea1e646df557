"""What a run will do, before anything happens: a screen to confirm, and the exact commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from wan_train.dataset.summary import DatasetSummary
from wan_train.recipe.model import format_number
from wan_train.recipe.terms import EngineKind, Expert, Task
from wan_train.run.plan import Devices, Plan, Step, StepKind
from wan_train.views import words
from wan_train.views.lines import Line, Row, Span, line, plain, table, to_rich
from wan_train.views.model import GpuNow
from wan_train.views.results import result_lines, result_text

if TYPE_CHECKING:
    from rich.console import RenderableType

_MOST_NOTES = 8
_TEXT_WIDTH = 100


def plan_lines(
    plan: Plan,
    gpus: Sequence[GpuNow],
    *,
    width: int,
    verbose: bool = False,
    dataset: DatasetSummary | None = None,
    disk_free_bytes: int | None = None,
) -> RenderableType:
    """What a run will do, for the person who is about to confirm it.

    `dataset` adds resolutions and batch sizes, `disk_free_bytes` what the run directory's disk has free; `verbose` adds
    what the commands have beyond the guide's.
    """
    from rich.console import Group  # noqa: PLC0415  the plain text must work without it

    lines = _plan(plan, gpus, width, verbose=verbose, dataset=dataset, disk_free_bytes=disk_free_bytes)
    return Group(*(to_rich(spans, width) for spans in lines))


def plan_text(plan: Plan) -> str:
    """The plan for `--dry-run`: the summary, then every step's exact command with its additions and their reasons."""
    return plain(_plan(plan, (), _TEXT_WIDTH)) + "".join(_step_text(plan, step) for step in plan.steps)


def _plan(
    plan: Plan,
    gpus: Sequence[GpuNow],
    width: int,
    *,
    verbose: bool = False,
    dataset: DatasetSummary | None = None,
    disk_free_bytes: int | None = None,
) -> Iterator[Line]:
    yield line(Span(words.safe(plan.answers.title), "bold"), f" by {words.safe(plan.answers.author)}")
    if plan.trainer.kind is EngineKind.REHEARSAL:
        yield line(Span("A rehearsal on the embedded tiny trainer: the LoRAs are no real ones.", "yellow"))
    rows = [
        Row(label="task", value=_task(plan)),
        *_dataset(plan, dataset),
        *_experts(plan),
        *_models(plan),
        Row(label="trainer", value=_trainer(plan)),
        *_gpus(plan, gpus),
        *_steps(plan, dataset),
        Row(label="saved", value=_saved(plan)),
        *_disk(plan, disk_free_bytes),
        *_choices(plan),
        Row(label="learning rate", value=learning_rate(plan)),
        *_outputs(plan),
    ]
    yield from table(rows, width)
    if verbose:
        yield from _additions(plan, width)
    yield from _notes(plan, width)


def _task(plan: Plan) -> str:
    match plan.recipe.task:
        case Task.T2V:
            kind = "text to video"
        case Task.I2V:
            kind = "image to video"
    return f"{plan.recipe.task.value} ({kind}), recipe {words.safe(plan.recipe.name)}"


def _dataset(plan: Plan, dataset: DatasetSummary | None) -> Iterator[Row]:
    facts = plan.dataset
    yield Row(label="dataset", value=words.safe(facts.source))
    counted = [words.count(facts.items, "item"), words.count(facts.captions, "caption")]
    if facts.repeats is not None and facts.repeats != facts.items:
        counted.append(f"{facts.repeats:,} with repeats")
    if dataset is not None:
        sizes_ = dict.fromkeys(f"{w}x{h}" for w, h in (subset.resolution for subset in dataset.subsets))
        buckets = sum(len(subset.buckets) for subset in dataset.subsets)
        counted.append(f"resolution {', '.join(sizes_)} in {words.count(buckets, 'bucket')}")
    yield Row(value=", ".join(counted))


def _experts(plan: Plan) -> Iterator[Row]:
    for number, spec in enumerate(plan.recipe.experts):
        name = words.pad(f"{spec.expert.value}-noise", 11)
        yield Row(
            label="" if number else "experts", value=f"{name} timesteps {spec.min_timestep} to {spec.max_timestep}"
        )


def _models(plan: Plan) -> Iterator[Row]:
    models = plan.models
    named = [
        (f"DiT {name}", path) for name, path in models.dit.items() if name in {s.expert for s in plan.recipe.experts}
    ]
    named += [("VAE", models.vae), ("T5", models.t5)]
    for number, (name, path) in enumerate(named):
        yield Row(label="" if number else "models", value=f"{words.pad(name, 8)} {words.safe(path)}")


def _trainer(plan: Plan) -> str:
    trainer = plan.trainer
    if trainer.kind is EngineKind.REHEARSAL:
        return "embedded rehearsal trainer"
    return f"musubi-tuner {words.safe(trainer.version)} in {words.safe(trainer.root)}"


def _gpus(plan: Plan, gpus: Sequence[GpuNow]) -> Iterator[Row]:
    if not gpus:
        many = len(plan.gpu_uuids)
        what = words.count(many, "GPU" if plan.devices is Devices.NVML else "CPU slot")
        yield Row(label="GPUs", value=f"{what}, as {'they become' if many > 1 else 'it becomes'} free")
        return
    label_width = max(words.columns(gpu.label) for gpu in gpus)
    for number, gpu in enumerate(gpus):
        parts = [words.pad(gpu.label, label_width)]
        if plan.devices is Devices.NVML:
            parts += [words.safe(gpu.name), words.gpu_memory(gpu.used_bytes, gpu.total_bytes) + " used"]
        busy = gpu.busy_because
        parts.append("free" if busy is None else f"busy: {words.safe(busy)}")
        yield Row(label="" if number else "GPUs", value="  ".join(parts), style="" if busy is None else "yellow")
    free = sum(gpu.busy_because is None for gpu in gpus)
    yield Row(value=_schedule(len(plan.recipe.experts), free, [gpu.label for gpu in gpus]))


def _schedule(experts: int, free: int, labels: Sequence[str]) -> str:
    if experts == 1:
        return "it starts as soon as caching is done" if free else "it waits until a GPU is free"
    match free:
        case 0:
            return "none is free now: the run waits, and starts by itself"
        case 1 if len(labels) == 1:
            return "one GPU: the experts run in turn"
        case 1:
            return "one is free: the experts run in turn, unless another becomes free"
        case _:
            return "both experts run at the same time"


def _steps(plan: Plan, dataset: DatasetSummary | None) -> Iterator[Row]:
    facts, epochs, total = plan.dataset, plan.epochs, plan.steps_per_expert
    if total is None or facts.repeats is None or facts.batches_per_epoch is None:
        yield Row(label="steps", value=f"{epochs} epochs; how many steps is known once the videos are cached")
        return
    accumulation = plan.recipe.training.gradient_accumulation_steps
    each = f"{_batches(plan, dataset)} = {words.count(facts.batches_per_epoch, 'batch', 'batches')} an epoch"
    text = f"{each}; x {words.count(epochs, 'epoch')}"
    text += f" / {accumulation} accumulated" if accumulation > 1 else ""
    text += f" = {words.count(total, 'step')}"
    experts = [spec.expert for spec in plan.recipe.experts]
    yield Row(label="steps", value=f"{text} for {_each(experts)}")


def _batches(plan: Plan, dataset: DatasetSummary | None) -> str:
    facts = plan.dataset
    assert facts.repeats is not None, "asked only where it is known"  # noqa: S101  an invariant of the caller
    times, rest = divmod(facts.repeats, facts.items) if facts.items else (0, 1)
    items = words.count(facts.items, "item")
    start = f"{items} x {words.count(times, 'repeat')}" if not rest else f"{items}, {facts.repeats:,} with repeats,"
    batch_sizes = {subset.batch_size for subset in dataset.subsets} if dataset is not None else set[int]()
    if len(batch_sizes) == 1:
        return f"{start} / batch {batch_sizes.pop()}"
    return f"{start} / batch 1" if facts.batches_per_epoch == facts.repeats else f"{start} in batches of one size"


def _each(experts: Sequence[Expert]) -> str:
    return "each of both experts" if len(experts) > 1 else f"the {experts[0].value}-noise expert"


def _saved(plan: Plan) -> str:
    text = f"a state to resume from every {words.count(plan.state_every_epochs, 'epoch')}"
    kept = plan.keep_every_epochs
    return f"{text}; a LoRA kept every {words.count(kept, 'epoch')}" if kept else f"{text}; one LoRA at the end"


def _disk(plan: Plan, free: int | None) -> Iterator[Row]:
    need = plan.disk
    text = (
        f"at most {words.file_size(need.total)}: caches {words.file_size(need.caches)}, "
        f"states {words.file_size(need.states)}, LoRAs {words.file_size(need.loras)}"
    )
    low = free is not None and free < need.total
    yield Row(
        label="disk",
        value=text if free is None else f"{text}; {words.file_size(free)} free",
        style="yellow" if low else "",
    )


def _choices(plan: Plan) -> Iterator[Row]:
    name_width = max((len(choice.setting) for choice in plan.choices), default=0)
    for number, choice in enumerate(plan.choices):
        value = f"{words.pad(choice.setting, name_width)}  {words.safe(choice.value)}: {words.safe(choice.reason)}"
        yield Row(label="" if number else "settings", value=value)


def learning_rate(plan: Plan) -> str:
    """The true curve of the learning rate. A polynomial one ends at 1e-7 whatever the minimum ratio says.

    Source: transformers.get_polynomial_decay_schedule_with_warmup, whose lr_end neither trainer version sets.
    """
    training = plan.recipe.training
    start = format_number(training.learning_rate)
    if training.lr_scheduler != "polynomial":
        return f"{start}, {words.safe(training.lr_scheduler)}"
    text = f"{start}, falling to 1e-7 (polynomial, power {format_number(training.lr_scheduler_power)})"
    ratio = training.lr_scheduler_min_lr_ratio
    return text if ratio is None else f"{text}; lr_scheduler_min_lr_ratio {format_number(ratio)} has no effect on it"


def _outputs(plan: Plan) -> Iterator[Row]:
    yield Row(label="run", value=words.safe(plan.run_dir))
    names = [step.produces for step in plan.steps if step.produces is not None]
    for number, name in enumerate(names):
        yield Row(label="" if number else "result", value=words.safe(f"{name}.safetensors"), style="bold")


def _additions(plan: Plan, width: int) -> Iterator[Line]:
    yield line()
    yield line(Span("Beyond the guide's own commands", "bold"))
    seen: set[tuple[str, str]] = set()
    rows = []
    for step in plan.steps:
        for addition in step.command.additions:
            # Both experts have the same additions but for their directories.
            what = addition.what.replace(step.id, "STEP")
            if (what, addition.reason) not in seen:
                seen.add((what, addition.reason))
                rows += [
                    Row(value=words.safe(addition.what), style="bold"),
                    Row(value="  " + words.safe(addition.reason)),
                ]
    yield from table(rows, width, indent=0)


def _notes(plan: Plan, width: int) -> Iterator[Line]:
    notes = plan.dataset.notes
    if not notes:
        return
    yield line()
    for note in notes[:_MOST_NOTES]:
        for number, piece in enumerate(words.wrap(words.safe(note), width - 2)):
            yield line(Span("! " if number == 0 else "  ", "yellow"), Span(piece, "yellow"))
    if len(notes) > _MOST_NOTES:
        yield line(Span(f"  and {words.count(len(notes) - _MOST_NOTES, 'more warning')}", "yellow"))


_HEADINGS = {
    StepKind.CACHE_LATENTS: "encode the pictures (latent caches)",
    StepKind.CACHE_TEXT: "encode the captions (text-encoder caches)",
    StepKind.TRAIN: "train",
}


def _step_text(plan: Plan, step: Step) -> str:
    what = _HEADINGS[step.kind]
    what += f" the {step.expert.value}-noise expert" if step.expert is not None else ""
    after = f", after {_together(step.needs)}" if step.needs else ""
    on = ", on one GPU" if step.gpu_need and plan.devices is Devices.NVML else ""
    lines = [
        "",
        f"# {words.safe(step.id)}: {what}{after}{on}",
        f"# in {words.safe(step.command.cwd)}",
        step.command.shell(),
    ]
    if step.command.additions:
        lines.append("# beyond the guide's own command:")
    lines += [f"#   {words.safe(addition.what)}: {words.safe(addition.reason)}" for addition in step.command.additions]
    return "\n".join(lines) + "\n"


def _together(parts: Sequence[str]) -> str:
    return " and ".join(words.safe(part) for part in parts)


__all__ = ["GpuNow", "learning_rate", "plan_lines", "plan_text", "result_lines", "result_text"]

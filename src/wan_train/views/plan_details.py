"""Everything that a plan says, for `d` at the last question and for `--dry-run`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from wan_train.dataset.counts import DatasetSummary
from wan_train.engine import schedules
from wan_train.engine.schedules import schedule_of
from wan_train.recipe.adaptation import AS_IN_RECIPE, Choice
from wan_train.recipe.effective import agreed, effective
from wan_train.recipe.model import ExpertSpec, Training, format_number
from wan_train.recipe.terms import EngineKind, Task
from wan_train.run.plan import Devices, Plan, StepKind
from wan_train.views import formatting
from wan_train.views.lines import Line, Row, Span, line, table
from wan_train.views.model import GpuNow

_MOST_NOTES = 40


def detail_lines(
    plan: Plan,
    gpus: Sequence[GpuNow],
    width: int,
    *,
    dataset: DatasetSummary | None = None,
    disk_free_bytes: int | None = None,
) -> Iterator[Line]:
    """The whole plan, and what its commands have beyond the guide's."""
    rows = [
        Row(label="task", value=_task(plan)),
        *_dataset(plan, dataset),
        *_caches(plan),
        *_experts(plan),
        *_models(plan),
        Row(label="trainer", value=_trainer(plan)),
        *_gpus(plan, gpus),
        *_steps(plan, dataset),
        Row(label="saves", value=_saved(plan)),
        *_samples(plan),
        *_disk(plan, disk_free_bytes),
        *_choices(plan),
        *(Row(label="" if number else "learning rate", value=text) for number, text in enumerate(learning_rates(plan))),
        *(Row(label="" if number else "LoRA", value=text) for number, text in enumerate(_loras(plan))),
        *_options(plan),
        *_outputs(plan),
    ]
    yield from table(rows, width)
    yield from _additions(plan, width)
    yield from _notes(plan, width)


def _task(plan: Plan) -> str:
    match plan.recipe.task:
        case Task.T2V:
            kind = "text to video"
        case Task.I2V:
            kind = "image to video"
    return f"{plan.recipe.task.value} ({kind}), recipe {formatting.safe(plan.recipe.name)}"


def _dataset(plan: Plan, dataset: DatasetSummary | None) -> Iterator[Row]:
    facts = plan.dataset
    yield Row(label="dataset", value=formatting.safe(facts.source))
    counted = [formatting.count(facts.items, "item"), formatting.count(facts.captions, "caption")]
    if facts.repeats is not None and facts.repeats != facts.items:
        counted.append(f"{facts.repeats:,} with repeats")
    if dataset is not None:
        sizes_ = dict.fromkeys(f"{w}x{h}" for w, h in (subset.resolution for subset in dataset.subsets))
        buckets = sum(len(subset.buckets) for subset in dataset.subsets)
        counted.append(f"resolution {', '.join(sizes_)} in {formatting.count(buckets, 'bucket')}")
    yield Row(value=", ".join(counted))


def _caches(plan: Plan) -> Iterator[Row]:
    """What there is to encode; nothing is said of plans that were made before it was looked at."""
    label = "caches"
    names = {StepKind.CACHE_LATENTS: "latents", StepKind.CACHE_TEXT: "text"}
    for step in plan.steps:
        need = plan.dataset.caches.get(step.id)
        if need is None:
            continue
        text = f"{formatting.pad(names[step.kind], 8)} {need.make:,} of {need.items:,} to make"
        if not need.make:
            text = f"{formatting.pad(names[step.kind], 8)} up to date: {need.items:,} of {need.items:,}"
        if need.reasons:
            text += f" ({formatting.reasons(need.reasons)})"
        yield Row(label=label, value=text)
        label = ""


def _experts(plan: Plan) -> Iterator[Row]:
    for number, spec in enumerate(plan.recipe.experts):
        name = formatting.pad(f"{spec.expert.value}-noise", 11)
        yield Row(
            label="" if number else "experts", value=f"{name} timesteps {spec.min_timestep} to {spec.max_timestep}"
        )


def _models(plan: Plan) -> Iterator[Row]:
    models = plan.models
    named = {f"DiT {spec.expert.value}": models.dit[spec.expert.value] for spec in plan.recipe.experts}
    named |= {"VAE": models.vae, "T5": models.t5}
    folder = os.path.commonpath([path.parent for path in named.values()])
    # A folder that all of them share is worth saying once; "/" is not.
    shared = folder if len(folder) > 1 else ""
    if shared:
        yield Row(label="models", value=f"in {formatting.safe(shared)}")
    for number, (name, path) in enumerate(named.items()):
        shown = path.relative_to(shared) if shared else path
        yield Row(
            label="" if number or shared else "models", value=f"{formatting.pad(name, 8)} {formatting.safe(shown)}"
        )


def _trainer(plan: Plan) -> str:
    trainer = plan.trainer
    if trainer.kind is EngineKind.REHEARSAL:
        return "embedded rehearsal trainer"
    return f"musubi-tuner {formatting.safe(trainer.version)} in {formatting.safe(trainer.root)}"


def _gpus(plan: Plan, gpus: Sequence[GpuNow]) -> Iterator[Row]:
    if not gpus:
        many = len(plan.gpu_uuids)
        what = formatting.count(many, "GPU" if plan.devices is Devices.NVML else "CPU slot")
        yield Row(label="GPUs", value=f"{what}, as {'they become' if many > 1 else 'it becomes'} free")
        return
    label_width = max(formatting.columns(gpu.label) for gpu in gpus)
    for number, gpu in enumerate(gpus):
        parts = [formatting.pad(gpu.label, label_width)]
        if plan.devices is Devices.NVML:
            parts += [formatting.gpu_name(gpu.name), formatting.gpu_memory(gpu.used_bytes, gpu.total_bytes) + " used"]
        busy = gpu.busy_because
        parts.append("free" if busy is None else f"busy: {formatting.safe(busy)}")
        yield Row(label="" if number else "GPUs", value="  ".join(parts), style="" if busy is None else "yellow")
    free = sum(gpu.busy_because is None for gpu in gpus)
    yield Row(value=_schedule(len(plan.recipe.experts), free, [gpu.label for gpu in gpus]))


def _schedule(experts: int, free: int, labels: Sequence[str]) -> str:
    if experts == 1:
        return "it starts as soon as caching is done" if free else "it waits until a GPU is free"
    match free:
        case 0:
            return "none is free now: the run waits and starts by itself"
        case 1 if len(labels) == 1:
            return "one GPU: the experts run in turn"
        case 1:
            return "one is free: the experts run in turn, unless another becomes free"
        case _:
            return "both experts run at the same time"


def _steps(plan: Plan, dataset: DatasetSummary | None) -> Iterator[Row]:
    for number, (expert, text) in enumerate(agreed(plan.recipe, lambda spec: _steps_of(plan, dataset, spec))):
        alone = plan.recipe.experts[0].expert if len(plan.recipe.experts) == 1 else expert
        of_whom = f" for the {alone.value}-noise expert" if alone is not None else " for each expert"
        is_known = plan.dataset.repeats is not None and plan.dataset.batches_per_epoch is not None
        yield Row(label="" if number else "steps", value=f"{text}{of_whom if is_known or expert is not None else ''}")


def _steps_of(plan: Plan, dataset: DatasetSummary | None, spec: ExpertSpec) -> str:
    facts, epochs, total = plan.dataset, spec.training.max_train_epochs, plan.steps_of(spec.expert)
    if total is None or facts.repeats is None or facts.batches_per_epoch is None:
        return f"{formatting.count(epochs, 'epoch')}; how many steps is known once the videos are cached"
    accumulation = spec.training.gradient_accumulation_steps
    accumulated = f" / {accumulation} accumulated" if accumulation > 1 else ""
    batches = _batches(plan, dataset)
    return f"{batches} x {formatting.count(epochs, 'epoch')}{accumulated} = {formatting.count(total, 'step')}"


def _batches(plan: Plan, dataset: DatasetSummary | None) -> str:
    """What one epoch is made of: `24 items x 2 repeats / batch 1`; where batches do not fill up, how many there are."""
    facts = plan.dataset
    seen, batches = facts.repeats or 0, facts.batches_per_epoch or 0
    times, rest = divmod(seen, facts.items) if facts.items else (0, 1)
    items = formatting.count(facts.items, "item")
    start = f"{items} ({seen:,} with repeats)" if rest else f"{items} x {formatting.count(times, 'repeat')}"
    if batches == seen:
        return f"{start} / batch 1"
    batch_sizes = {subset.batch_size for subset in dataset.subsets} if dataset is not None else set[int]()
    size = batch_sizes.pop() if len(batch_sizes) == 1 else None
    if size is not None and batches * size == seen:
        return f"{start} / batch {size}"
    upto = f" of at most {size}" if size is not None else " of one bucket each"
    return f"{start} in {formatting.count(batches, 'batch', 'batches')}{upto}"


def _saved(plan: Plan) -> str:
    text = f"a checkpoint to resume from every {formatting.count(plan.state_every_epochs, 'epoch')}"
    kept = plan.keep_every_epochs
    return f"{text}; a LoRA kept every {formatting.count(kept, 'epoch')}" if kept else f"{text}; one LoRA at the end"


def _samples(plan: Plan) -> Iterator[Row]:
    """What samples are made and what they cost; how long they take depends on the GPU and is not known."""
    samples = plan.samples
    if samples is None:
        return
    made = len(samples.prompts)
    first_round = 1 if samples.at_first else 0
    first = " and before the first step" if samples.at_first else ""
    often = "epoch" if samples.every_epochs == 1 else f"{samples.every_epochs} epochs"
    sizes = ", ".join(dict.fromkeys(f"{prompt.width}x{prompt.height}" for prompt in samples.prompts))
    alike = agreed(
        plan.recipe, lambda spec: f"{made * (spec.training.max_train_epochs // samples.every_epochs + first_round):,}"
    )
    whose = " of each expert" if len(plan.recipe.experts) > 1 else ""
    counts = [f"{text} of the {expert.value}-noise expert" if expert else f"{text}{whose}" for expert, text in alike]
    yield Row(
        label="samples",
        value=f"{formatting.count(made, 'prompt')} every {often}{first}: {' and '.join(counts)}, {sizes}",
    )
    yield Row(
        value="each costs GPU time in which nothing is trained; T5 is loaded onto the GPU once more, "
        "the VAE for each sample",
    )


def _disk(plan: Plan, free: int | None) -> Iterator[Row]:
    need = plan.disk
    text = (
        f"at most {formatting.file_size(need.total)}: caches {formatting.file_size(need.caches)}, "
        f"states {formatting.file_size(need.states)}, LoRAs {formatting.file_size(need.loras)}"
    )
    low = free is not None and free < need.total
    yield Row(
        label="disk",
        value=text if free is None else f"{text}; {formatting.file_size(free)} free",
        style="yellow" if low else "",
    )


def _choices(plan: Plan) -> Iterator[Row]:
    usual = [choice for choice in plan.choices if choice.reason == AS_IN_RECIPE]
    rows = [
        f"{choice_name(choice)} {formatting.safe(choice.value)}: {formatting.safe(choice.reason)}"
        for choice in plan.choices
        if choice.reason != AS_IN_RECIPE
    ]
    if usual:
        rows.append(
            ", ".join(f"{choice_name(choice)} {formatting.safe(choice.value)}" for choice in usual)
            + f": {AS_IN_RECIPE}"
        )
    for number, value in enumerate(rows):
        yield Row(label="" if number else "settings", value=value)


def choice_name(choice: Choice) -> str:
    return choice.setting if choice.expert is None else f"{choice.setting} ({choice.expert.value})"


def _options(plan: Plan) -> Iterator[Row]:
    """What the trainer is told beyond the settings that every recipe has, and by whom."""
    names = {name for spec in plan.recipe.experts for name in spec.training.options}
    rows = [row for row in effective([plan.recipe]) if row.name in names and row.values[0] is not None]
    for number, row in enumerate(rows):
        by = f" ({formatting.safe(row.sources[0])})" if row.sources[0] is not None else ""
        yield Row(label="" if number else "options", value=formatting.safe(f"{row.label} {row.values[0]}") + by)


def _loras(plan: Plan) -> list[str]:
    """Rank, alpha and what they continue from, for each expert where they differ."""
    told = agreed(plan.recipe, lambda spec: _lora(spec.training))
    return [text if expert is None else f"{expert.value}-noise {text}" for expert, text in told]


def _lora(training: Training) -> str:
    text = f"rank {training.network_dim}, alpha {format_number(training.network_alpha)}"
    return text if training.network_weights is None else f"{text}, from {formatting.safe(training.network_weights)}"


def learning_rates(plan: Plan) -> list[str]:
    """The true curve of the learning rate, for each expert where they differ."""
    told = agreed(plan.recipe, lambda spec: _learning_rate(spec.training))
    return [text if expert is None else f"{expert.value}-noise {text}" for expert, text in told]


def rate(training: Training) -> str:
    """The learning rate in few words: where it begins, where a polynomial one ends, who decides in between."""
    start, schedule = format_number(training.learning_rate), schedule_of(training)
    if schedule != schedules.POLYNOMIAL:
        return f"{start} ({formatting.safe(schedule)})"
    return f"{start}, falling to {format_number(schedules.polynomial_end(training))} ({schedule})"


def _learning_rate(training: Training) -> str:
    text, ratio = rate(training), training.lr_scheduler_min_lr_ratio
    if schedule_of(training) != schedules.POLYNOMIAL:
        return text
    text = f"{text.removesuffix(')')}, power {format_number(training.lr_scheduler_power)})"
    return text if ratio is None else f"{text}; lr_scheduler_min_lr_ratio {format_number(ratio)} has no effect on it"


def _outputs(plan: Plan) -> Iterator[Row]:
    yield Row(label="run", value=formatting.safe(plan.run_dir))
    names = [step.produces for step in plan.steps if step.produces is not None]
    for number, name in enumerate(names):
        yield Row(label="" if number else "result", value=formatting.safe(f"{name}.safetensors"), style="bold")


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
                    Row(value=formatting.safe(addition.what), style="bold"),
                    Row(value="  " + formatting.safe(addition.reason)),
                ]
    yield from table(rows, width, indent=0)


def _notes(plan: Plan, width: int) -> Iterator[Line]:
    notes = plan.dataset.notes
    if not notes:
        return
    yield line()
    for note in notes[:_MOST_NOTES]:
        for number, piece in enumerate(formatting.wrap(formatting.safe(note), width - 2)):
            yield line(Span("! " if number == 0 else "  ", "yellow"), Span(piece, "yellow"))
    if len(notes) > _MOST_NOTES:
        yield line(Span(f"  and {formatting.count(len(notes) - _MOST_NOTES, 'more warning')}", "yellow"))

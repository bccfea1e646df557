"""Everything about a plan: the details for `d` at the last question, and the text of `--dry-run` with commands."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from wan_train.base.text import redact
from wan_train.base.units import count, file_size
from wan_train.dataset.layout import DatasetSummary, SubsetSummary
from wan_train.engine import schedule as schedules
from wan_train.engine.commands import one_option_a_line
from wan_train.engine.schedule import schedule_of
from wan_train.recipe.adaptation import AS_IN_RECIPE
from wan_train.recipe.effective import agreed, effective
from wan_train.recipe.model import ExpertSpec, Training, format_number
from wan_train.run.plan import Devices, Plan, Step, StepKind
from wan_train.run.step_commands import command_of
from wan_train.views.formatting import (
    columns,
    expert_name,
    gpu_memory,
    gpu_name,
    pad,
    reasons,
    safe,
    task_name,
)
from wan_train.views.lines import Line, Row, Screenful, Span, labelled, line, plain, table, wrapped
from wan_train.views.model import GpuNow
from wan_train.views.summary import (
    AtStart,
    choice_text,
    device,
    epochs_text,
    learning_rate,
    per_expert,
    sample_times,
    summary_lines,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

_TEXT_WIDTH = 80
_MOST_NOTES = 40
_ABOUT_COMMANDS = """
# The commands below read files that only a run writes. For a script that runs by itself:
#   the same command with --dry-run --script train.sh
"""
_CACHES = {StepKind.CACHE_LATENTS: "latents", StepKind.CACHE_TEXT: "text"}
_HEADINGS = {
    StepKind.CACHE_LATENTS: "encode the pictures (latent caches)",
    StepKind.CACHE_TEXT: "encode the captions (text-encoder caches)",
    StepKind.TRAIN: "train",
}


def plan_details(plan: Plan, now: AtStart | None) -> RenderableType:
    """What the summary leaves out, and the options that the guide's commands do not have."""

    def lines(width: int) -> Iterator[Line]:
        yield from _details(plan, now or AtStart(), width)
        yield from _additions(plan, width)
        yield from _notes(plan, width)

    return Screenful(lines)


def plan_text(plan: Plan, now: AtStart) -> str:
    """Summary, details, and the exact command of every step with its additions and reasons."""
    width = _TEXT_WIDTH
    lines = [*summary_lines(plan, now, width), line(), *_details(plan, now, width), *_notes(plan, width)]
    return plain(lines) + _ABOUT_COMMANDS + "".join(_step_text(plan, step) for step in plan.steps)


def _details(plan: Plan, now: AtStart, width: int) -> Iterator[Line]:
    rows = [
        Row(label="Task", value=f"{task_name(plan.recipe.task)}, recipe {safe(plan.recipe.name)}"),
        Row(label="Dataset", value=safe(plan.dataset.source), whole=True),
        *_caches(plan),
        *labelled("Experts", map(_timesteps, plan.recipe.experts)),
        *_models(plan),
        _trainer(plan),
        *_gpus(plan, now.gpus),
        *labelled("Steps", _steps(plan, now.dataset)),
        *_samples(plan),
        _disk(plan),
        *labelled("Settings", _choices(plan)),
        *labelled("Learning rate", learning_rates(plan)),
        *_continued(plan),
        *labelled("Options", _options(plan)),
        Row(label="Run directory", value=safe(plan.run_dir), whole=True),
        *labelled("Results", (safe(f"{step.produces}.safetensors") for step in plan.steps if step.produces)),
    ]
    return table(rows, width)


def _timesteps(spec: ExpertSpec) -> str:
    return f"{pad(expert_name(spec.expert), 11)} timesteps {spec.min_timestep} to {spec.max_timestep}"


def _caches(plan: Plan) -> Iterator[Row]:
    """The caches to make; plans of older versions lack these numbers."""
    texts = []
    for step in plan.steps:
        need = plan.dataset.caches.get(step.id)
        if need is not None:
            of, why = f"of {need.items:,}", f" ({reasons(need.reasons)})" if need.reasons else ""
            made = f"{need.make:,} {of} to make" if need.make else f"up to date: {need.items:,} {of}"
            texts.append(f"{pad(_CACHES[step.kind], 8)} {made}{why}")
    return labelled("Caches", texts)


def _models(plan: Plan) -> Iterator[Row]:
    models = plan.models
    named = {f"DiT {spec.expert.value}": models.dit[spec.expert.value] for spec in plan.recipe.experts}
    named |= {"VAE": models.vae, "T5": models.t5}
    folder = os.path.commonpath([path.parent for path in named.values()])
    shared = folder if len(folder) > 1 else ""  # "/" is not worth a line
    if shared:
        yield Row(label="Models", value=safe(shared), whole=True)
    for name, path in named.items():
        yield Row(label=f"  {name}", value=safe(path.relative_to(shared) if shared else path), whole=True)


def _trainer(plan: Plan) -> Row:
    trainer = plan.trainer
    if not trainer.is_real:
        return Row(label="Trainer", value=trainer.title)
    return Row(label="Trainer", value=f"{safe(trainer.title)} in {safe(trainer.root)}", whole=True)


def _gpus(plan: Plan, gpus: Sequence[GpuNow]) -> Iterator[Row]:
    if not gpus:
        yield Row(label="GPUs", value=count(len(plan.gpu_uuids), device(plan)))
    label_width = max((columns(gpu.label) for gpu in gpus), default=0)
    for number, gpu in enumerate(gpus):
        parts = [pad(gpu.label, label_width)]
        if plan.devices is Devices.NVML:
            parts += [gpu_name(gpu.name), f"{gpu_memory(gpu.used_bytes, gpu.total_bytes)} used"]
        busy = gpu.busy_because
        parts.append("free" if busy is None else f"busy: {safe(busy)}")
        yield Row(label="" if number else "GPUs", value="  ".join(parts), style="" if busy is None else "yellow")


def _steps(plan: Plan, dataset: DatasetSummary | None) -> Iterator[str]:
    for expert, text in agreed(plan.recipe, lambda spec: _steps_of(plan, dataset, spec)):
        only = plan.recipe.experts[0].expert if len(plan.recipe.experts) == 1 else expert
        whose = " per expert" if only is None else f" for the {expert_name(only)} expert"
        yield f"{text}{whose if plan.dataset.batches_per_epoch is not None else ''}"


def _steps_of(plan: Plan, dataset: DatasetSummary | None, spec: ExpertSpec) -> str:
    epochs, total = count(plan.epochs_of(spec.expert), "epoch"), plan.steps_of(spec.expert)
    if total is None or plan.dataset.repeats is None:
        return f"{epochs_text(plan, spec)}; steps unknown until the videos are cached"
    accumulation = spec.training.gradient_accumulation_steps
    accumulated = f" / {accumulation} accumulated" if accumulation > 1 else ""
    early = plan.epochs_of(spec.expert) < plan.schedule_epochs_of(spec.expert)
    ends = f", which is {epochs_text(plan, spec)}" if early else ""
    return f"{_batches(plan, dataset)} x {epochs}{accumulated} = {count(total, 'step')}{ends}"


def _batches(plan: Plan, dataset: DatasetSummary | None) -> str:
    """The batches of one epoch: `24 items x 2 repeats / batch 1`; with partial batches, their number."""
    seen, batches = plan.dataset.repeats or 0, plan.dataset.batches_per_epoch or 0
    subsets = dataset.subsets if dataset is not None else ()
    start = _items(seen, subsets)
    if batches == seen:
        return f"{start} / batch 1"
    batch_sizes = {subset.batch_size for subset in subsets}
    size = batch_sizes.pop() if len(batch_sizes) == 1 else None
    if size is not None and batches * size == seen:
        return f"{start} / batch {size}"
    at_most = f" of at most {size}" if size is not None else " of one bucket each"
    return f"{start} in {count(batches, 'batch', 'batches')}{at_most}"


def _items(seen: int, subsets: Sequence[SubsetSummary]) -> str:
    """The items of one epoch. Not by the number of files: a video may give several items, a file be in two datasets."""
    items, repeats = sum(subset.items or 0 for subset in subsets), {subset.num_repeats for subset in subsets}
    if len(repeats) == 1:
        return f"{count(items, 'item')} x {count(repeats.pop(), 'repeat')}"
    return f"{count(items, 'item')} ({seen:,} with repeats)" if subsets else f"{count(seen, 'item')} with repeats"


def _samples(plan: Plan) -> Iterator[Row]:
    """The number of samples and their cost; their time depends on the GPU and is unknown."""
    samples = plan.samples
    if samples is None:
        return
    prompts, first_round = len(samples.prompts), 1 if samples.at_first else 0
    sizes = ", ".join(dict.fromkeys(f"{prompt.width}x{prompt.height}" for prompt in samples.prompts))
    counts = agreed(
        plan.recipe,
        lambda spec: f"{prompts * (plan.epochs_of(spec.expert) // samples.every_epochs + first_round):,}",
    )
    each = " per expert" if len(plan.recipe.experts) > 1 else ""
    made = [f"{text} for the {expert_name(expert)} expert" if expert else f"{text}{each}" for expert, text in counts]
    yield Row(
        label="Samples", value=f"{count(prompts, 'prompt')} every {sample_times(plan)}: {' and '.join(made)}, {sizes}"
    )
    yield Row(value="Training pauses for sampling. T5 is reloaded each time, the VAE per sample.")


def _disk(plan: Plan) -> Row:
    need = plan.disk
    parts = {"caches": need.caches, "training states": need.states, "LoRAs": need.loras}
    shares = ", ".join(f"{what} {file_size(size)}" for what, size in parts.items())
    return Row(label="Disk", value=f"at most {file_size(need.total)}: {shares}")


def _choices(plan: Plan) -> Iterator[str]:
    for choice in plan.choices:
        if choice.reason != AS_IN_RECIPE:
            yield f"{choice_text(choice)}: {safe(choice.reason)}"
    usual = [choice_text(choice) for choice in plan.choices if choice.reason == AS_IN_RECIPE]
    if usual:
        yield f"{', '.join(usual)}: {AS_IN_RECIPE}"


def learning_rates(plan: Plan) -> list[str]:
    """The actual curve of the learning rate; one for each expert if they differ."""
    return per_expert(plan, lambda spec: _learning_rate(spec.training))


def _learning_rate(training: Training) -> str:
    text, ratio = learning_rate(training), training.lr_scheduler_min_lr_ratio
    if schedule_of(training) != schedules.POLYNOMIAL:
        return text
    text = f"{text.removesuffix(')')}, power {format_number(training.lr_scheduler_power)})"
    return text if ratio is None else f"{text}; lr_scheduler_min_lr_ratio {format_number(ratio)} has no effect on it"


def _continued(plan: Plan) -> Iterator[Row]:
    """The LoRAs that training continues."""
    weights = [spec.training.network_weights for spec in plan.recipe.experts]
    for number, path in enumerate(dict.fromkeys(path for path in weights if path is not None)):
        yield Row(label="" if number else "Continued LoRA", value=safe(path), whole=True)


def _options(plan: Plan) -> Iterator[str]:
    """Trainer options beyond the settings of every recipe, each with its source."""
    names = {name for spec in plan.recipe.experts for name in spec.training.options}
    for row in effective([plan.recipe]):
        if row.name in names and row.values[0] is not None:
            by = f" ({safe(row.sources[0])})" if row.sources[0] is not None else ""
            yield safe(f"{row.label} {row.values[0]}") + by


def _additions(plan: Plan, width: int) -> Iterator[Line]:
    yield line()
    yield line(Span("Options beyond the guide's own commands", "bold"))
    seen: set[tuple[str, str]] = set()
    for step in plan.steps:
        for addition in command_of(plan, step).additions:
            # The additions of both experts differ only in their directories.
            key = addition.what.replace(step.id, "STEP"), addition.reason
            if key not in seen:
                seen.add(key)
                yield line("  ", Span(safe(addition.what), "bold"), whole=True)
                yield from wrapped(safe(addition.reason), width, indent=4)


def _notes(plan: Plan, width: int) -> Iterator[Line]:
    notes = plan.dataset.notes
    if not notes:
        return
    yield line()
    shown = [safe(note) for note in notes[:_MOST_NOTES]]
    if len(notes) > _MOST_NOTES:
        shown.append(f"and {count(len(notes) - _MOST_NOTES, 'more warning')}")
    yield from table([Row(label="!", value=note, style="yellow") for note in shown], width, indent=0)


def _step_text(plan: Plan, step: Step) -> str:
    what = _HEADINGS[step.kind]
    what += f" the {expert_name(step.expert)} expert" if step.expert is not None else ""
    after = f", after {' and '.join(map(safe, step.needs))}" if step.needs else ""
    on = ", on one GPU" if plan.devices is Devices.NVML else ""
    command = command_of(plan, step)
    lines = [
        "",
        f"# {safe(step.id)}: {what}{after}{on}",
        f"cd {shlex.quote(command.cwd)}",
        redact(one_option_a_line(command)),
    ]
    if command.additions:
        lines.append("# beyond the guide's own command:")
    lines += [f"#   {safe(addition.what)}: {safe(addition.reason)}" for addition in command.additions]
    return "\n".join(lines) + "\n"

"""What a run will do, before anything happens: a short screen to confirm, and the exact commands."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wan_train.base.text import redact
from wan_train.dataset.counts import DatasetSummary
from wan_train.dataset.model import MediaKind
from wan_train.engine.shell import one_option_a_line
from wan_train.recipe import load as recipes
from wan_train.recipe.adaptation import AS_IN_RECIPE, CHOSEN
from wan_train.recipe.effective import agreed, effective, word_of
from wan_train.recipe.model import ExpertSpec, Origin, Training, format_number
from wan_train.recipe.terms import EngineKind
from wan_train.run.plan import Devices, Plan, Step, StepKind
from wan_train.views import formatting
from wan_train.views.lines import Line, Row, Screenful, Span, line, plain, table, width_of
from wan_train.views.model import GpuNow
from wan_train.views.plan_details import choice_name, detail_lines, rate

if TYPE_CHECKING:
    from rich.console import RenderableType

_TEXT_WIDTH = 80
_MOST_LINES = 20
"""A terminal of 24 lines also holds the command, the question and the prompt."""
_TITLE_LINES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class AtStart:
    """The machine and the dataset as they are when a plan is shown; None and empty where nobody looked."""

    gpus: Sequence[GpuNow] = ()
    dataset: DatasetSummary | None = None
    problems: int | None = None
    """Kinds of problems found in the dataset, none of which keeps the run from starting."""
    disk_free_bytes: int | None = None
    seconds_per_batch: float | None = None
    """As measured on this box by an earlier run."""
    new_toml: Path | None = None
    """The dataset.toml that will be written into the user's folder."""


_NOBODY_LOOKED = AtStart()


def plan_lines(plan: Plan, now: AtStart = _NOBODY_LOOKED, *, width: int) -> RenderableType:
    """What a run will do, in at most 20 lines of 80 columns, for the person who is about to confirm it."""
    return Screenful(lambda room: _summary(plan, now, min(width, room)))


def plan_details(plan: Plan, now: AtStart | None = None, *, width: int) -> RenderableType:
    """Everything else about it."""
    return Screenful(lambda room: _details(plan, now or _NOBODY_LOOKED, min(width, room)))


def plan_text(plan: Plan, now: AtStart = _NOBODY_LOOKED) -> str:
    """The plan for `--dry-run`: summary, details, and every step's exact command with its additions and reasons."""
    shown = plain([*_summary(plan, now, _TEXT_WIDTH), line(), *_details(plan, now, _TEXT_WIDTH)])
    return shown + _ABOUT_COMMANDS + "".join(_step_text(plan, step) for step in plan.steps)


_ABOUT_COMMANDS = """
# The commands below read files that only a run writes. For a script that runs by itself:
#   the same command with --dry-run --script train.sh
"""


def _details(plan: Plan, now: AtStart, width: int) -> Iterator[Line]:
    return detail_lines(plan, now.gpus, width, dataset=now.dataset, disk_free_bytes=now.disk_free_bytes)


def _summary(plan: Plan, now: AtStart, width: int) -> Iterator[Line]:
    head = (Span(formatting.safe(plan.answers.title), "bold"), Span(f" by {formatting.safe(plan.answers.author)}"))
    nothing = Span("nothing has started yet", "dim")
    gap = width - width_of([*head, nothing])
    yield line(*head, " " * gap, nothing) if gap > 1 else line(*head)
    yield line()
    yield from _fitting(list(_rows(plan, now, width)), list(_unusual(plan, width)), width)


def _fitting(rows: Sequence[Row], unusual: Sequence[Row], width: int) -> Sequence[Line]:
    """The rows, and of what is unusual as much as fits: rather the beginning of one more than the whole of one."""
    brief = [replace(row, value=formatting.cut(row.value, width - _VALUE_COLUMN)) for row in unusual]
    for shown in range(len(unusual), -1, -1):
        more = [Row(label="More", value=f"{formatting.count(len(unusual) - shown, 'note')} (key d, or --dry-run)")]
        for each in (unusual, brief):
            below = [*each[:shown], *(more if shown < len(unusual) else [])]
            lines = list(table([*rows, *([Row()] if below else []), *below], width))
            if len(lines) <= _MOST_LINES - _TITLE_LINES:
                return lines
    return lines


def _rows(plan: Plan, now: AtStart, width: int) -> Iterator[Row]:
    yield Row(label="Dataset", value=_dataset(plan, now, width))
    yield Row(label="Training", value=_training(plan))
    if now.dataset is not None:
        yield Row(label="Size", value=_size(now.dataset))
    yield Row(label="Experts", value=_experts(plan, now.gpus))
    yield Row(label="Time", value=_time(plan, now))
    yield Row(label="LoRA", value=_each(plan, lambda spec: _lora(spec.training)))
    yield Row(label="LR", value=_each(plan, lambda spec: rate(spec.training)))
    yield Row(label="Extra", value=_extra(plan))
    yield from _samples(plan)
    yield Row(label="Saves", value=_saves(plan))
    yield _disk(plan, now.disk_free_bytes)
    yield Row(label="Writes", value=_writes(plan, now, width))
    yield Row(label="Output", value=f"{_path(plan.run_dir, width)}/")
    yield Row(
        value=formatting.cut(", ".join(formatting.safe(step.produces) for step in plan.steps if step.produces), width)
    )


def _each(plan: Plan, say: Callable[[ExpertSpec], str]) -> str:
    """What is to be said of the experts: once when it is the same of all, else for each."""
    told = agreed(plan.recipe, say)
    return "; ".join(text if expert is None else f"{expert.value}-noise {text}" for expert, text in told)


def _dataset(plan: Plan, now: AtStart, width: int) -> str:
    facts = plan.dataset
    kinds = {subset.kind for subset in now.dataset.subsets} if now.dataset is not None else set[MediaKind]()
    match list(kinds):
        case [MediaKind.IMAGE]:
            what = "picture"
        case [MediaKind.VIDEO]:
            what = "video"
        case _:
            what = "item"
    counted = [formatting.count(facts.items, what), formatting.count(facts.captions, "caption")]
    if facts.repeats is not None and facts.repeats != facts.items:
        counted.append(f"{facts.repeats:,} with repeats")
    if now.problems is not None:
        counted.append(formatting.count(now.problems, "warning") if now.problems else "no problems")
    place = now.new_toml.parent if now.new_toml is not None else facts.source
    return f"{_path(place, width - 1)}: {', '.join(counted)}"


def _training(plan: Plan) -> str:
    def each(spec: ExpertSpec) -> str:
        epochs, steps = formatting.count(spec.training.max_train_epochs, "epoch"), plan.steps_of(spec.expert)
        if steps is None:
            return f"{epochs}; the steps are known once the videos are cached"
        return f"{epochs}, {formatting.count(steps, 'step')}"

    alike = len(plan.recipe.experts) > 1 and len(agreed(plan.recipe, each)) == 1
    per = " per expert" if alike and plan.dataset.batches_per_epoch is not None else ""
    return f"{_each(plan, each)}{per}; recipe {formatting.safe(plan.recipe.name)}"


def _size(dataset: DatasetSummary) -> str:
    sizes = dict.fromkeys(f"{width}x{height}" for width, height in (subset.resolution for subset in dataset.subsets))
    buckets = sum(len(subset.buckets) for subset in dataset.subsets)
    batches = dict.fromkeys(str(subset.batch_size) for subset in dataset.subsets)
    return f"{', '.join(sizes)}, {formatting.count(buckets, 'aspect bucket')}, batch {', '.join(batches)}"


def _experts(plan: Plan, gpus: Sequence[GpuNow]) -> str:
    """Which expert is trained where, as the GPUs are now."""
    names = [f"{spec.expert.value}-noise" for spec in plan.recipe.experts]
    free = [gpu.label for gpu in gpus if gpu.busy_because is None]
    busy = [f"{gpu.label} is {_state(gpu)}" for gpu in gpus if gpu.busy_because is not None]
    if not gpus:
        what = formatting.count(len(plan.gpu_uuids), "GPU" if plan.devices is Devices.NVML else "CPU slot")
        return f"{', '.join(names)}; {what}"
    if not free:
        return f"{', then '.join(names)}; waiting for a GPU: {'; '.join(busy)}"
    if len(free) >= len(names):
        placed = ", ".join(f"{name} on {label}" for name, label in zip(names, free, strict=False))
        return f"{placed}, in parallel" if len(names) > 1 else placed
    return "; ".join([f"{', then '.join(names)} on {free[0]}", *busy])


def _state(gpu: GpuNow) -> str:
    busy = formatting.safe(gpu.busy_because)
    return busy if busy.startswith("taken") else f"busy ({busy.removeprefix(f'{gpu.label}: ')})"


def _time(plan: Plan, now: AtStart) -> str:
    if now.seconds_per_batch is None:
        place = "card" if plan.devices is Devices.NVML else "machine"
        return f"unknown on this {place}; shown after the first steps"
    batches = plan.dataset.batches_per_epoch
    if batches is None:
        return "unknown until the videos are cached"
    each = [batches * spec.training.max_train_epochs * now.seconds_per_batch for spec in plan.recipe.experts]
    at_once = sum(gpu.busy_because is None for gpu in now.gpus) >= len(each)
    pace = formatting.pace(now.seconds_per_batch).removesuffix("/step")
    return (
        f"about {formatting.duration(max(each) if at_once else sum(each))} of training, at {pace} a batch measured here"
    )


def _lora(training: Training) -> str:
    text = f"rank {training.network_dim}, alpha {format_number(training.network_alpha)}"
    weights = training.network_weights
    return text if weights is None else f"{text}, continues {formatting.safe(Path(weights).name)}"


def _extra(plan: Plan) -> str:
    """What the trainer is told beyond the settings that every recipe has, by whatever way."""
    own = {name for spec in plan.recipe.experts for name in spec.training.options}
    given = [
        f"{row.label} {row.values[0]}"
        for row in effective([plan.recipe])
        if row.name in own or (row.sources[0] is not None and row.sources[0].origin in _WORDS)
        if row.values[0] is not None
    ]
    return formatting.safe(", ".join(given)) if given else "none (arguments after --)"


_WORDS = frozenset({Origin.WORDS, Origin.CONFIG_FILE})


def _samples(plan: Plan) -> Iterator[Row]:
    samples = plan.samples
    if samples is not None:
        often = "epoch" if samples.every_epochs == 1 else f"{samples.every_epochs} epochs"
        first = " and before the first step" if samples.at_first else ""
        made = formatting.count(len(samples.prompts), "prompt")
        yield Row(label="Samples", value=f"{made} every {often}{first}; costs GPU time")


def _saves(plan: Plan) -> str:
    text = f"checkpoint every {formatting.count(plan.state_every_epochs, 'epoch')}"
    kept = plan.keep_every_epochs
    if kept:
        return f"{text}; LoRA every {formatting.count(kept, 'epoch')}"
    return f"{text}; LoRA at epoch {_each(plan, lambda spec: str(spec.training.max_train_epochs))}"


def _disk(plan: Plan, free: int | None) -> Row:
    need = plan.disk.total
    text = f"{formatting.file_size(need)} needed" + (f", {formatting.file_size(free)} free" if free is not None else "")
    return Row(label="Disk", value=text, style="yellow" if free is not None and free < need else "")


def _writes(plan: Plan, now: AtStart, width: int) -> str:
    caches = [Path(folder) for folder in plan.dataset.cached_items]
    beside = now.new_toml.parent if now.new_toml is not None else None
    told = [f"{_path(now.new_toml, width - 18)} (new)"] if now.new_toml is not None else []
    told += [f"{folder.name}/" if folder.parent == beside else f"{_path(folder, width)}/" for folder in caches[:2]]
    if len(caches) > 2:  # noqa: PLR2004  as many as are named
        told.append(f"{len(caches) - 2} more folders")
    return " and ".join(told)


def _path(path: Path, width: int) -> str:
    """A path that is not broken; the details have it whole."""
    return formatting.cut_front(formatting.safe(path), max(20, width - _VALUE_COLUMN))


_VALUE_COLUMN = len("  Adjusted  ") + 1


def _unusual(plan: Plan, width: int) -> Iterator[Row]:
    """What differs from the guide, or may surprise; each in at most two lines."""
    if plan.trainer.kind is EngineKind.REHEARSAL:
        yield Row(label="Rehearsal", value="tiny built-in trainer: the LoRAs are not usable", style="yellow")
    usual = recipes.shipped(plan.recipe.task).experts[0].training
    changed = [choice for choice in plan.choices if choice.value != word_of(getattr(usual, choice.setting))]
    chosen = [
        f"{choice_name(choice)} {formatting.safe(choice.value)}"
        for choice in changed
        if choice.reason.startswith(CHOSEN)
    ]
    adjusted = [
        f"{choice_name(choice)} {formatting.safe(choice.value)}: {_brief(formatting.safe(choice.reason))}"
        for choice in changed
        if not choice.reason.startswith(CHOSEN) and choice.reason != AS_IN_RECIPE
    ]
    room = width - _VALUE_COLUMN
    for note in plan.dataset.notes:
        yield Row(label="Warning", value=formatting.cut(formatting.safe(note), 2 * room - 8), style="yellow")
    if chosen:
        yield Row(label="Chosen", value=formatting.cut(", ".join(chosen), room))
    yield from (Row(label="Adjusted", value=formatting.cut(text, room)) for text in adjusted)


def _brief(reason: str) -> str:
    """A reason without its source and second thought."""
    return reason.partition(" (")[0].partition("; ")[0]


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
        f"# {formatting.safe(step.id)}: {what}{after}{on}",
        f"cd {shlex.quote(step.command.cwd)}",
        redact(one_option_a_line(step.command)),
    ]
    if step.command.additions:
        lines.append("# beyond the guide's own command:")
    lines += [
        f"#   {formatting.safe(addition.what)}: {formatting.safe(addition.reason)}"
        for addition in step.command.additions
    ]
    return "\n".join(lines) + "\n"


def _together(parts: Sequence[str]) -> str:
    return " and ".join(formatting.safe(part) for part in parts)

"""The start summary: what a run will do, in at most 20 lines of 80 columns, for the person who confirms it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from wan_train.base.units import count, dollars, duration, file_size
from wan_train.box.rental import Price
from wan_train.dataset.layout import DatasetSummary
from wan_train.dataset.model import MediaKind
from wan_train.engine import schedule as schedules
from wan_train.engine.schedule import schedule_of
from wan_train.recipe import load as recipes
from wan_train.recipe.adaptation import AS_IN_RECIPE, CHOSEN, Choice
from wan_train.recipe.effective import agreed, effective, word_of
from wan_train.recipe.levers import expected_gain
from wan_train.recipe.measured import MEASURED, Tuned, day
from wan_train.recipe.model import ExpertSpec, Origin, Training, format_number, settings_of
from wan_train.recipe.terms import Task
from wan_train.run.duties import Duties, Then
from wan_train.run.end_epochs import EarlyEnd
from wan_train.run.plan import Devices, Plan, Quote, QuoteBasis
from wan_train.run.quote import dollars_of
from wan_train.run.tuning import levers_of
from wan_train.views.box_end import plan_of_the_end
from wan_train.views.formatting import (
    cut,
    cut_front,
    dollars_per_hour,
    expert_name,
    moment,
    pace,
    price_basis,
    safe,
)
from wan_train.views.lines import Line, Row, Screenful, Span, line, table, width_of
from wan_train.views.model import GpuNow

if TYPE_CHECKING:
    from rich.console import RenderableType

_MOST_LINES = 20
"""A terminal of 24 lines also holds the command, the question and the prompt."""
_TITLE_LINES = 2
_VALUE_COLUMN = len("  Adjusted  ") + 1
_NAMED_FOLDERS = 2
_SOON_SECONDS = 86_400.0
"""While the duration of the run is unknown, warn about a rental that ends sooner than this."""
_ADDED = frozenset({Origin.WORDS, Origin.CONFIG_FILE})


@dataclass(frozen=True, slots=True, kw_only=True)
class AtStart:
    """The machine and the dataset when a plan is shown; None and empty where unknown."""

    gpus: Sequence[GpuNow] = ()
    dataset: DatasetSummary | None = None
    problems: int | None = None
    """The number of kinds of dataset problems that do not prevent the start."""
    disk_free_bytes: int | None = None
    price: Price | None = None
    price_problem: str | None = None
    """Why the price of this box is unknown, in words."""
    runs: int = 1
    """Runs that share the price of the box from the start, including this one."""
    budget: float | None = None
    """Dollars."""
    duties: Duties | None = None
    """Work beside and after the training."""
    new_toml: Path | None = None
    """The dataset.toml that will be written into the user's folder."""


def plan_lines(plan: Plan, now: AtStart) -> RenderableType:
    return Screenful(lambda width: summary_lines(plan, now, width))


def summary_lines(plan: Plan, now: AtStart, width: int) -> Iterator[Line]:
    head = (Span(safe(plan.answers.title), "bold"), Span(f" by {safe(plan.answers.author)}"))
    nothing = Span("nothing has started yet", "dim")
    gap = width - width_of([*head, nothing])
    yield line(*head, " " * gap, nothing) if gap > 1 else line(*head)
    yield line()
    yield from _shortened(list(_rows(plan, now, width)), [*_rental(plan, now), *_unusual(plan, width)], width)


def _shortened(rows: Sequence[Row], unusual: Sequence[Row], width: int) -> Sequence[Line]:
    """The rows, and as many unusual ones as fit. Two shortened rows are better than one whole row."""
    brief = [replace(row, value=cut(row.value, width - _VALUE_COLUMN)) for row in unusual]
    for shown in range(len(unusual), -1, -1):
        more = [Row(label="More", value=f"{count(len(unusual) - shown, 'note')} (key d, or --dry-run)")]
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
    yield from _cost(plan, now)
    yield from speed_rows(plan)
    yield Row(label="LoRA", value=_joined(plan, lambda spec: _lora(spec.training)))
    yield Row(label="LR", value=_joined(plan, lambda spec: learning_rate(spec.training)))
    yield Row(label="Extra", value=_extra(plan))
    yield from _samples(plan)
    yield Row(label="Saves", value=_saves(plan))
    yield _disk(plan, now.disk_free_bytes)
    yield Row(label="Writes", value=_writes(plan, now, width))
    yield Row(label="Output", value=f"{_path(plan.run_dir, width)}/")
    if now.duties is not None and now.duties.uploads:
        yield Row(label="Upload", value=cut(safe(", ".join(now.duties.uploads)), width - _VALUE_COLUMN))
    if now.duties is not None and now.duties.then is not Then.NOTHING:
        yield Row(label="Box", value=plan_of_the_end(now.duties))


def per_expert(plan: Plan, say: Callable[[ExpertSpec], str]) -> list[str]:
    """One text if it is the same for all experts, else one for each expert, with its name."""
    return [text if expert is None else f"{expert_name(expert)} {text}" for expert, text in agreed(plan.recipe, say)]


def _joined(plan: Plan, say: Callable[[ExpertSpec], str]) -> str:
    return "; ".join(per_expert(plan, say))


def _dataset(plan: Plan, now: AtStart, width: int) -> str:
    facts = plan.dataset
    subsets = now.dataset.subsets if now.dataset is not None else ()
    match list({subset.kind for subset in subsets}):
        case [MediaKind.IMAGE]:
            what = "picture"
        case [MediaKind.VIDEO]:
            what = "video"
        case _:
            what = "item"
    counted = [count(facts.items, what), count(facts.captions, "caption")]
    if facts.repeats is not None:
        # A video may give several items, and a file may be in several datasets.
        items = sum(subset.items or 0 for subset in subsets) if subsets else facts.items
        counted += [count(items, "item")] if items != facts.items else []
        counted += [f"{facts.repeats:,} with repeats"] if facts.repeats != items else []
    if now.problems is not None:
        counted.append(count(now.problems, "warning") if now.problems else "no problems")
    place = now.new_toml.parent if now.new_toml is not None else facts.source
    return f"{_path(place, width - 1)}: {', '.join(counted)}"


def _training(plan: Plan) -> str:
    def each(spec: ExpertSpec) -> str:
        epochs, steps = epochs_text(plan, spec), plan.steps_of(spec.expert)
        return f"{epochs}; steps unknown until the videos are cached" if steps is None else f"{epochs}, {steps:,} steps"

    alike = len(plan.recipe.experts) > 1 and len(agreed(plan.recipe, each)) == 1
    per = " per expert" if alike and plan.dataset.batches_per_epoch is not None else ""
    return f"{_joined(plan, each)}{per}; {_recipe_name(plan)}"


def _recipe_name(plan: Plan) -> str:
    """The name of the recipe; for a shipped one, also the command that lists others."""
    if plan.recipe.name in recipes.shipped_names():
        name = "guide" if plan.recipe.task is Task.T2V else "guide, I2V"
        return f"{name} (more: wan-train presets)"
    return f"recipe {safe(plan.recipe.name)}"


def epochs_text(plan: Plan, spec: ExpertSpec) -> str:
    """`100 epochs`, or `50 of 100 epochs (--until 50)` for an expert that ends before its schedule."""
    end, total = plan.epochs_of(spec.expert), plan.schedule_epochs_of(spec.expert)
    return (
        count(total, "epoch") if end >= total else f"{end} of {count(total, 'epoch')} (--until {spec.training.until})"
    )


def _size(dataset: DatasetSummary) -> str:
    by_kind: dict[MediaKind, list[str]] = {}
    for subset in dataset.subsets:
        by_kind.setdefault(subset.kind, []).append("{}x{}".format(*subset.resolution))
    sizes = {kind: ", ".join(dict.fromkeys(found)) for kind, found in by_kind.items()}
    named = list(sizes.values())
    if len(set(named)) > 1:
        words = {MediaKind.IMAGE: "pictures", MediaKind.VIDEO: "clips"}
        named = [f"{words[kind]} {found}" for kind, found in sizes.items()]
    buckets = sum(len(subset.buckets) for subset in dataset.subsets)
    batches = dict.fromkeys(str(subset.batch_size) for subset in dataset.subsets)
    return f"{'; '.join(dict.fromkeys(named))}, {count(buckets, 'aspect bucket')}, batch {', '.join(batches)}"


def _experts(plan: Plan, gpus: Sequence[GpuNow]) -> str:
    """The GPU that each expert would get now."""
    names = [expert_name(spec.expert) for spec in plan.recipe.experts]
    free = [gpu.label for gpu in gpus if gpu.busy_because is None]
    busy = [f"{gpu.label} is {_busy(gpu)}" for gpu in gpus if gpu.busy_because is not None]
    if not gpus:
        return f"{', '.join(names)}; {count(len(plan.gpu_uuids), device(plan))}"
    if not free:
        return f"{', then '.join(names)}; waiting for a GPU: {'; '.join(busy)}"
    if len(free) >= len(names):
        placed = ", ".join(f"{name} on {label}" for name, label in zip(names, free, strict=False))
        return f"{placed}, in parallel" if len(names) > 1 else placed
    return "; ".join([f"{', then '.join(names)} on {free[0]}", *busy])


def device(plan: Plan) -> str:
    return "GPU" if plan.devices is Devices.NVML else "CPU slot"


def _busy(gpu: GpuNow) -> str:
    busy = safe(gpu.busy_because)
    return busy if busy.startswith("in use") else f"busy ({busy.removeprefix(f'{gpu.label}: ')})"


def _time(plan: Plan, now: AtStart) -> str:
    """The time from the first process to the end, with its basis."""
    found = plan.quote
    if found is None:
        if plan.dataset.batches_per_epoch is None:
            return "unknown until the videos are cached"
        place = "card" if plan.devices is Devices.NVML else "machine"
        return f"known after the first minute; never measured on this {place}"
    each = pace(found.seconds_per_batch).removesuffix("/step")
    missing = f"; {' and '.join(found.without)} not included" if found.without else ""
    waits = "; plus the wait for a GPU" if _must_wait(now) else ""
    return f"about {duration(found.seconds)} in all{_range(found)}; {each} per batch, {_basis(found)}{missing}{waits}"


def _must_wait(now: AtStart) -> bool:
    return bool(now.gpus) and all(gpu.busy_because is not None for gpu in now.gpus)


def _range(found: Quote) -> str:
    if found.least is None or found.most is None:
        return ""
    return f" ({duration(found.least)} to {duration(found.most)} by {found.trainings} trainings)"


def _basis(found: Quote) -> str:
    match found.basis:
        case QuoteBasis.RUNS:
            return MEASURED if found.scaled_from is None else f"scaled from {safe(found.scaled_from)}"
        case QuoteBasis.TUNE:
            scaled = f", scaled from {safe(found.scaled_from)}" if found.scaled_from is not None else ""
            return f"by wan-train tune on {day(found.measured)}{scaled}"
        case _:
            assert_never(found.basis)


def _cost(plan: Plan, now: AtStart) -> Iterator[Row]:
    price = now.price
    budget = f"; budget {dollars(now.budget)}" if now.budget is not None else ""
    if price is None:
        if now.price_problem is not None:
            yield Row(label="Cost", value=f"unknown: {safe(now.price_problem)}; --price sets it", style="yellow")
        return
    hour = f"{dollars_per_hour(price.per_hour)} {price_basis(price.source, now.runs)}"
    if plan.quote is None:
        yield Row(label="Cost", value=f"{hour}{budget}")
    else:
        whole, alone = (dollars_of(plan.quote, price.per_hour, runs=runs) for runs in (now.runs, 1))
        if now.runs > 1:
            hour += f"; {dollars(alone)} alone"
        over = now.budget is not None and alone > now.budget
        waits = "; plus the wait" if _must_wait(now) else ""
        text = f"about {dollars(whole)} at {hour}{waits}{budget}"
        yield Row(label="Cost", value=text, style="yellow" if over else "")


def _rental(plan: Plan, now: AtStart) -> Iterator[Row]:
    """Reasons why the box may be lost before the run ends."""
    rental = now.price.rental if now.price is not None else None
    if rental is None:
        return
    if rental.ends is not None and plan.quote is not None and rental.ends < plan.created + plan.quote.seconds:
        text = f"the rental of this box ends {moment(rental.ends, plan.created)}, before the run does"
        yield Row(label="Warning", value=text, style="yellow")
    elif rental.ends is not None and rental.ends < plan.created + _SOON_SECONDS and plan.quote is None:
        text = f"the rental of this box ends {moment(rental.ends, plan.created)}"
        yield Row(label="Warning", value=text, style="yellow")
    if rental.is_near_the_market and rental.bid is not None and rental.lowest_bid is not None:
        bid, lowest = dollars_per_hour(rental.bid), dollars_per_hour(rental.lowest_bid)
        text = f"your bid of {bid} is near the lowest possible ({lowest}): a higher bid takes the box away"
        yield Row(label="Warning", value=text, style="yellow")


def _lora(training: Training) -> str:
    text = f"rank {training.network_dim}, alpha {format_number(training.network_alpha)}"
    weights = training.network_weights
    return text if weights is None else f"{text}, continues {safe(Path(weights).name)}"


def learning_rate(training: Training) -> str:
    """`3e-4, falling to 1e-7 (polynomial)`."""
    start, schedule = format_number(training.learning_rate), schedule_of(training)
    if schedule != schedules.POLYNOMIAL:
        return f"{start} ({safe(schedule)})"
    return f"{start}, falling to {format_number(schedules.polynomial_end(training))} ({schedule})"


def _extra(plan: Plan) -> str:
    """Trainer options beyond the settings of every recipe, from any source."""
    own = {name for spec in plan.recipe.experts for name in spec.training.options}
    given = [
        f"{row.label} {row.values[0]}"
        for row in effective([plan.recipe])
        if row.name in own or (row.sources[0] is not None and row.sources[0].origin in _ADDED)
        if row.values[0] is not None and not str(row.sources[0] or "").startswith(MEASURED)  # these are in row `Speed`
    ]
    return safe(", ".join(given)) if given else "none (arguments after --)"


def _samples(plan: Plan) -> Iterator[Row]:
    if plan.samples is not None:
        made = count(len(plan.samples.prompts), "prompt")
        yield Row(label="Samples", value=f"{made} every {sample_times(plan)}; costs GPU time")
    if plan.preview_prompts:
        drawn = count(plan.preview_prompts, "prompt")
        yield Row(label="Preview", value=f"{drawn} at the end, of the LoRAs that are kept; costs GPU time")


def sample_times(plan: Plan) -> str:
    """`10 epochs and before the first step`; empty without samples."""
    samples = plan.samples
    if samples is None:
        return ""
    often = "epoch" if samples.every_epochs == 1 else f"{samples.every_epochs} epochs"
    return f"{often} and before the first step" if samples.at_first else often


def _saves(plan: Plan) -> str:
    text = f"checkpoint every {count(plan.state_every_epochs, 'epoch')}"
    kept = plan.keep_every_epochs
    if kept:
        return f"{text}; LoRA every {count(kept, 'epoch')}"
    return f"{text}; LoRA at epoch {_joined(plan, lambda spec: str(plan.epochs_of(spec.expert)))}"


def _disk(plan: Plan, free: int | None) -> Row:
    need = plan.disk.total
    text = f"{file_size(need)} needed" + (f", {file_size(free)} free" if free is not None else "")
    return Row(label="Disk", value=text, style="yellow" if free is not None and free < need else "")


def _writes(plan: Plan, now: AtStart, width: int) -> str:
    caches = [Path(folder) for folder in plan.dataset.cached_items]
    written = []
    if now.new_toml is not None:
        beside = now.new_toml.parent
        written.append(f"{_path(now.new_toml, width - 18)} (new)")
        caches = [folder.relative_to(beside) if folder.is_relative_to(beside) else folder for folder in caches]
    written += [f"{_path(folder, width)}/" for folder in caches[:_NAMED_FOLDERS]]
    if len(caches) > _NAMED_FOLDERS:
        written.append(f"{len(caches) - _NAMED_FOLDERS} more folders")
    return " and ".join(written)


def _path(path: Path, width: int) -> str:
    """A path cut to one line; the details show all of it."""
    return cut_front(safe(path), max(20, width - _VALUE_COLUMN))


def choice_text(choice: Choice) -> str:
    """`attention sdpa`."""
    expert = "" if choice.expert is None else f" ({choice.expert.value})"
    return f"{choice.setting}{expert} {safe(choice.value)}"


def _unusual(plan: Plan, width: int) -> Iterator[Row]:
    """Differences from the guide and possible surprises, each in at most two lines."""
    if not plan.trainer.is_real:
        yield Row(label="Rehearsal", value="tiny built-in trainer: the LoRAs are not usable", style="yellow")
    room = width - _VALUE_COLUMN
    for note in plan.dataset.notes:
        yield Row(label="Warning", value=cut(safe(note), 2 * room - 8), style="yellow")
    usual = recipes.shipped(plan.recipe.task).experts[0].training
    changed = [
        choice
        for choice in plan.choices
        if choice.reason != AS_IN_RECIPE and not choice.reason.startswith(MEASURED)  # these are in row `Speed`
        if choice.value != word_of(settings_of(usual).get(choice.setting))
    ]
    chosen = [choice_text(choice) for choice in changed if choice.reason.startswith(CHOSEN)]
    if chosen:
        yield Row(label="Chosen", value=cut(", ".join(chosen), room))
    for choice in changed:
        if not choice.reason.startswith(CHOSEN):
            yield Row(label="Adjusted", value=cut(f"{choice_text(choice)}: {_brief(safe(choice.reason))}", room))


def _brief(reason: str) -> str:
    """A reason without its source in brackets and without what follows a semicolon."""
    return reason.partition(" (")[0].partition("; ")[0]


TUNE_SECONDS = 360.0
"""How long `wan-train tune` measures without --minutes."""


def speed_rows(plan: Plan) -> Iterator[Row]:
    """The row `Speed`, or `Tip` if measuring should save more time than it takes."""
    if plan.tuned is not None:
        yield Row(label="Speed", value=measured_text(plan.tuned))
    elif (text := tip(plan)) is not None:
        yield Row(label="Tip", value=text)


def measured_text(tuned: Tuned) -> str:
    """`sdpa, 2 blocks swapped: 1.42 s/step, measured here on 28 Nov (the guide's settings: 2.10)`."""
    guide = f" (the guide's settings: {tuned.guide_seconds:.2f})" if tuned.guide_seconds is not None else ""
    return f"{tuned.words}: {tuned.seconds_per_step:.2f} s/step, {MEASURED} on {day(tuned.at)}{guide}"


def tip(plan: Plan) -> str | None:
    """How much time tuning may save, in words; None without a quote, or if it would save too little."""
    if plan.quote is None or not plan.trainer.is_real:
        return None
    spec = plan.recipe.experts[0]
    chosen = [name for name, source in spec.sources.items() if source.origin is not Origin.MACHINE]
    levers = levers_of(spec.training, plan.trainer, chosen=chosen)
    gain = expected_gain(levers, blocks=spec.training.blocks_to_swap)
    saved = gain * plan.quote.seconds
    if saved <= TUNE_SECONDS:
        return None
    return (
        f"wan-train tune takes {duration(TUNE_SECONDS)} and may save {duration(saved)}: "
        f"{100 * gain:.0f} % of {duration(plan.quote.seconds)}, as reported by others"
    )


_ABOUT_HALF = (0.45, 0.55)


def whole_training(plan: Plan) -> str:
    """`all 100 epochs, as in the guide`."""
    guide = all("max_train_epochs" not in spec.sources for spec in plan.recipe.experts)
    return f"all {count(plan.epochs, 'epoch')}{', as in the guide' if guide else ''}"


def shorter_training(end: EarlyEnd) -> str:
    """`end after epoch 50: the same LoRA to about 0.4 %, half the time`."""
    if len(set(end.epochs.values())) == 1:
        when = f"epoch {next(iter(end.epochs.values()))}"
    else:
        when = " and ".join(f"epoch {epoch} ({expert_name(expert)})" for expert, epoch in end.epochs.items())
    low, high = _ABOUT_HALF
    time = "half the time" if low <= end.saved <= high else f"{100 * (1 - end.saved):.0f} % of the time"
    return f"end after {when}: the same LoRA to about {100 * end.distance:.1g} %, {time}"

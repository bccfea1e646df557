"""How a run went: curves, the timeline of its attempts, what its GPUs did."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from wan_train.recipe.model import format_number
from wan_train.recipe.terms import Expert
from wan_train.run.curves import Curve, LossSource, smoothed
from wan_train.run.live import EVERY_SECONDS
from wan_train.run.plan import Devices, StepKind
from wan_train.views import formatting
from wan_train.views import run_status as facts
from wan_train.views.markup.html import Child, Html, tag
from wan_train.views.markup.parts import table
from wan_train.views.report import metrics
from wan_train.views.report.metrics import ExpertFigures
from wan_train.views.report.plots import (
    MOST_POINTS,
    Bar,
    Ink,
    Line,
    gpu_plot,
    outside_plot,
    timeline_plot,
    training_plot,
)
from wan_train.views.report.report_data import Story
from wan_train.views.report.result_part import said_of

INKS = {Expert.HIGH: Ink.HIGH, Expert.LOW: Ink.LOW}
_SOURCES = {
    LossSource.TENSORBOARD: "the trainer's TensorBoard files: loss and learning rate of each single step",
    LossSource.PROGRESS_LINE: "the trainer's progress line: a moving average over an epoch with three digits, no "
    "learning rate (it wrote no TensorBoard files)",
}
_QUARTERS = (0.1, 0.25, 0.5, 0.75, 1.0)
_GIB = 1024**3


def curves(story: Story, experts: Sequence[ExpertFigures]) -> Iterator[Html]:
    yield tag("h2", "Loss and learning rate", id="curves")
    drawn = [each for each in experts if story.curves.get(each.step, Curve()).points]
    if not drawn:
        yield tag("p", "No step was trained." if story.is_final else "No step is trained yet.")
        return
    yield tag("div", [_curve(story.curves[each.step], each) for each in drawn], class_="plots")
    yield tag(
        "p",
        "Faint: each step. Strong: smoothed (moving average of about 50 steps). Dotted: steps that were trained again "
        "after a failure and are not part of the LoRA. The loss of single steps jumps, since each sees another picture "
        "at another noise level; only the smoothed line tells whether it learns. Losses of the two experts cannot be "
        "compared with each other.",
        class_="soft",
    )
    longest = max(len(story.curves[each.step].points) for each in drawn)
    if longest > MOST_POINTS:
        yield tag(
            "p",
            f"Drawn from {longest:,} steps: the lowest and the highest of each stretch. report.json has all.",
            class_="soft",
        )


def _curve(curve: Curve, each: ExpertFigures) -> Html:
    noise = f"{each.expert.value}-noise expert"
    final = f"final loss {formatting.loss(each.final_loss)}" if each.final_loss is not None else "no loss"
    about = [f"{formatting.count(each.steps_done, 'step')}, {final}"]
    outside = outside_plot([curve])
    if outside:
        about.append(f"{formatting.count(outside, 'step')} beyond what is drawn")
    if each.not_finite:
        about.append(f"{formatting.count(each.not_finite, 'step')} whose loss was no number")
    superseded = sum(len(segment.points) - len(segment.counted) for segment in curve.segments)
    if superseded:
        about.append(f"{formatting.count(superseded, 'step')} trained again")
    said = "; ".join(about)
    plot = training_plot(
        [Line(curve=curve, ink=INKS[each.expert], label=noise)],
        name=f"curve-{each.expert.value}",
        title=f"Loss and learning rate of the {noise}",
        description=f"{said}. The table below has the figures.",
    )
    source = _SOURCES[curve.source] if curve.source is not None else ""
    return tag(
        "figure",
        tag("h3", noise.capitalize()),
        Html(str(plot)),
        tag("figcaption", f"{said}. ", tag("span", f"Source: {source}.", class_="soft")),
        tag("details", tag("summary", "In figures"), _numbers(curve)),
    )


def _numbers(curve: Curve) -> Html:
    points = curve.points
    losses = smoothed([point.loss for point in points])
    rows: list[tuple[Child, ...]] = []
    for place in dict.fromkeys(max(0, math.ceil(share * len(points)) - 1) for share in _QUARTERS):
        loss, rate = losses[place], points[place].lr
        rows.append(
            (
                f"{points[place].step:,}",
                formatting.loss(loss) if math.isfinite(loss) else "no number",
                "unknown" if rate is None else format_number(float(f"{rate:.3g}")),
            )
        )
    return table(("Step", "Smoothed loss", "Learning rate"), rows)


def timeline(story: Story) -> Iterator[Html]:
    yield tag("h2", "How it went", id="timeline")
    view = story.view
    begun = view.state.started if view.state.started is not None else view.plan.created
    until = view.state.finished.at if view.state.finished is not None else story.made
    bars: list[Bar] = []
    rows: list[tuple[Child, ...]] = []
    for step, job in facts.steps_of(view):
        for attempt in job.attempts:
            end = attempt.ended if attempt.ended is not None else until
            what, failed = said_of(job, attempt)
            lane = formatting.safe(attempt.gpu_label or "no GPU")
            bars.append(
                Bar(
                    lane=lane,
                    label=step.id if attempt.number == 1 else f"{step.id} {attempt.number}",
                    begin=max(0.0, attempt.started - begun),
                    end=max(0.0, end - begun),
                    ink=INKS[step.expert] if step.expert is not None else Ink.CACHE,
                    failed=failed,
                )
            )
            rows.append(
                (
                    step.id,
                    f"{attempt.number}",
                    lane,
                    formatting.clock(attempt.started),
                    formatting.duration(max(0.0, end - attempt.started)),
                    _epochs(attempt.epochs_before, attempt.epochs_done) if step.kind is StepKind.TRAIN else "",
                    what + "".join(f"; {name}={value}" for name, value in attempt.changes.items()),
                )
            )
        if not job.attempts and job.caches is not None:
            rows.append(
                (step.id, "", "", "", "", "", f"caches of {formatting.count(job.caches.items, 'item')} were up to date")
            )
    if bars:
        lanes = list(dict.fromkeys(bar.lane for bar in bars))
        failures = sum(bar.failed for bar in bars)
        plot = timeline_plot(
            sorted(bars, key=lambda bar: bar.lane),
            until=max(until - begun, 1.0),
            name="timeline",
            title="Attempts of every step over time, by GPU",
            description=f"{formatting.count(len(bars), 'attempt')} on {', '.join(lanes)}, {failures} failed. "
            "The table below lists each.",
        )
        yield tag("div", Html(str(plot)), class_="scroll", tabindex=0)
        yield tag(
            "p", f"Begun {formatting.date_time(begun)}. An attempt that failed has a red edge and a ✗.", class_="soft"
        )
    if rows:
        yield table(("Step", "Attempt", "On", "Began", "Took", "Epochs", "Outcome"), rows, text_columns=(2, 5, 6))
    else:
        yield tag("p", "Nothing was started." if story.is_final else "Nothing is started yet.")


def _epochs(before: int, done: int) -> str:
    if done == before:
        return f"after {before:,}" if before else "0"
    return f"{before:,} to {done:,}" if before else f"{done:,}"


def gpus(story: Story) -> Iterator[Html]:
    yield tag("h2", "GPUs", id="gpus")
    view = story.view
    if view.plan.devices is Devices.CPU_SLOTS:
        yield tag("p", "It ran on CPU slots: there is nothing that a driver could measure.", class_="soft")
        return
    found = metrics.gpus(story.gpus)
    if not found:
        yield tag("p", "Nothing was recorded of them.", class_="soft")
        return
    begun = view.state.started if view.state.started is not None else view.plan.created
    plots = []
    for number, gpu in enumerate(found):
        samples = [sample for sample in story.gpus if sample.uuid == gpu.uuid]
        name = f"{formatting.safe(gpu.label)}, {formatting.gpu_name(gpu.name)}"
        peak = f"at most {gpu.peak_bytes / _GIB:.1f} of {gpu.total_bytes / _GIB:.1f} GiB"
        load = f", in use {gpu.mean_utilization:.0f} % on average" if gpu.mean_utilization is not None else ""
        plots.append(
            tag(
                "figure",
                tag("h3", name),
                Html(
                    str(
                        gpu_plot(
                            samples,
                            since=begun,
                            name=f"gpu-{number}",
                            title=f"Memory and utilisation of {name}",
                            description=f"{peak}{load}.",
                        )
                    )
                ),
                tag("figcaption", f"{peak}{load}."),
            )
        )
    yield tag("div", plots, class_="plots")
    rows: list[tuple[Child, ...]] = [
        (
            formatting.safe(gpu.label),
            formatting.gpu_name(gpu.name),
            f"{gpu.peak_bytes / _GIB:.1f} of {gpu.total_bytes / _GIB:.1f} GiB",
            "unknown" if gpu.mean_utilization is None else f"{gpu.mean_utilization:.0f} %",
            "unknown" if gpu.peak_temperature is None else f"{gpu.peak_temperature} °C",
            "unknown" if gpu.peak_watts is None else f"{gpu.peak_watts:.0f} W",
        )
        for gpu in found
    ]
    yield table(("GPU", "Name", "Most memory", "In use, mean", "Hottest", "Most power"), rows, text_columns=(1,))
    yield tag(
        "p",
        f"From NVML, one reading in {EVERY_SECONDS:.0f} s while a step was on the GPU: shorter peaks are not seen. "
        "Memory is that of all processes.",
        class_="soft",
    )

"""How a run went: the curves of its experts, its attempts over time, the readings of its GPUs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wan_train.base import units
from wan_train.base.units import GIB, count, fine_percent
from wan_train.recipe.model import format_number
from wan_train.recipe.terms import Expert
from wan_train.run.curves import Curve, LossSource, smoothed
from wan_train.run.plan import StepKind
from wan_train.run.state import Attempt
from wan_train.views import formatting, run_status
from wan_train.views.report import metrics
from wan_train.views.report.metrics import ExpertMetrics
from wan_train.views.report.plots import (
    Bar,
    Chart,
    Ink,
    Line,
    gpu_plot,
    movement_plot,
    outside_plot,
    timeline_plot,
    training_plot,
)
from wan_train.views.report.report_data import ReportData

if TYPE_CHECKING:
    from markupsafe import Markup

_INKS = {Expert.HIGH: Ink.HIGH, Expert.LOW: Ink.LOW}
_SOURCES = {
    LossSource.TENSORBOARD: "the trainer's TensorBoard files, with the loss and learning rate of each step",
    LossSource.PROGRESS_LINE: "the trainer's progress line, because there are no TensorBoard files: a moving average "
    "over an epoch with three digits and no learning rate",
}
_LAST_MOVEMENTS = 10
_QUARTERS = (0.1, 0.25, 0.5, 0.75, 1.0)


def loss_charts(report: ReportData, experts: Sequence[ExpertMetrics]) -> list[Chart]:
    """One for each expert that has trained a step."""
    return [_loss_chart(curve, each) for each in experts if (curve := report.curves.get(each.step, Curve())).points]


def _loss_chart(curve: Curve, each: ExpertMetrics) -> Chart:
    noise = f"{formatting.expert_name(each.expert)} expert"
    final = f"final loss {formatting.loss(each.final_loss)}" if each.final_loss is not None else "no valid loss"
    summary = [f"{count(each.steps_done, 'step')}, {final}"]
    superseded = sum(len(segment.points) - len(segment.counted) for segment in curve.segments)
    for number, what in (
        (outside_plot([curve]), "outside the plot"),
        (each.not_finite, "with an invalid loss (NaN or infinity)"),
        (superseded, "trained again"),
    ):
        if number:
            summary.append(f"{count(number, 'step')} {what}")
    text = "; ".join(summary)
    return Chart(
        title=noise.capitalize(),
        plot=training_plot(
            [Line(curve=curve, ink=_INKS[each.expert], label=noise)],
            name=f"curve-{each.expert.value}",
            title=f"Loss and learning rate of the {noise}",
            description=f"{text}. The table below has the values.",
        ),
        summary=text,
        source=_SOURCES[curve.source] if curve.source is not None else "",
        columns=("Step", "Smoothed loss", "Learning rate"),
        rows=_values(curve),
    )


def movement_chart(report: ReportData, experts: Sequence[ExpertMetrics]) -> Chart | None:
    """How far each LoRA moved between its states; None before the second state of any."""
    moved = [each for each in experts if each.job.movements]
    if not moved:
        return None
    names = {each.step: f"{formatting.expert_name(each.expert)} expert" for each in moved}
    last = [
        f"{names[each.step]} "
        + run_status.learning_text(report.view, report.view.plan.step(each.step), each.job.movements[-1])
        for each in moved
    ]
    return Chart(
        title="Movement of the LoRAs",
        plot=movement_plot(
            [
                (_INKS[each.expert], names[each.step], [(m.epoch, 100 * m.relative) for m in each.job.movements])
                for each in moved
            ],
            name="movement",
            title="Movement of each LoRA between its checkpoints",
            description=f"{'; '.join(last)}. The table below has the values.",
        ),
        summary="; ".join(last),
        source="the up x down matrices of the checkpoints: the norm of their change over their norm",
        columns=("Expert", "Epochs", "Movement"),
        rows=[
            (names[each.step], f"{m.since_epoch:,} to {m.epoch:,}", fine_percent(m.relative))
            for each in moved
            for m in each.job.movements[-_LAST_MOVEMENTS:]
        ],
    )


def _values(curve: Curve) -> list[tuple[str, str, str]]:
    points = curve.points
    losses = smoothed([point.loss for point in points])
    rows = []
    for place in dict.fromkeys(max(0, math.ceil(share * len(points)) - 1) for share in _QUARTERS):
        loss, rate = losses[place], points[place].lr
        rows.append(
            (
                f"{points[place].step:,}",
                formatting.loss(loss) if math.isfinite(loss) else "invalid",
                "unknown" if rate is None else format_number(float(f"{rate:.3g}")),
            )
        )
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """`plot` is None where nothing was started; rows have the columns of report.html."""

    started: float
    plot: Markup | None
    rows: Sequence[Sequence[str]]


def timeline(report: ReportData) -> Timeline:
    """The attempts of every step."""
    view = report.view
    started = started_at(report)
    until = view.state.finished.at if view.state.finished is not None else report.made
    bars: list[Bar] = []
    rows: list[Sequence[str]] = []
    for step, job in run_status.steps_of(view):
        for attempt in job.attempts:
            end = attempt.ended if attempt.ended is not None else until
            outcome, failed = metrics.outcome_of(job, attempt)
            lane = formatting.safe(attempt.gpu_label or "no GPU")
            bars.append(
                Bar(
                    lane=lane,
                    label=step.id if attempt.number == 1 else f"{step.id} {attempt.number}",
                    begin=max(0.0, attempt.started - started),
                    end=max(0.0, end - started),
                    ink=_INKS[step.expert] if step.expert is not None else Ink.CACHE,
                    failed=failed,
                )
            )
            rows.append(
                (
                    step.id,
                    f"{attempt.number}",
                    lane,
                    formatting.clock(attempt.started),
                    units.duration(max(0.0, end - attempt.started)),
                    _epochs(attempt) if step.kind is StepKind.TRAIN else "",
                    outcome + "".join(f"; {name}={value}" for name, value in attempt.changes.items()),
                )
            )
        if not job.attempts and job.caches is not None:
            cached = f"caches of {count(job.caches.items, 'item')} were up to date"
            rows.append((step.id, "", "", "", "", "", cached))
    return Timeline(started=started, plot=_plot(bars, until - started) if bars else None, rows=rows)


def started_at(report: ReportData) -> float:
    """When the run started, or when it was planned; in seconds since 1970."""
    state, plan = report.view.state, report.view.plan
    return state.started if state.started is not None else plan.created


def _plot(bars: Sequence[Bar], until: float) -> Markup:
    lanes = dict.fromkeys(bar.lane for bar in bars)
    failures = sum(bar.failed for bar in bars)
    return timeline_plot(
        sorted(bars, key=lambda bar: bar.lane),
        until=max(until, 1.0),
        name="timeline-plot",
        title="Attempts of every step over time, by GPU",
        description=f"{count(len(bars), 'attempt')} on {', '.join(lanes)}, {failures} failed. "
        "The table below lists each.",
    )


def _epochs(attempt: Attempt) -> str:
    before, done = attempt.epochs_before, attempt.epochs_done
    if done == before:
        return f"after {before:,}" if before else "0"
    return f"{before:,} to {done:,}" if before else f"{done:,}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReadings:
    """A chart for each GPU; rows have the columns of report.html."""

    charts: Sequence[Chart]
    rows: Sequence[Sequence[str]]


def gpu_readings(report: ReportData) -> GpuReadings:
    charts, rows = [], []
    for number, gpu in enumerate(metrics.gpus(report.gpus)):
        label, name = formatting.safe(gpu.label), formatting.gpu_name(gpu.name)
        memory = f"{gpu.peak_bytes / GIB:.1f} of {gpu.total_bytes / GIB:.1f} GiB"
        load = "unknown" if gpu.mean_utilization is None else f"{gpu.mean_utilization:.0f} %"
        summary = f"Peak memory {memory}, mean utilization {load}"
        plot = gpu_plot(
            [sample for sample in report.gpus if sample.uuid == gpu.uuid],
            since=started_at(report),
            name=f"gpu-{number}",
            title=f"Memory and utilization of {label}, {name}",
            description=f"{summary}.",
        )
        charts.append(Chart(title=f"{label}, {name}", plot=plot, summary=summary))
        hottest = "unknown" if gpu.peak_temperature is None else f"{gpu.peak_temperature} °C"
        power = "unknown" if gpu.peak_watts is None else f"{gpu.peak_watts:.0f} W"
        rows.append((label, name, memory, load, hottest, power))
    return GpuReadings(charts=charts, rows=rows)

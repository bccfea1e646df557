"""Runs side by side: their settings that differ and their results, for a terminal, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from wan_train.base import units
from wan_train.base.units import GIB, count
from wan_train.recipe.effective import effective
from wan_train.recipe.terms import Expert
from wan_train.run.curves import Curve
from wan_train.run.state import Attempt
from wan_train.views import formatting, run_status
from wan_train.views.cost import cost_of
from wan_train.views.html.render import render
from wan_train.views.lines import Line, Screenful, Span, line
from wan_train.views.report import metrics
from wan_train.views.report.metrics import ExpertMetrics
from wan_train.views.report.plots import Chart, Ink, training_plot
from wan_train.views.report.plots import Line as Training
from wan_train.views.report.report_data import ReportData
from wan_train.views.report.report_json import report_json

GENERATOR = "wan-train comparison"
"""Marks every comparison page, so that only pages of this kind are overwritten."""
_GAP = 2
_LEAST_COLUMN = 14
_INKS = (Ink.HIGH, Ink.LOW, Ink.SECOND, Ink.THIRD, Ink.FOURTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One fact of each run, in the order of the runs; None for a run without it."""

    group: str
    name: str
    values: tuple[str | None, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


def compared(reports: Sequence[ReportData]) -> tuple[Compared, ...]:
    """The rows of the comparison, by group. Settings that are the same in all runs are left out."""
    return tuple(_rows(reports))


def same_settings(reports: Sequence[ReportData]) -> int:
    """How many settings are the same in all runs."""
    return sum(not row.differs for row in _settings(reports))


def _rows(reports: Sequence[ReportData]) -> Iterator[Compared]:
    general: list[tuple[str, list[str | None]]] = [
        ("title", [formatting.safe(report.view.plan.answers.title) for report in reports]),
        ("state", [run_status.status_of(report.view).value for report in reports]),
        ("duration", [units.duration(run_status.worked(report.view, report.made)) for report in reports]),
        *_money(reports),
        ("failed attempts", [str(sum(_failed(a) for a in _attempts(report))) for report in reports]),
        ("trainer", [formatting.safe(report.view.plan.trainer.version) for report in reports]),
        ("dataset", [formatting.safe(report.view.plan.dataset.source) for report in reports]),
        ("files", [f"{report.view.plan.dataset.items:,}" for report in reports]),
    ]
    for name, values in general:
        yield Compared(group="Run", name=name, values=tuple(values))
    for expert in Expert:
        yield from _expert(reports, expert)
    yield from _gpus(reports)
    yield from (row for row in _settings(reports) if row.differs)


def _money(reports: Sequence[ReportData]) -> Iterator[tuple[str, list[str | None]]]:
    """The rows about cost; none if no run has a price."""
    costs = [cost_of(report.view, report.made) for report in reports]
    if any(costs):
        yield "spent", [None if cost is None else units.dollars(cost.spent) for cost in costs]
        hours = [None if cost is None else formatting.dollars_per_hour(cost.per_hour) for cost in costs]
        yield "price of the box", hours


def _expert(reports: Sequence[ReportData], expert: Expert) -> Iterator[Compared]:
    found = [next((e for e in metrics.experts(report) if e.expert is expert), None) for report in reports]
    if not any(found):
        return
    for name, value_of in (
        ("epochs", _epochs),
        ("steps", lambda each: f"{each.steps_done:,}"),
        ("final loss", lambda each: None if each.final_loss is None else formatting.loss(each.final_loss)),
        ("pace", lambda each: None if each.seconds_per_step is None else formatting.pace(each.seconds_per_step)),
        ("training time", lambda each: None if each.seconds is None else units.duration(each.seconds)),
        ("LoRA", lambda each: None if each.job.result is None else units.file_size(each.job.result.bytes)),
    ):
        yield Compared(
            group=f"{expert.value.capitalize()}-noise expert",
            name=name,
            values=tuple(None if each is None else value_of(each) for each in found),
        )


def _epochs(each: ExpertMetrics) -> str:
    return f"{each.epochs_done:,} of {each.epochs:,}"


def _gpus(reports: Sequence[ReportData]) -> Iterator[Compared]:
    found = [metrics.gpus(report.gpus) for report in reports]
    if not any(found):
        return
    names = [", ".join(dict.fromkeys(formatting.gpu_name(gpu.name) for gpu in gpus)) or None for gpus in found]
    peaks = [f"{max(gpu.peak_bytes for gpu in gpus) / GIB:.1f} GiB" if gpus else None for gpus in found]
    yield Compared(group="GPU", name="name", values=tuple(names))
    yield Compared(group="GPU", name="peak memory", values=tuple(peaks))


def _settings(reports: Sequence[ReportData]) -> Iterator[Compared]:
    for row in effective([report.view.plan.recipe for report in reports]):
        values = tuple(None if value is None else formatting.safe(value) for value in row.values)
        yield Compared(group="Settings that differ", name=row.label, values=values)


def _attempts(report: ReportData) -> Iterator[Attempt]:
    for _, job in run_status.steps_of(report.view):
        yield from job.attempts


def _failed(attempt: Attempt) -> bool:
    return (attempt.diagnosis or attempt.stop_diagnosis) is not None


def compared_lines(reports: Sequence[ReportData]) -> Screenful:
    """The table for a terminal. Values that differ are bold."""
    return Screenful(lambda width: _lines(reports, width))


def _lines(reports: Sequence[ReportData], width: int) -> Iterator[Line]:
    rows = compared(reports)
    labels = max(len(row.name) for row in rows) + 2 * _GAP
    room = max(_LEAST_COLUMN, (width - labels + _GAP) // len(reports) - _GAP)
    heads = tuple(formatting.safe(report.view.plan.run_id) for report in reports)
    yield from _row("", heads, labels, room, style="bold")
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            yield line()
            yield line(Span(group, "bold"))
        yield from _row(f"  {row.name}", row.values, labels, room, style="bold cyan" if row.differs else "")
    yield line()
    yield line(Span(f"{count(same_settings(reports), 'setting')} the same in all runs", "dim"))


def _row(label: str, values: Sequence[str | None], labels: int, room: int, *, style: str) -> Iterator[Line]:
    wrapped = [list(formatting.wrap(value if value is not None else "-", room)) for value in values]
    for number in range(max(len(pieces) for pieces in wrapped)):
        cells = [pieces[number] if number < len(pieces) else "" for pieces in wrapped]
        yield line(
            Span(formatting.pad(label if number == 0 else "", labels), "dim"),
            *(Span(formatting.pad(cell, room + _GAP), style) for cell in cells[:-1]),
            Span(cells[-1], style),
        )


def compare_json(reports: Sequence[ReportData]) -> dict[str, Any]:
    """`{event: "compare", runs, rows}`; `runs` are reports without their points and attempts."""
    return {
        "event": "compare",
        "runs": [_short(report_json(report)) for report in reports],
        "rows": [
            {"group": row.group, "name": row.name, "values": list(row.values), "differs": row.differs}
            for row in compared(reports)
        ],
    }


def _short(report: dict[str, Any]) -> dict[str, Any]:
    left_out = {"event", "schema", "attempts"}
    kept = {key: value for key, value in report.items() if key not in left_out}
    return {**kept, "experts": [{k: v for k, v in each.items() if k != "points"} for each in report["experts"]]}


def comparison_page(reports: Sequence[ReportData]) -> str:
    """The whole HTML document."""
    names = [formatting.safe(report.view.plan.run_id) for report in reports]
    return render(
        "report/comparison.html",
        generator=GENERATOR,
        names=names,
        charts=[chart for expert in Expert if (chart := _chart(reports, names, expert)) is not None],
        same_dataset=len({report.view.plan.dataset.source for report in reports}) == 1,
        groups=[(group, list(rows)) for group, rows in groupby(compared(reports), key=lambda row: row.group)],
        same=count(same_settings(reports), "setting"),
        version=reports[0].version,
        made=reports[0].made,
    )


def _chart(reports: Sequence[ReportData], names: Sequence[str], expert: Expert) -> Chart | None:
    """The curves of one expert; None where no run has trained it."""
    lines = []
    for number, (report, name) in enumerate(zip(reports, names, strict=True)):
        step = next((step for step in report.view.plan.steps if step.expert is expert), None)
        curve = report.curves.get(step.id, Curve()) if step is not None else Curve()
        if curve.points:
            lines.append(Training(curve=curve, ink=_INKS[number % len(_INKS)], label=name))
    if not lines:
        return None
    noise = f"{formatting.expert_name(expert)} expert"
    plot = training_plot(
        lines,
        name=f"curve-{expert.value}",
        title=f"Loss and learning rate of the {noise}",
        description=f"One line for each of {', '.join(line.label for line in lines)}. The tables have the values.",
    )
    return Chart(title=noise.capitalize(), plot=plot)

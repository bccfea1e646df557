"""Runs side by side: their settings that differ and their results, for a terminal, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from wan_train.base.units import GIB
from wan_train.recipe.effective import effective
from wan_train.recipe.terms import Expert
from wan_train.run.curves import Curve
from wan_train.run.state import Attempt
from wan_train.views import formatting
from wan_train.views import run_status as facts
from wan_train.views.html.render import render
from wan_train.views.lines import Line, Screenful, Span, line
from wan_train.views.report import metrics
from wan_train.views.report.metrics import ExpertFigures
from wan_train.views.report.plots import Chart, Ink, training_plot
from wan_train.views.report.plots import Line as Training
from wan_train.views.report.report_data import Story
from wan_train.views.report.report_json import report_json

GENERATOR = "wan-train comparison"
"""In every page of a comparison, so that only pages of this kind are replaced."""
_GAP = 2
_LEAST_COLUMN = 14
_INKS = (Ink.HIGH, Ink.LOW, Ink.SECOND, Ink.THIRD, Ink.FOURTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One fact of each run, in the order of the runs; None where a run has none."""

    group: str
    name: str
    values: tuple[str | None, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


def compared(stories: Sequence[Story]) -> tuple[Compared, ...]:
    """The rows of the comparison, by group. Of the settings only those that differ."""
    return tuple(_rows(stories))


def same_settings(stories: Sequence[Story]) -> int:
    """How many settings are the same in all runs."""
    return sum(not row.differs for row in _settings(stories))


def _rows(stories: Sequence[Story]) -> Iterator[Compared]:
    for name, values in (
        ("title", [formatting.safe(story.view.plan.answers.title) for story in stories]),
        ("state", [facts.status_of(story.view).value for story in stories]),
        ("took", [formatting.duration(facts.worked(story.view, story.made)) for story in stories]),
        ("attempts failed", [str(sum(_failed(a) for a in _attempts(story))) for story in stories]),
        ("trainer", [formatting.safe(story.view.plan.trainer.version) for story in stories]),
        ("dataset", [formatting.safe(story.view.plan.dataset.source) for story in stories]),
        ("files", [f"{story.view.plan.dataset.items:,}" for story in stories]),
    ):
        yield Compared(group="Run", name=name, values=tuple(values))
    for expert in Expert:
        yield from _expert(stories, expert)
    yield from _gpus(stories)
    yield from (row for row in _settings(stories) if row.differs)


def _expert(stories: Sequence[Story], expert: Expert) -> Iterator[Compared]:
    found = [next((e for e in metrics.experts(story) if e.expert is expert), None) for story in stories]
    if not any(found):
        return
    for name, value_of in (
        ("epochs", _epochs),
        ("steps", lambda each: f"{each.steps_done:,}"),
        ("final loss", lambda each: None if each.final_loss is None else formatting.loss(each.final_loss)),
        ("pace", lambda each: None if each.seconds_per_step is None else formatting.pace(each.seconds_per_step)),
        ("training took", lambda each: None if each.seconds is None else formatting.duration(each.seconds)),
        ("LoRA", lambda each: None if each.job.result is None else formatting.file_size(each.job.result.bytes)),
    ):
        yield Compared(
            group=f"{expert.value.capitalize()}-noise expert",
            name=name,
            values=tuple(None if each is None else value_of(each) for each in found),
        )


def _epochs(each: ExpertFigures) -> str:
    return f"{each.epochs_done:,} of {each.epochs:,}"


def _gpus(stories: Sequence[Story]) -> Iterator[Compared]:
    found = [metrics.gpus(story.gpus) for story in stories]
    if not any(found):
        return
    names = [", ".join(dict.fromkeys(formatting.gpu_name(gpu.name) for gpu in gpus)) or None for gpus in found]
    peaks = [f"{max(gpu.peak_bytes for gpu in gpus) / GIB:.1f} GiB" if gpus else None for gpus in found]
    yield Compared(group="GPU", name="name", values=tuple(names))
    yield Compared(group="GPU", name="most memory", values=tuple(peaks))


def _settings(stories: Sequence[Story]) -> Iterator[Compared]:
    for row in effective([story.view.plan.recipe for story in stories]):
        values = tuple(None if value is None else formatting.safe(value) for value in row.values)
        yield Compared(group="Settings that differ", name=row.label, values=values)


def _attempts(story: Story) -> Iterator[Attempt]:
    for _, job in facts.steps_of(story.view):
        yield from job.attempts


def _failed(attempt: Attempt) -> bool:
    return (attempt.diagnosis or attempt.stop_diagnosis) is not None


def compared_lines(stories: Sequence[Story]) -> Screenful:
    """The table for a terminal. Values that differ are bold."""
    return Screenful(lambda width: _lines(stories, width))


def _lines(stories: Sequence[Story], width: int) -> Iterator[Line]:
    rows = compared(stories)
    labels = max(len(row.name) for row in rows) + 2 * _GAP
    room = max(_LEAST_COLUMN, (width - labels + _GAP) // len(stories) - _GAP)
    heads = tuple(formatting.safe(story.view.plan.run_id) for story in stories)
    yield from _row("", heads, labels, room, style="bold")
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            yield line()
            yield line(Span(group, "bold"))
        yield from _row(f"  {row.name}", row.values, labels, room, style="bold cyan" if row.differs else "")
    yield line()
    yield line(Span(f"{formatting.count(same_settings(stories), 'setting')} the same in all runs", "dim"))


def _row(label: str, values: Sequence[str | None], labels: int, room: int, *, style: str) -> Iterator[Line]:
    wrapped = [list(formatting.wrap(value if value is not None else "-", room)) for value in values]
    for number in range(max(len(pieces) for pieces in wrapped)):
        cells = [pieces[number] if number < len(pieces) else "" for pieces in wrapped]
        yield line(
            Span(formatting.pad(label if number == 0 else "", labels), "dim"),
            *(Span(formatting.pad(cell, room + _GAP), style) for cell in cells[:-1]),
            Span(cells[-1], style),
        )


def compare_json(stories: Sequence[Story]) -> dict[str, Any]:
    """`{event: "compare", runs, rows}`; `runs` are reports without their points and commands."""
    return {
        "event": "compare",
        "runs": [_short(report_json(story)) for story in stories],
        "rows": [
            {"group": row.group, "name": row.name, "values": list(row.values), "differs": row.differs}
            for row in compared(stories)
        ],
    }


def _short(report: dict[str, Any]) -> dict[str, Any]:
    left_out = {"event", "schema", "attempts"}
    kept = {key: value for key, value in report.items() if key not in left_out}
    return {**kept, "experts": [{k: v for k, v in each.items() if k != "points"} for each in report["experts"]]}


def comparison_page(stories: Sequence[Story]) -> str:
    """The whole HTML document."""
    names = [formatting.safe(story.view.plan.run_id) for story in stories]
    return render(
        "report/comparison.html",
        generator=GENERATOR,
        names=names,
        charts=[chart for expert in Expert if (chart := _chart(stories, names, expert)) is not None],
        same_dataset=len({story.view.plan.dataset.source for story in stories}) == 1,
        groups=[(group, list(rows)) for group, rows in groupby(compared(stories), key=lambda row: row.group)],
        same=formatting.count(same_settings(stories), "setting"),
        version=stories[0].version,
        made=stories[0].made,
    )


def _chart(stories: Sequence[Story], names: Sequence[str], expert: Expert) -> Chart | None:
    """The curves of one expert; None where no run has trained it."""
    lines = []
    for number, (story, name) in enumerate(zip(stories, names, strict=True)):
        step = next((step for step in story.view.plan.steps if step.expert is expert), None)
        curve = story.curves.get(step.id, Curve()) if step is not None else Curve()
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

"""Two or more runs on one page: their curves over each other, and the table of what differs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from wan_train.recipe.terms import Expert
from wan_train.run.curves import Curve
from wan_train.views import formatting
from wan_train.views.markup.document import document
from wan_train.views.markup.html import Child, Html, join, tag
from wan_train.views.markup.parts import table
from wan_train.views.report.comparing import Compared, compared, same_settings
from wan_train.views.report.page import STYLE
from wan_train.views.report.plots import Line, training_plot
from wan_train.views.report.report_data import Story
from wan_train.views.report.svg import Ink

GENERATOR = "wan-train comparison"
"""In every comparison, so that it can be known as ours before it is replaced."""
_INKS = (Ink.HIGH, Ink.LOW, Ink.SECOND, Ink.THIRD, Ink.FOURTH)


def comparison_page(stories: Sequence[Story]) -> str:
    """The whole document."""
    names = [formatting.safe(story.view.plan.run_id) for story in stories]
    main: list[Child | Iterable[Child]] = [_curves(stories, names), _tables(stories, names)]
    body = [
        tag("a", "Skip to the comparison", href="#comparison", class_="skip"),
        tag(
            "header",
            tag("h1", f"{len(stories)} trainings compared"),
            tag("p", ", ".join(names), class_="soft path"),
        ),
        tag("main", join(main), id="comparison"),
        tag(
            "footer",
            f"Made by wan-train {stories[0].version}, {formatting.date_time(stories[0].made)}. "
            "Everything is inside this file; it loads nothing.",
        ),
    ]
    return document(title=f"Compared: {', '.join(names)}", generator=GENERATOR, styles=[STYLE], body=body)


def _curves(stories: Sequence[Story], names: Sequence[str]) -> Iterator[Html]:
    yield tag("h2", "Loss and learning rate")
    drawn = [html for expert in Expert for html in _expert(stories, names, expert)]
    if not drawn:
        yield tag("p", "None of them has trained a step.")
        return
    yield tag("div", drawn, class_="plots")
    datasets = {str(story.view.plan.dataset.source) for story in stories}
    yield tag(
        "p",
        "Strong: smoothed, moving average of about 50 steps. Losses can be compared only where the same pictures were "
        "trained at the same resolution.",
        " These runs have different datasets." if len(datasets) > 1 else None,
        class_="soft",
    )


def _expert(stories: Sequence[Story], names: Sequence[str], expert: Expert) -> Iterator[Html]:
    lines = []
    for number, (story, name) in enumerate(zip(stories, names, strict=True)):
        step = next((step for step in story.view.plan.steps if step.expert is expert), None)
        curve = story.curves.get(step.id, Curve()) if step is not None else Curve()
        if curve.points:
            lines.append(Line(curve=curve, ink=_INKS[number % len(_INKS)], label=name))
    if lines:
        noise = f"{expert.value}-noise expert"
        plot = training_plot(
            lines,
            name=f"curve-{expert.value}",
            title=f"Loss and learning rate of the {noise}",
            description=f"One line for each of {', '.join(line.label for line in lines)}. The table has the figures.",
        )
        yield tag("figure", tag("h3", noise.capitalize()), plot)


def _tables(stories: Sequence[Story], names: Sequence[str]) -> Iterator[Html]:
    columns = range(1, len(names) + 1)
    for group, rows in groupby(compared(stories), key=lambda row: row.group):
        yield tag("h2", group)
        yield table(("What", *names), [_row(row) for row in rows], text_columns=columns)
    yield tag("p", f"{formatting.count(same_settings(stories), 'setting')} the same in all of them.", class_="soft")


def _row(row: Compared) -> tuple[Child, ...]:
    return (row.name, *(tag("strong", value or "-") if row.differs else value or "-" for value in row.values))

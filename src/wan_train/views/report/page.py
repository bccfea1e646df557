"""The report as a page: what came out on top, then how it went, then with what. One file, no script."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from wan_train.views import formatting
from wan_train.views import run_status as facts
from wan_train.views.markup.document import document, style
from wan_train.views.markup.html import Child, Html, join, tag
from wan_train.views.report import metrics, recipe_part, result_part, timeline
from wan_train.views.report.contact_sheet import contact_sheets
from wan_train.views.report.dataset_part import dataset
from wan_train.views.report.metrics import ExpertFigures
from wan_train.views.report.report_data import Story

GENERATOR = "wan-train run report"
"""In every report, so that it can be known as ours before it is replaced."""
STYLE = style("wan_train.views.report", "report.css")

_SECTIONS = (
    ("files", "Files"),
    ("curves", "Curves"),
    ("timeline", "Course"),
    ("gpus", "GPUs"),
    ("samples", "Samples"),
    ("dataset", "Dataset"),
    ("settings", "Settings"),
    ("commands", "Commands"),
    ("versions", "Versions"),
    ("again", "Again"),
)


def page(story: Story) -> str:
    """The whole document."""
    experts = metrics.experts(story)
    main: list[Child | Iterable[Child]] = [
        result_part.verdict(story),
        tag(
            "dl",
            [tag("div", tag("dt", name), tag("dd", *said)) for name, said in _facts(story, experts)],
            class_="facts",
        ),
        result_part.troubles(story),
        result_part.result_files(story, experts),
        timeline.curves(story, experts),
        timeline.timeline(story),
        timeline.gpus(story),
        contact_sheets(story),
        dataset(story),
        recipe_part.settings(story),
        recipe_part.commands(story),
        recipe_part.versions(story),
        recipe_part.once_more(story),
    ]
    title = formatting.safe(story.view.plan.answers.title)
    body = [
        tag("a", "Skip to the report", href="#report", class_="skip"),
        tag("header", _head(story), _navigation(story)),
        tag("main", join(main), id="report"),
        tag(
            "footer",
            f"Made by wan-train {story.version}, {formatting.date_time(story.made)}. "
            "Everything is inside this file; it loads nothing. The same as data: report.json.",
        ),
    ]
    return document(
        title=f"{title}: report of a training",
        generator=GENERATOR,
        styles=[style("wan_train.views.dataset_page", "dataset.css"), STYLE],
        body=body,
    )


def _head(story: Story) -> Iterator[Html]:
    plan = story.view.plan
    yield tag("h1", tag("bdi", formatting.safe(plan.answers.title)))
    kind = "rehearsal" if facts.is_rehearsal(story.view) else "Wan 2.2 LoRA"
    yield tag(
        "p",
        f"{kind} · {plan.recipe.task.value} · by ",
        tag("bdi", formatting.safe(plan.answers.author)),
        " · run ",
        tag("bdi", formatting.safe(plan.run_id), dir="ltr", class_="path"),
        class_="soft",
    )


def _navigation(story: Story) -> Html:
    shown = [(anchor, name) for anchor, name in _SECTIONS if anchor != "samples" or story.samples]
    links = [tag("li", tag("a", name, href=f"#{anchor}")) for anchor, name in shown]
    return tag("nav", tag("ul", links), aria_label="Parts of the report")


def _facts(story: Story, experts: tuple[ExpertFigures, ...]) -> Iterator[tuple[str, tuple[Html | str, ...]]]:
    view = story.view
    begun = view.state.started if view.state.started is not None else view.plan.created
    yield "Took", (facts.took(view, story.made), _small(f"began {formatting.date_time(begun)}"))
    yield "Dataset", (f"{view.plan.dataset.items:,}", _small(f"files, {view.plan.dataset.captions:,} with caption"))
    for each in experts:
        loss = "no loss yet" if each.final_loss is None else f"loss {formatting.loss(each.final_loss)}"
        pace = f", {formatting.pace(each.seconds_per_step)}" if each.seconds_per_step is not None else ""
        said = f"of {formatting.count(each.epochs, 'epoch')} · {formatting.count(each.steps_done, 'step')}{pace}"
        yield f"{each.expert.value.capitalize()}-noise expert", (f"{each.epochs_done:,}", _small(said), _small(loss))


def _small(text: str) -> Html:
    return tag("small", text)

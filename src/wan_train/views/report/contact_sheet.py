"""The samples that were made while it trained: rows of epochs, columns of prompts, a sheet for each expert."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_train.dataset.previews import Preview
from wan_train.engine.sample_files import SampleKind
from wan_train.recipe.terms import Expert
from wan_train.run.samples import Sample
from wan_train.views import formatting
from wan_train.views.markup.html import Html, tag
from wan_train.views.report.report_data import Story

MOST_PICTURES = 24
"""Of one expert. Each is at most 16 kB, so that the whole page stays one that a phone opens."""
_MOST_PROMPTS = 6
_LONGEST_PROMPT = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """Which samples of an expert are shown: `epochs` down, `prompts` (index and text) across."""

    epochs: tuple[int, ...]
    prompts: tuple[tuple[int, str], ...]
    cells: Mapping[tuple[int, int], Sample]
    """By epoch and prompt index."""
    made: int


def sheet(samples: Sequence[Sample], expert: Expert) -> Sheet:
    """The first prompts, and epochs spread evenly with the first and the last among them."""
    found = [sample for sample in samples if sample.expert is expert]
    prompts = tuple(sorted({sample.prompt_index: sample.prompt for sample in found}.items()))[:_MOST_PROMPTS]
    epochs = sorted({sample.epoch for sample in found})
    rows = max(2, MOST_PICTURES // max(1, len(prompts)))
    if len(epochs) > rows:
        epochs = [epochs[place * (len(epochs) - 1) // (rows - 1)] for place in range(rows)]
    columns = {index for index, _ in prompts}
    return Sheet(
        epochs=tuple(epochs),
        prompts=prompts,
        cells={
            (sample.epoch, sample.prompt_index): sample
            for sample in found
            if sample.epoch in epochs and sample.prompt_index in columns
        },
        made=len(found),
    )


def contact_sheets(story: Story) -> Iterator[Html]:
    if not story.samples:
        return
    yield tag("h2", "Samples", id="samples")
    trained = [step.expert for step in story.view.plan.steps if step.expert is not None]
    sheets = [(expert, shown) for expert in trained if (shown := sheet(story.samples, expert)).made]
    yield tag("div", [tag("section", _sheet(story, expert, shown)) for expert, shown in sheets], class_="sheets")
    yield tag(
        "p",
        "Made by the trainer while it trained, with the LoRA of one expert on that expert's model alone: blurry or "
        "noisy ones are normal. Compare epochs, not experts. Of clips the first frame is shown.",
        class_="soft",
    )


def _sheet(story: Story, expert: Expert, shown: Sheet) -> Iterator[Html]:
    yield tag("h3", f"{expert.value.capitalize()}-noise expert")
    yield tag("div", _table(shown, story.sample_pictures), class_="scroll", tabindex=0)
    left = shown.made - len(shown.cells)
    if left:
        yield tag("p", f"and {formatting.count(left, 'more sample')}, not shown", class_="soft")


def _table(shown: Sheet, pictures: Mapping[Path, Preview]) -> Html:
    head = tag(
        "tr", tag("th", "Epoch", scope="col"), [tag("th", _prompt(text), scope="col") for _, text in shown.prompts]
    )
    rows = [
        tag(
            "tr",
            tag("th", f"{epoch:,}" if epoch else "before the first step", scope="row"),
            [tag("td", _cell(shown.cells.get((epoch, index)), pictures)) for index, _ in shown.prompts],
        )
        for epoch in shown.epochs
    ]
    return tag("table", tag("thead", head), tag("tbody", rows), class_="sheet")


def _prompt(text: str) -> Html:
    return tag("bdi", formatting.cut(formatting.safe(text), _LONGEST_PROMPT), dir="auto")


def _cell(sample: Sample | None, pictures: Mapping[Path, Preview]) -> Html | str:
    if sample is None:
        return "-"
    preview = pictures.get(sample.path)
    if preview is None:
        return tag("span", "not readable here", class_="soft")
    data = base64.b64encode(preview.jpeg).decode("ascii")
    what = "First frame of a clip" if sample.kind is SampleKind.CLIP else "Sample"
    return tag(
        "img",
        src=f"data:image/jpeg;base64,{data}",
        alt=f"{what} after epoch {sample.epoch:,}: {formatting.cut(formatting.safe(sample.prompt), _LONGEST_PROMPT)}",
        width=preview.width,
        height=preview.height,
        decoding="async",
    )

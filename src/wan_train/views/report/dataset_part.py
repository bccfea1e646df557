"""What was trained on: the dataset counted, its sizes, some of its pictures with their captions."""

from __future__ import annotations

from collections.abc import Iterator

from wan_train.views import formatting
from wan_train.views.dataset_page.cards import card
from wan_train.views.dataset_tables import settings_of
from wan_train.views.html.render import render
from wan_train.views.markup.html import Html, tag
from wan_train.views.markup.parts import path_text
from wan_train.views.report.report_data import Story


def dataset(story: Story) -> Iterator[Html]:
    yield tag("h2", "Dataset", id="dataset")
    plan = story.view.plan
    counted = plan.dataset
    said = [formatting.count(counted.items, "file"), formatting.count(counted.captions, "caption")]
    if counted.repeats is not None:
        said.append(f"{counted.repeats:,} items seen in an epoch")
    if counted.batches_per_epoch is not None:
        said.append(f"{formatting.count(counted.batches_per_epoch, 'batch', 'batches')} an epoch")
    yield tag("p", ", ".join(said), ".")
    yield tag("p", path_text(counted.source), class_="soft path")
    shown = story.dataset
    if shown is None:
        if story.dataset_missing is not None:
            yield tag("p", f"Its pictures cannot be shown: {formatting.safe(story.dataset_missing)}.", class_="soft")
        return
    now = shown.outlook.summary
    if (now.files, now.captions) != (counted.items, counted.captions):
        yield tag(
            "p",
            f"It has changed since: {formatting.count(now.files, 'file')} and "
            f"{formatting.count(now.captions, 'caption')} are there now.",
            class_="said warns",
        )
    for number, (each, sizes) in enumerate(zip(shown.outlook.subsets, shown.selection.datasets, strict=True)):
        yield tag("h3", path_text(each.subset.directory or each.subset.jsonl or ""))
        yield tag("p", settings_of(each.subset), class_="soft")
        cards = [
            card(
                one,
                each.subset.kind,
                anchor=f"file-{number}-{place}-{index}",
                preview=shown.material.previews.get(one.item.path),
                caption=shown.material.captions.get(one.item.path),
            )
            for place, size in enumerate(sizes)
            for index, one in enumerate(size.shown)
        ]
        if cards:
            yield Html(render("dataset_page/card_list.html", listed=cards))
        left = sum(size.left for size in sizes)
        if left:
            yield tag("p", f"and {formatting.count(left, 'more file')}, not shown", class_="soft")
    yield tag("p", "Pictures and captions as they are in the folder now.", class_="soft")

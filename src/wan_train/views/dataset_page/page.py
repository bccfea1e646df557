"""The page: what is wrong on top, then the sizes, then every picture with its crop and caption. One file, no script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from wan_train.dataset.layout import Layout, SubsetLayout
from wan_train.dataset.model import MediaKind, Problem, Severity
from wan_train.dataset.scan import Check, Group
from wan_train.views import formatting
from wan_train.views.dataset_page.cards import card, sentence, severity_mark
from wan_train.views.dataset_page.material import Material
from wan_train.views.dataset_page.selection import Selection, ShownSize, problems_by_item
from wan_train.views.dataset_tables import (
    COUNTED,
    TITLES,
    batches_text,
    nouns,
    percent,
    settings_of,
    severity_counts,
    times,
)
from wan_train.views.markup.document import document, style
from wan_train.views.markup.html import Html, join, tag

GENERATOR = "wan-train dataset page"
"""In every page, so that a page can be known as ours before it is replaced."""
STYLE = style("wan_train.views.dataset_page", "page.css")

_MOST_OF_A_KIND = 50
_OPEN_UP_TO = 8
_MOST_SIZES = 200


def page(check: Check, outlook: Layout | None, selection: Selection, material: Material) -> str:
    """The whole document. `outlook` is None where no file was looked at."""
    body = [
        tag("a", "Skip to the pictures", href="#pictures", class_="skip"),
        tag("header", _head(check, outlook)),
        tag(
            "main", _problems(check, outlook, selection), _datasets(check, outlook, selection, material), id="pictures"
        ),
        tag("footer", "Made by wan-train dataset check. Everything is inside this file; it loads nothing."),
    ]
    title = f"What will be trained: {formatting.safe(check.config.parent.name)}"
    return document(title=title, generator=GENERATOR, styles=[STYLE], body=body)


def _head(check: Check, outlook: Layout | None) -> Iterator[Html]:
    yield tag("h1", "What will be trained")
    written = "" if check.is_written else " (not written yet)"
    yield tag(
        "p",
        tag("bdi", formatting.safe(check.config), dir="ltr"),
        f"{written}, as {check.reading.name} reads it",
        class_="soft path",
    )
    if outlook is not None:
        yield tag(
            "dl", [tag("div", tag("dt", name), tag("dd", *value)) for name, value in _facts(outlook)], class_="facts"
        )


def _facts(outlook: Layout) -> Iterator[tuple[str, tuple[Html | str, ...]]]:
    counted = outlook.summary
    yield "Files", (f"{counted.files:,}", _small(f"{counted.captions:,} with caption"))
    seen = counted.items_with_repeats
    yield "Seen in one epoch", ("unknown" if seen is None else f"{seen:,}", _small("items with repeats"))
    if outlook.steps is None or outlook.steps_per_epoch is None:
        yield "Steps", ("unknown", _small("until the clips are cached"))
    else:
        yield "Steps of one epoch", (f"{outlook.steps_per_epoch:,}",)
        yield (
            "Steps in all",
            (f"{outlook.steps:,}", _small(f"{formatting.count(outlook.epochs, 'epoch')}, each expert")),
        )
    yield "Caches", (formatting.file_size(counted.cache_bytes), _small("on disk, about"))


def _small(text: str) -> Html:
    return tag("small", text)


def _problems(check: Check, outlook: Layout | None, selection: Selection) -> Iterator[Html]:
    yield tag("h2", "Problems")
    if not check.problems:
        yield tag("p", "Nothing to mend.", class_="said fine")
    else:
        yield tag("p", severity_counts(check), class_="said stops" if check.stops else "said")
    if check.stops and outlook is not None:
        yield tag("p", COUNTED, class_="soft")
    anchors = _anchors(outlook, selection)
    for group in check.groups:
        yield _group(group, anchors)
    for said in check.left_out:
        yield tag("p", formatting.safe(said), class_="soft")
    if outlook is None:
        yield tag("p", "No picture was looked at: the dataset.toml comes first.")


def _group(group: Group, anchors: Mapping[Path, str]) -> Html:
    count = len(group.problems)
    left = count - _MOST_OF_A_KIND
    return tag(
        "details",
        tag("summary", severity_mark(group.severity), tag("strong", f"{count:,} "), TITLES[group.kind]),
        tag(
            "ul",
            [_found(problem, anchors) for problem in group.problems[:_MOST_OF_A_KIND]],
            tag("li", f"and {left:,} more") if left > 0 else None,
        ),
        class_="kind",
        open=count <= _OPEN_UP_TO and group.severity is not Severity.NOTE,
    )


def _found(problem: Problem, anchors: Mapping[Path, str]) -> Html:
    where: list[Html | str] = [problem.key] if problem.key else []
    if problem.path is not None:
        name: Html = tag("bdi", formatting.safe(problem.place(problem.path.name or str(problem.path))), dir="ltr")
        anchor = anchors.get(problem.path)
        where += [" in " if problem.key else "", tag("a", name, href=f"#{anchor}") if anchor else name]
    return tag(
        "li",
        *where,
        ": " if where else "",
        formatting.safe(problem.what),
        ". ",
        formatting.safe(sentence(problem.fix)),
    )


def _anchors(outlook: Layout | None, selection: Selection) -> dict[Path, str]:
    """Where each shown file and its caption are; of a file in two datasets the first place."""
    anchors: dict[Path, str] = {}
    for number, sizes in enumerate(selection.datasets if outlook is not None else ()):
        for place, each in enumerate(sizes):
            for index, one in enumerate(each.shown):
                anchor = f"{_place(number, place)}-{index}"
                anchors.setdefault(one.item.path, anchor)
                if one.item.caption_path is not None:
                    anchors.setdefault(one.item.caption_path, anchor)
    return anchors


def _place(dataset: int, size: int) -> str:
    return f"size-{dataset}-{size}"


def _datasets(check: Check, outlook: Layout | None, selection: Selection, material: Material) -> Iterator[Html]:
    if outlook is None:
        return
    troubles = problems_by_item(check, outlook)
    yield tag(
        "h2", "Pictures and clips" if any(e.subset.kind is MediaKind.VIDEO for e in outlook.subsets) else "Pictures"
    )
    yield tag(
        "p",
        tag("span", class_="key"),
        " marks the part of a picture that is trained; what is dark is cut away. Pictures are shown as the trainer "
        "reads them, without the turn that other programs apply.",
        class_="soft",
    )
    if not selection.is_whole:
        total = sum(len(each.files) for each in outlook.subsets)
        yield tag(
            "p",
            f"{selection.shown:,} of {total:,} files are shown, so that the page stays light: of every size those with "
            "problems first, then those that lose most. All are in the counts.",
            class_="said",
        )
    for number, (each, sizes) in enumerate(zip(outlook.subsets, selection.datasets, strict=True)):
        yield tag("h2", tag("bdi", formatting.safe(each.subset.source), dir="ltr"), class_="path")
        yield tag("p", settings_of(each.subset), class_="soft")
        yield _table(number, each, sizes)
        for place, size in enumerate(sizes[:_MOST_SIZES]):
            yield from _size(_place(number, place), each, size, material, troubles)


def _table(number: int, each: SubsetLayout, sizes: Sequence[ShownSize]) -> Html:
    many = nouns(each.subset)[1]
    clips = each.subset.kind is MediaKind.VIDEO
    heads = ("Trained size", many, "cut away", "enlarged", "clips x frames" if clips else "batches an epoch")
    rows = [
        tag(
            "tr",
            tag("th", tag("a", _name(shown), href=f"#{_place(number, place)}"), scope="row"),
            tag("td", f"{len(shown.size.files):,}"),
            tag("td", f"to {percent(shown.size.largest_loss)}" if shown.size.largest_loss else "-"),
            tag("td", f"{shown.size.enlarged:,}, to {times(shown.size.largest_scale)}" if shown.size.enlarged else "-"),
            tag("td", batches_text((shown.size,), each.subset)),
        )
        for place, shown in enumerate(sizes[:_MOST_SIZES])
    ]
    rest = [shown.size for shown in sizes[_MOST_SIZES:]]
    if rest:
        files_ = sum(len(size.files) for size in rest)
        rows.append(
            tag(
                "tr",
                tag("th", f"{len(rest):,} more sizes", scope="row"),
                tag("td", f"{files_:,}"),
                tag("td", f"to {percent(max(size.largest_loss for size in rest))}"),
                tag("td", f"{sum(size.enlarged for size in rest):,}"),
                tag("td", batches_text(rest, each.subset)),
            )
        )
    head = tag("thead", tag("tr", [tag("th", name, scope="col") for name in heads]))
    return tag("div", tag("table", head, tag("tbody", rows)), class_="scroll")


def _name(shown: ShownSize) -> str:
    pixels = shown.size.pixels
    if pixels is not None:
        return f"{pixels[0]}x{pixels[1]}"
    return "not trained" if all(one.is_known for one in shown.size.files) else "unknown"


def _size(
    anchor: str,
    each: SubsetLayout,
    shown: ShownSize,
    material: Material,
    troubles: Mapping[Path, Sequence[Problem]],
) -> Iterator[Html]:
    noun, many = nouns(each.subset)
    yield tag("h3", f"{_name(shown)} · {formatting.count(len(shown.size.files), noun, many)}", id=anchor)
    cards = [
        card(
            one,
            each.subset.kind,
            anchor=f"{anchor}-{index}",
            preview=material.previews.get(one.item.path),
            caption=material.captions.get(one.item.path),
            problems=troubles.get(one.item.path, ()),
        )
        for index, one in enumerate(shown.shown)
    ]
    yield tag("ul", join(cards), class_="cards") if cards else join(())
    if shown.left:
        yield tag("p", f"and {shown.left:,} more of this size, not shown", class_="soft")

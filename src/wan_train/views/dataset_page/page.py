"""The page of `wan-train dataset check --html`: problems, trained sizes, pictures with their crops and captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_train.base import units
from wan_train.base.units import count
from wan_train.dataset.layout import Layout, SubsetLayout
from wan_train.dataset.model import MediaKind, Problem, Severity
from wan_train.dataset.scan import Check, Group
from wan_train.views.dataset_page.cards import Card, cards
from wan_train.views.dataset_page.selection import Contents, Selection, ShownSize, problems_by_item
from wan_train.views.dataset_tables import (
    COUNTED,
    TITLES,
    nouns,
    settings_of,
    severity_counts,
    size_cells,
    size_name,
)
from wan_train.views.html.render import render

GENERATOR = "wan-train dataset page"
"""Marks every page, so that only pages of this kind are overwritten."""

_MOST_OF_A_KIND = 50
_OPEN_UP_TO = 8
_MOST_SIZES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    key: str
    place: str
    anchor: str | None
    """The anchor of the file's card, if it has one."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    title: str
    severity: Severity
    count: int
    problems: Sequence[_Problem]
    more: int
    is_open: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    name: str
    anchor: str | None
    cells: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    anchor: str
    title: str
    cards: Sequence[Card]
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dataset:
    source: Path
    settings: str
    columns: Sequence[str]
    rows: Sequence[_Row]
    sizes: Sequence[_Size]


def page(check: Check, layout: Layout | None, selection: Selection, contents: Contents) -> str:
    """The whole document. `layout` is None where no file was scanned."""
    subsets = layout.subsets if layout is not None else ()
    anchors = _anchors(selection)
    troubles = problems_by_item(check, layout) if layout is not None else {}
    return render(
        "dataset_page/dataset.html",
        generator=GENERATOR,
        config=check.config,
        is_written=check.is_written,
        reader=check.reading.name,
        facts=list(_facts(layout)) if layout is not None else None,
        stops=check.stops,
        severities=severity_counts(check) if check.problems else "No problems found.",
        note=COUNTED if check.stops and layout is not None else None,
        groups=[_group(group, anchors) for group in check.groups],
        left_out=check.left_out,
        has_clips=any(each.subset.kind is MediaKind.VIDEO for each in subsets),
        shown=selection.shown,
        total=sum(len(each.files) for each in subsets),
        datasets=None
        if layout is None
        else [
            _dataset(number, each, sizes, contents, troubles)
            for number, (each, sizes) in enumerate(zip(subsets, selection.datasets, strict=True))
        ],
    )


def _facts(layout: Layout) -> Iterator[tuple[str, str, Sequence[str]]]:
    counted = layout.summary
    yield "Files", f"{counted.files:,}", [f"{counted.captions:,} with caption"]
    seen = counted.items_with_repeats
    yield "Items per epoch", "unknown" if seen is None else f"{seen:,}", ["with repeats"]
    if layout.steps is None or layout.steps_per_epoch is None:
        yield "Steps", "unknown", ["until the clips are cached"]
    else:
        yield "Steps per epoch", f"{layout.steps_per_epoch:,}", []
        yield "Total steps", f"{layout.steps:,}", [f"per expert, {count(layout.epochs, 'epoch')}"]
    yield "Cache size", units.file_size(counted.cache_bytes), ["on disk, estimate"]


def _anchors(selection: Selection) -> dict[Path, str]:
    """The anchors of cards, by path of file and caption. For a file in two datasets, that of the first card."""
    anchors: dict[Path, str] = {}
    for number, sizes in enumerate(selection.datasets):
        for place, each in enumerate(sizes):
            for index, one in enumerate(each.shown):
                anchor = f"{_anchor(number, place)}-{index}"
                anchors.setdefault(one.item.path, anchor)
                if one.item.caption_path is not None:
                    anchors.setdefault(one.item.caption_path, anchor)
    return anchors


def _anchor(dataset: int, size: int) -> str:
    return f"size-{dataset}-{size}"


def _group(group: Group, anchors: Mapping[Path, str]) -> _Group:
    count = len(group.problems)
    return _Group(
        title=TITLES[group.kind],
        severity=group.severity,
        count=count,
        problems=[_problem(problem, anchors) for problem in group.problems[:_MOST_OF_A_KIND]],
        more=max(0, count - _MOST_OF_A_KIND),
        is_open=count <= _OPEN_UP_TO and group.severity is not Severity.NOTE,
    )


def _problem(problem: Problem, anchors: Mapping[Path, str]) -> _Problem:
    path = problem.path
    return _Problem(
        key=problem.key or "",
        place=problem.place(path.name or str(path)) if path is not None else "",
        anchor=anchors.get(path) if path is not None else None,
        text=problem.sentences,
    )


def _dataset(
    number: int,
    each: SubsetLayout,
    sizes: Sequence[ShownSize],
    contents: Contents,
    troubles: Mapping[Path, Sequence[Problem]],
) -> _Dataset:
    subset = each.subset
    listed, rest = sizes[:_MOST_SIZES], [shown.size for shown in sizes[_MOST_SIZES:]]
    rows = [
        _Row(name=size_name(shown.size), anchor=_anchor(number, place), cells=size_cells((shown.size,), subset))
        for place, shown in enumerate(listed)
    ]
    if rest:
        rows.append(_Row(name=f"{len(rest):,} more sizes", anchor=None, cells=size_cells(rest, subset)))
    noun, many = nouns(subset)
    last = "Clips x frames" if subset.kind is MediaKind.VIDEO else "Batches per epoch"
    return _Dataset(
        source=subset.source,
        settings=settings_of(subset),
        columns=("Trained size", many.capitalize(), "Cut away", "Enlarged", last),
        rows=rows,
        sizes=[
            _Size(
                anchor=_anchor(number, place),
                title=f"{size_name(shown.size)} · {count(len(shown.size.files), noun, many)}",
                cards=cards(shown, subset.kind, contents, anchor=_anchor(number, place), troubles=troubles),
                left=shown.left,
            )
            for place, shown in enumerate(listed)
        ],
    )

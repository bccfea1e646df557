"""The files of a dataset that a page shows, and their previews. Their number is limited, so that pages open fast."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_train.dataset.layout import Layout, Size, TrainedFile
from wan_train.dataset.model import Problem, Severity
from wan_train.dataset.previews import Preview, captions, previews_of
from wan_train.dataset.scan import Check

MOST_CARDS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSize:
    """A size and its shown files, in inventory order."""

    size: Size
    shown: tuple[TrainedFile, ...]

    @property
    def left(self) -> int:
        """The number of files that are only counted."""
        return len(self.size.files) - len(self.shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The sizes of each dataset; `is_whole` if every file is shown."""

    datasets: tuple[tuple[ShownSize, ...], ...]

    @property
    def shown(self) -> int:
        return sum(len(each.shown) for sizes in self.datasets for each in sizes)

    @property
    def is_whole(self) -> bool:
        return not any(each.left for sizes in self.datasets for each in sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Small pictures and captions of files, by path, without unreadable ones."""

    previews: Mapping[Path, Preview]
    captions: Mapping[Path, str]


def contents_of(
    layout: Layout, selection: Selection, *, on_done: Callable[[int, int], None] = lambda _done, _all: None
) -> Contents:
    """The contents of the selected files; `on_done` gets the number of finished previews and the total."""
    items = [
        (one.item, each.subset.kind)
        for each, sizes in zip(layout.subsets, selection.datasets, strict=True)
        for size in sizes
        for one in size.shown
    ]
    return Contents(
        previews=previews_of({item.path: kind for item, kind in items}, on_done=on_done),
        captions=captions([item for item, _ in items]),
    )


def choose(layout: Layout, troubles: Mapping[Path, Sequence[Problem]], *, most: int = MOST_CARDS) -> Selection:
    """Choose at most `most` files: the same number of each size if it has as many, the fullest sizes first.

    Within a size, prefer the worst problems, then the largest share cut away, then inventory order. `troubles` has
    the problems of each file, the worst first.
    """
    sizes = [each.sizes for each in layout.subsets]
    cap = _cap([len(size.files) for group in sizes for size in group], most)
    left = most
    datasets = []
    for group in sizes:
        shown = []
        for size in group:
            # With more sizes than room, each of the first sizes gets one file.
            count = min(len(size.files), max(cap, 1), left)
            left -= count
            shown.append(ShownSize(size=size, shown=_worth_seeing(size.files, troubles, count)))
        datasets.append(tuple(shown))
    return Selection(datasets=tuple(datasets))


def _cap(counts: list[int], most: int) -> int:
    """The largest number per size that keeps the total at `most` or below."""
    low, high = 0, max(counts, default=0)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(count, middle) for count in counts) <= most:
            low = middle
        else:
            high = middle - 1
    return low


def _worth_seeing(
    files: tuple[TrainedFile, ...], troubles: Mapping[Path, Sequence[Problem]], count: int
) -> tuple[TrainedFile, ...]:
    if count >= len(files):
        return files

    def worth(index: int) -> tuple[int, float, int]:
        one = files[index]
        problems = troubles.get(one.item.path)
        severity = problems[0].severity.rank if problems else len(Severity)
        return severity, -(one.crop.share_lost if one.crop is not None else 0.0), index

    chosen = sorted(sorted(range(len(files)), key=worth)[:count])
    return tuple(files[index] for index in chosen)


def problems_by_item(check: Check, layout: Layout) -> dict[Path, list[Problem]]:
    """The problems of each item's file and caption by the item's path, the worst first."""
    by_path: defaultdict[Path, list[Problem]] = defaultdict(list)
    for group in check.groups:
        for problem in group.problems:
            if problem.path is not None:
                by_path[problem.path].append(problem)
    found: dict[Path, list[Problem]] = {}
    for each in layout.subsets:
        for one in each.files:
            paths = [one.item.path]
            # All captions of a jsonl file have its path, so its problems belong to no single item.
            if each.subset.jsonl is None and one.item.caption_path is not None:
                paths.append(one.item.caption_path)
            problems = [problem for path in paths for problem in by_path.get(path, ())]
            if problems:
                found[one.item.path] = sorted(problems, key=lambda problem: problem.severity.rank)
    return found

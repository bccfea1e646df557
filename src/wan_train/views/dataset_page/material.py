"""What of the files of a dataset a page shows: small pictures and captions, read from disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wan_train.dataset.layout import Layout
from wan_train.dataset.previews import Preview, captions, previews
from wan_train.views.dataset_page.selection import Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What of the files themselves a page shows, by path; what is missing could not be read."""

    previews: Mapping[Path, Preview]
    captions: Mapping[Path, str]


def material_of(
    outlook: Layout, selection: Selection, *, on_done: Callable[[int, int], None] = lambda _done, _all: None
) -> Material:
    """The material of the selected files; `on_done` hears how many previews of how many are drawn."""
    shown = [
        (each.subset, [one.item for size in sizes for one in size.shown])
        for each, sizes in zip(outlook.subsets, selection.datasets, strict=True)
    ]
    words: dict[Path, str] = {}
    for _, items in shown:
        words |= captions(items)
    wanted = [(item, subset.kind) for subset, items in shown for item in items]
    return Material(previews=previews(wanted, on_done=on_done), captions=words)

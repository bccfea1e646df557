"""`--html FILE` of `wan-train dataset check`: the page of what will be trained, never over what is not such a page."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from wan_train.cli import html_files
from wan_train.cli.output import Sink
from wan_train.dataset.check import Check
from wan_train.dataset.layout import Outlook
from wan_train.views.dataset_page.material import Material, material_of
from wan_train.views.dataset_page.page import GENERATOR, page
from wan_train.views.dataset_page.selection import Selection, choose, problems_by_item


def target_of(text: str, sink: Sink, *, yes: bool) -> Path:
    """Where the page goes; see `pages.target_of`."""
    return html_files.target_of(text, sink, yes=yes, generator=GENERATOR, verb="dataset check --html")


def write_page(check: Check, outlook: Outlook | None, target: Path, sink: Sink) -> None:
    """Draw the previews and write the page in one piece. Raises BadInputError where it cannot be written."""
    selection = Selection(datasets=())
    material = Material(previews={}, captions={})
    if outlook is not None:
        selection = choose(outlook, problems_by_item(check, outlook))
        material = material_of(outlook, selection, on_done=_progress(sink))
    html_files.write_page(target, page(check, outlook, selection, material))


def _progress(sink: Sink) -> Callable[[int, int], None]:
    """A counter on one line of the terminal."""
    if not sink.is_terminal or sink.as_json:
        return lambda _done, _all: None

    def show(done: int, to_do: int) -> None:
        sys.stderr.write("\r\x1b[K" if done == to_do else f"\rdrawing previews: {done:,} of {to_do:,}")
        sys.stderr.flush()

    return show

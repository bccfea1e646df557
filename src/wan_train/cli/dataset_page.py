"""`--html FILE` of `wan-train dataset check`: the page of what will be trained, never over what is not such a page."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from wan_train.cli import prompts
from wan_train.cli.sink import Sink
from wan_train.dataset.check import Check
from wan_train.dataset.outlook import Outlook
from wan_train.dataset.previews import captions, previews
from wan_train.errors import BadInputError
from wan_train.files import write_whole
from wan_train.printable import visible
from wan_train.views.dataset_page.page import GENERATOR, Material, page
from wan_train.views.dataset_page.selection import Selection, choose, problems_by_item

_HEAD_BYTES = 1000
"""Of a page, within which it says what made it."""


def target_of(text: str, sink: Sink, *, yes: bool) -> Path:
    """Where the page goes; raises BadInputError for a place that is taken or that cannot be written to.

    At a terminal the person is asked before a file is replaced that is no such page.
    """
    if not text.strip() or "\0" in text:
        raise BadInputError("--html names no file", hint="Give a name such as dataset.html.")
    path = Path(text).expanduser().absolute()
    shown = visible(str(path))
    if path.suffix.lower() not in {".html", ".htm"}:
        raise BadInputError(f"--html {shown} would not open in a browser", hint="Give it a name that ends in .html.")
    try:
        if path.is_dir():
            raise BadInputError(f"{shown} is a folder", hint="Name a file in it, such as dataset.html.")
        if not path.parent.is_dir():
            raise BadInputError(f"there is no folder {visible(str(path.parent))}", hint="Make it, or name another.")
        is_foreign = path.exists() and not _is_ours(path)
    except OSError as error:
        raise BadInputError(f"{shown} cannot be used: {error.strerror}", hint="Name another file.") from None
    if is_foreign and not yes:
        if not sink.is_terminal or sink.as_json:
            raise BadInputError(
                f"{shown} exists and was not made by `dataset check --html`, so it was left alone",
                hint="Name another file, or add --yes to replace it.",
            )
        sink.line(f"{path} exists and was not made by `dataset check --html`.")
        if not prompts.confirm("Replace it?", default=False):
            raise BadInputError(f"{shown} was left alone", hint="Name another file.")
    return path


def write_page(check: Check, outlook: Outlook | None, target: Path, sink: Sink) -> None:
    """Draw the previews and write the page in one piece. Raises BadInputError where it cannot be written."""
    selection = Selection(datasets=())
    material = Material(previews={}, captions={})
    if outlook is not None:
        selection = choose(outlook, problems_by_item(check, outlook))
        material = _material(outlook, selection, _progress(sink))
    text = page(check, outlook, selection, material)
    try:
        write_whole(target, text.encode("utf-8"), mode=0o644)
    except OSError as error:
        shown = visible(str(target))
        raise BadInputError(f"{shown} cannot be written: {error.strerror}", hint="Name another file.") from None


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return f'content="{GENERATOR}"'.encode() in file.read(_HEAD_BYTES)


def _material(outlook: Outlook, selection: Selection, on_done: Callable[[int, int], None]) -> Material:
    shown = [
        (each.subset, [one.item for size in sizes for one in size.shown])
        for each, sizes in zip(outlook.subsets, selection.datasets, strict=True)
    ]
    words: dict[Path, str] = {}
    for subset, items in shown:
        words |= captions(subset, items)
    wanted = [(item, subset.kind) for subset, items in shown for item in items]
    return Material(previews=previews(wanted, on_done=on_done), captions=words)


def _progress(sink: Sink) -> Callable[[int, int], None]:
    """A counter on one line of the terminal."""
    if not sink.is_terminal or sink.as_json:
        return lambda _done, _all: None

    def show(done: int, to_do: int) -> None:
        sys.stderr.write("\r\x1b[K" if done == to_do else f"\rdrawing previews: {done:,} of {to_do:,}")
        sys.stderr.flush()

    return show

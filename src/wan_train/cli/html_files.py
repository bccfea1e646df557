"""`--html FILE`: write pages to disk; other kinds of files are replaced only after a yes."""

from __future__ import annotations

from pathlib import Path

from wan_train.base.errors import BadInputError
from wan_train.base.files import write_whole
from wan_train.base.home import expand
from wan_train.base.text import visible
from wan_train.cli import questions
from wan_train.cli.output import Sink
from wan_train.dataset.layout import Layout
from wan_train.dataset.scan import Check

_HEAD_BYTES = 1000
"""Leading bytes of a page that contain the name of its generator."""


def target_of(text: str, sink: Sink, *, yes: bool, generator: str, command: str) -> Path:
    """Return the file of `--html`; raises BadInputError if the path is invalid or taken.

    At a terminal it asks before a file of another kind is replaced. `command` makes pages of this kind.
    """
    if not text.strip() or "\0" in text:
        raise BadInputError("--html needs a file name", hint="Use a name such as page.html.")
    path = expand(text).absolute()
    shown = visible(str(path))
    if path.suffix.lower() not in {".html", ".htm"}:
        raise BadInputError(f"--html {shown} is not an .html file", hint="Use a name that ends in .html.")
    try:
        if path.is_dir():
            raise BadInputError(f"{shown} is a folder", hint="Name a file in it, such as page.html.")
        if not path.parent.is_dir():
            raise BadInputError(f"folder not found: {visible(str(path.parent))}", hint="Create it, or name another.")
        is_foreign = path.exists() and not is_ours(path, generator)
    except OSError as error:
        raise BadInputError(f"{shown} cannot be used: {error.strerror}", hint="Name another file.") from None
    if is_foreign and not yes:
        if not sink.can_ask:
            raise BadInputError(
                f"{shown} exists and was not made by `{command}`, so it was left alone",
                hint="Name another file, or add --yes to replace it.",
            )
        sink.line(f"{path} exists and was not made by `{command}`.")
        if not questions.confirm("Replace it?", default=False):
            raise BadInputError(f"{shown} was left alone", hint="Name another file.")
    return path


def is_ours(path: Path, generator: str) -> bool:
    """Whether the head of a file names `generator`; raises OSError."""
    with path.open("rb") as file:
        return f'content="{generator}"'.encode() in file.read(_HEAD_BYTES)


def write_page(path: Path, text: str) -> None:
    """Write a page atomically; raises BadInputError on failure."""
    try:
        write_whole(path, text.encode("utf-8"), mode=0o644)
    except OSError as error:
        raise BadInputError(
            f"{visible(str(path))} cannot be written: {error.strerror}", hint="Name another file."
        ) from None


def dataset_target(text: str, sink: Sink, *, yes: bool) -> Path:
    """Return the file of `dataset check --html`; see `target_of`."""
    from wan_train.views.dataset_page.page import GENERATOR

    return target_of(text, sink, yes=yes, generator=GENERATOR, command="dataset check --html")


def write_dataset_page(check: Check, layout: Layout | None, path: Path, sink: Sink) -> None:
    """Draw the previews, then write the page."""
    from wan_train.views.dataset_page.page import page
    from wan_train.views.dataset_page.selection import Contents, Selection, choose, contents_of, problems_by_item

    selection = Selection(datasets=())
    contents = Contents(previews={}, captions={})
    if layout is not None:
        selection = choose(layout, problems_by_item(check, layout))
        contents = contents_of(layout, selection, on_done=sink.counter("drawing previews"))
    write_page(path, page(check, layout, selection, contents))

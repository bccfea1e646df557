"""Pages that are written to disk: known by what made them, and never written over anything else."""

from __future__ import annotations

from pathlib import Path

from wan_train.base.errors import BadInputError
from wan_train.base.files import write_whole
from wan_train.base.home import expand
from wan_train.base.text import visible
from wan_train.cli import prompts
from wan_train.cli.output import Sink

_HEAD_BYTES = 1000
"""Of a page, within which it says what made it."""


def target_of(text: str, sink: Sink, *, yes: bool, generator: str, verb: str) -> Path:
    """Where `--html` puts a page; raises BadInputError for a place that is taken or that cannot be written to.

    At a terminal the person is asked before a file is replaced that is no such page. `verb` made those that are.
    """
    if not text.strip() or "\0" in text:
        raise BadInputError("--html names no file", hint="Give a name such as page.html.")
    path = expand(text).absolute()
    shown = visible(str(path))
    if path.suffix.lower() not in {".html", ".htm"}:
        raise BadInputError(f"--html {shown} would not open in a browser", hint="Give it a name that ends in .html.")
    try:
        if path.is_dir():
            raise BadInputError(f"{shown} is a folder", hint="Name a file in it, such as page.html.")
        if not path.parent.is_dir():
            raise BadInputError(f"there is no folder {visible(str(path.parent))}", hint="Make it, or name another.")
        is_foreign = path.exists() and not is_ours(path, generator)
    except OSError as error:
        raise BadInputError(f"{shown} cannot be used: {error.strerror}", hint="Name another file.") from None
    if is_foreign and not yes:
        if not sink.is_terminal or sink.as_json:
            raise BadInputError(
                f"{shown} exists and was not made by `{verb}`, so it was left alone",
                hint="Name another file, or add --yes to replace it.",
            )
        sink.line(f"{path} exists and was not made by `{verb}`.")
        if not prompts.confirm("Replace it?", default=False):
            raise BadInputError(f"{shown} was left alone", hint="Name another file.")
    return path


def is_ours(path: Path, generator: str) -> bool:
    """Whether a file says at its beginning that `generator` made it; raises OSError."""
    with path.open("rb") as file:
        return f'content="{generator}"'.encode() in file.read(_HEAD_BYTES)


def write_page(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a page in one piece; raises BadInputError where it cannot be written."""
    try:
        write_whole(path, text.encode("utf-8"), mode=mode)
    except OSError as error:
        raise BadInputError(
            f"{visible(str(path))} cannot be written: {error.strerror}", hint="Name another file."
        ) from None

"""`wan-train dataset write`: a dataset.toml, shown before one that is there is changed."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from wan_train.base.errors import BadInputError, ExitCode
from wan_train.base.files import write_whole
from wan_train.base.home import expand
from wan_train.base.text import one_line
from wan_train.cli import prompts
from wan_train.cli.output import Sink
from wan_train.dataset.fix import BACKUP, back_up, stamp_of
from wan_train.dataset.writing import ConfigValues, compose

_MOST_BYTES = 4 * 1024 * 1024


def write(paths: Sequence[str], wishes: ConfigValues, output: str | None, sink: Sink, *, yes: bool) -> int:
    """Write or change the dataset.toml of `paths`; the exit code."""
    folders = [_folder(path) for path in paths]
    target = _target(folders, output)
    before = _read(target)
    text = compose(folders, wishes, existing=before)
    if text == before:
        return _done(target, sink, "says all that already")
    if before is None:
        write_whole(target, text, mode=0o644)
        sink.text(text)
        return _done(target, sink, "is written")
    diff = "".join(
        line if line.endswith("\n") else f"{line}\n"
        for line in difflib.unified_diff(
            before.splitlines(keepends=True), text.splitlines(keepends=True), "as it is", "as it would be"
        )
    )
    sink.text(diff)
    if not yes:
        if not sink.is_terminal or sink.as_json:
            raise BadInputError(
                f"{target} exists and was not changed: there is no terminal to ask at, and --yes was not given",
                hint="Add --yes to change it, or name another file with --output.",
            )
        if not prompts.confirm("Change it?"):
            sink.note("Nothing was changed.")
            return ExitCode.DONE
    if _read(target) != before:
        raise BadInputError(f"{target} was changed by somebody else just now", hint="Start again.")
    kept = back_up(target, target.parent / BACKUP / stamp_of(time.time()))
    write_whole(target, text, mode=0o644)
    return _done(target, sink, f"is changed; the one before is {kept}", kept)


def _done(target: Path, sink: Sink, what: str, kept: Path | None = None) -> int:
    if sink.as_json:
        sink.data({"event": "dataset_written", "dataset": str(target), "kept": str(kept) if kept else None})
    sink.line(f"{target} {what}.")
    sink.line(f"Next: wan-train dataset check {target}")
    return ExitCode.DONE


def _folder(path: str) -> Path:
    folder = Path(os.path.abspath(expand(path)))  # noqa: PTH100 - keep symbolic links as written
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise BadInputError(f"{folder} {what}", hint="Name folders with pictures or clips directly in them.")
    return folder


def _target(folders: Sequence[Path], output: str | None) -> Path:
    if output is not None:
        target = Path(os.path.abspath(expand(output)))  # noqa: PTH100 - as above
        if target.suffix.lower() != ".toml":
            raise BadInputError(f"--output {target} does not end in .toml", hint="Name a dataset.toml.")
        if not target.parent.is_dir():
            raise BadInputError(f"there is no folder {target.parent}", hint="Make it, or choose another --output.")
        return target
    if len(set(folders)) > 1:
        raise BadInputError(
            "several folders were named, and no file for them", hint="Add --output FILE, such as dataset.toml."
        )
    return folders[0] / "dataset.toml"


def _read(target: Path) -> str | None:
    try:
        with target.open("rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise BadInputError(f"{target} is not UTF-8", hint="Name another file with --output.") from None
    except OSError as error:
        raise BadInputError(
            f"{target} cannot be read: {error.strerror}", hint="Name another file with --output."
        ) from None


def parse_frames(text: str | None) -> tuple[int, ...]:
    """`1,25,45`; raises BadInputError."""
    if text is None:
        return ()
    try:
        return tuple(int(word) for word in text.replace(",", " ").split())
    except ValueError:
        raise BadInputError(
            f"--target-frames {one_line(text)!r} is no list of whole numbers", hint="Write it like 1,25,45."
        ) from None

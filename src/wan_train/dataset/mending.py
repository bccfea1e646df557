"""Safe mends of a dataset: captions to plain UTF-8, photos upright, clips at 16 frames a second.

The original goes into a backup before its name gets the mended file, in one rename: a kill at any moment leaves the old
file or the new one. What cannot be mended without a guess is left alone, with the reason.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from wan_train.dataset import mend_caption, mend_clip, mend_picture
from wan_train.dataset.check import Check
from wan_train.dataset.model import MediaKind, Problem, ProblemKind
from wan_train.errors import BadInputError
from wan_train.files import sync_directory
from wan_train.printable import visible

BACKUP = ".wan-train-backup"
"""Beside the files; the trainer sees neither a subfolder nor a name with a dot in front."""

MENDABLE = frozenset(
    {ProblemKind.CAPTION_ENCODING, ProblemKind.CAPTION_LINE_ENDS, ProblemKind.ROTATED, ProblemKind.FRAME_RATE}
)
"""Kinds of which some can be mended; `plan` says which."""

_LOCK, _STAGING = "lock", "staging"


class CannotMendError(Exception):
    """Why a file is left alone, in words for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mend:
    """One change: `path` gets what `make` writes to the path that it is given, `what` says so in words.

    `target` differs from `path` where the mended file needs another ending.
    """

    path: Path
    target: Path
    what: str
    make: Callable[[Path], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A problem of a kind that can be mended, and why this one is not."""

    problem: Problem
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mending:
    """All that can be done, and what cannot."""

    mends: tuple[Mend, ...]
    refusals: tuple[Refusal, ...]


def plan(check: Check) -> Mending:
    """What `--fix` would do; reads the files, changes nothing."""
    mends: dict[Path, Mend] = {}
    refusals = []
    for problem in check.problems:
        path = problem.path
        if path is None or path in mends or problem.kind not in MENDABLE:
            continue
        try:
            mends[path] = _mend(problem, path, check)
        except CannotMendError as error:
            refusals.append(Refusal(problem=problem, why=str(error)))
        except OSError as error:
            refusals.append(Refusal(problem=problem, why=f"it cannot be read: {error.strerror}"))
    return Mending(mends=tuple(mends.values()), refusals=tuple(refusals))


def perform(mend: Mend, stamp: str) -> Path:
    """Make one change; returns where the original is kept. Raises OSError, and CannotMendError when the result is no
    good; the file is then as it was.

    `stamp` names the backup of this round.
    """
    home = mend.path.parent / BACKUP
    staging = home / _STAGING
    staging.mkdir(parents=True, exist_ok=True)
    made = staging / mend.target.name
    mend.make(made)
    with made.open("rb") as file:
        os.fsync(file.fileno())
    shutil.copymode(mend.path, made)
    kept = keep(mend.path, home / stamp)
    if mend.target != mend.path:
        # The new name first: at no moment is the clip without a file.
        os.link(made, mend.target)
        made.unlink()
        mend.path.unlink()
    else:
        made.replace(mend.path)
    sync_directory(mend.path.parent)
    return kept


@contextmanager
def alone_in(folders: set[Path]) -> Iterator[None]:
    """Only one program mends a folder at a time; what a killed one left half made is removed.

    Raises BadInputError when another is at work or a folder cannot be written to.
    """
    held = []
    try:
        for folder in sorted(folders):
            home = folder / BACKUP
            try:
                home.mkdir(exist_ok=True)
                descriptor = os.open(home / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                held.append(descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInputError(
                    f"another `--fix` is at work in {visible(str(folder))}", hint="Wait for it, then start again."
                ) from None
            except OSError as error:
                raise BadInputError(
                    f"{visible(str(folder))} cannot be written to: {error.strerror}",
                    hint="Nothing was changed. Make the folder writable, or copy the dataset to a place that is.",
                ) from None
            shutil.rmtree(home / _STAGING, ignore_errors=True)
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
        for folder in folders:
            shutil.rmtree(folder / BACKUP / _STAGING, ignore_errors=True)


def stamp_of(now: float) -> str:
    """The name of a round's backup folder: UTC, to the second."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))


def _mend(problem: Problem, path: Path, check: Check) -> Mend:
    if path.is_symlink():
        raise CannotMendError(f"it is a link; mend {visible(str(path.resolve()))} where it is")
    if not path.is_file():
        raise CannotMendError("it is not a file")
    match problem.kind:
        case ProblemKind.CAPTION_ENCODING | ProblemKind.CAPTION_LINE_ENDS:
            reading = mend_caption.read(path.read_bytes())
            if isinstance(reading, mend_caption.Unclear):
                raise CannotMendError(reading.why)
            make = partial(_write, data=reading.text.encode())
            return Mend(path=path, target=path, what=reading.what, make=make)
        case ProblemKind.ROTATED if path in _pictures(check):
            return Mend(path=path, target=path, what="turned upright", make=partial(mend_picture.upright, path))
        case ProblemKind.FRAME_RATE:
            target = mend_clip.target(path)
            if target != path and target.exists():
                raise CannotMendError(f"{visible(target.name)}, which its copy would be called, exists already")
            why = mend_clip.why_not(path, check, problem)
            if why is not None:
                raise CannotMendError(why)
            what = "replaced by a copy with 16 frames a second"
            return Mend(path=path, target=target, what=what, make=partial(mend_clip.at_sixteen, path))
        case _:
            raise CannotMendError(f"only by hand: {problem.mend}")


def _pictures(check: Check) -> set[Path]:
    found = check.inventory.subsets if check.inventory is not None else ()
    return {item.path for each in found if each.subset.kind is MediaKind.IMAGE for item in each.items}


def _write(made: Path, *, data: bytes) -> None:
    made.write_bytes(data)


def keep(path: Path, folder: Path) -> Path:
    """The original under a second name in `folder`, whole from the first moment; never replaces a kept file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1000):
        kept = folder / (path.name if number == 0 else f"{path.name}.{number}")
        try:
            os.link(path, kept)
        except FileExistsError:
            if kept.samefile(path):
                return kept
            continue
        except OSError:
            # A file system without hard links.
            partial_copy = folder / f".{kept.name}.partial"
            shutil.copy2(path, partial_copy)
            with partial_copy.open("rb") as file:
                os.fsync(file.fileno())
            if kept.exists():
                continue
            partial_copy.replace(kept)
        sync_directory(folder)
        return kept
    raise CannotMendError(f"{visible(str(folder))} holds too many copies of it")

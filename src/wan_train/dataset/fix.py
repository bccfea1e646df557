"""Safe mends of a dataset: captions to plain UTF-8, photos and clips upright, clips at 16 frames a second.

The original goes into a backup before its name gets the mended file, in one rename: a kill at any moment leaves the old
file or the new one. What cannot be mended without a guess is left alone, with the reason.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from wan_train.base.errors import BadInputError
from wan_train.base.files import can_be_written, sync_directory
from wan_train.base.text import visible
from wan_train.dataset import fix_caption, fix_clip, fix_picture, fix_speed
from wan_train.dataset.check import Check
from wan_train.dataset.model import Inventory, MediaKind, Problem, ProblemKind

BACKUP = ".wan-train-backup"
"""Beside the files; the trainer sees neither a subfolder nor a name with a dot in front."""

MENDABLE = frozenset(
    {
        ProblemKind.MISSING_CAPTION,
        ProblemKind.CAPTION_ENCODING,
        ProblemKind.CAPTION_LINE_ENDS,
        ProblemKind.ROTATED,
        ProblemKind.FRAME_RATE,
    }
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
    speeds = fix_speed.one_speed(check)
    why_not_speed = None
    if speeds.by_index:
        try:
            mends[check.config] = _source_fps(check, speeds)
        except CannotMendError as error:
            why_not_speed = str(error)
        except OSError as error:
            why_not_speed = f"the dataset.toml cannot be read: {error.strerror}"
    for problem in check.problems:
        path = problem.path
        if path is None or path in mends or problem.kind not in MENDABLE:
            continue
        if problem.kind is ProblemKind.MISSING_CAPTION and problem.meant is None:
            continue
        if problem.kind is ProblemKind.FRAME_RATE and path in speeds.clips:
            if why_not_speed is not None:
                refusals.append(Refusal(problem=problem, why=why_not_speed))
            continue
        try:
            mends[path] = _mend(problem, path, check)
        except CannotMendError as error:
            refusals.append(Refusal(problem=problem, why=str(error)))
        except OSError as error:
            refusals.append(Refusal(problem=problem, why=f"it cannot be read: {error.strerror}"))
    return Mending(mends=tuple(mends.values()), refusals=tuple(refusals))


def command_for(inventory: Inventory) -> str | None:
    """The command that fixes something of what stops a dataset; None where only a person can."""
    config = inventory.config.path
    look = Check(
        config=config,
        is_written=config.is_file(),
        reading=inventory.reading,
        inventory=inventory,
        problems=inventory.stopping,
    )
    if not any(can_be_written(mend.path.parent) for mend in plan(look).mends):
        return None
    return f"wan-train dataset check {shlex.quote(str(config if look.is_written else config.parent))} --fix"


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
    if problem.meant is not None:
        return _renamed(problem.meant, path, check)
    if path.is_symlink():
        raise CannotMendError(f"it is a link; mend {visible(str(path.resolve()))} where it is")
    if not path.is_file():
        raise CannotMendError("it is not a file")
    match problem.kind:
        case ProblemKind.CAPTION_ENCODING | ProblemKind.CAPTION_LINE_ENDS:
            reading = fix_caption.read(path.read_bytes())
            if isinstance(reading, fix_caption.Unclear):
                raise CannotMendError(reading.why)
            make = partial(_write, data=reading.text.encode())
            return Mend(path=path, target=path, what=reading.what, make=make)
        case ProblemKind.ROTATED if path in _items(check, MediaKind.IMAGE):
            return Mend(path=path, target=path, what="turned upright", make=partial(fix_picture.upright, path))
        case ProblemKind.FRAME_RATE | ProblemKind.ROTATED if path in _items(check, MediaKind.VIDEO):
            return _clip(problem, path, check)
        case _:
            raise CannotMendError(f"only by hand: {problem.mend}")


def _renamed(meant: Path, picture: Path, check: Check) -> Mend:
    """The caption under the name that the trainer looks for."""
    found = check.inventory.subsets if check.inventory is not None else ()
    home = next(each.subset for each in found if each.subset.directory == picture.parent)
    target = picture.with_suffix(home.caption_extension or "")
    if meant.is_symlink() or not meant.is_file():
        raise CannotMendError(f"{visible(meant.name)} is a link or no file; rename it to {visible(target.name)}")
    if target.exists():
        raise CannotMendError(f"{visible(target.name)} exists already")
    what = f"renamed to {visible(target.name)}"
    return Mend(path=meant, target=target, what=what, make=partial(shutil.copyfile, meant))


def _clip(problem: Problem, path: Path, check: Check) -> Mend:
    sixteen = problem.kind is ProblemKind.FRAME_RATE
    is_turned = any(each.kind is ProblemKind.ROTATED and each.path == path for each in check.problems)
    target = fix_clip.target(path)
    if target != path and target.exists():
        raise CannotMendError(f"{visible(target.name)}, which its copy would be called, exists already")
    why = (fix_clip.why_not_slower(path, check) if sixteen else None) or (
        fix_clip.why_not_turned(path) if is_turned else None
    )
    if why is not None:
        raise CannotMendError(why)
    what = f"replaced by {'an upright' if is_turned else 'a'} copy{' with 16 frames a second' if sixteen else ''}"
    return Mend(path=path, target=target, what=what, make=partial(fix_clip.copy, path, sixteen=sixteen))


def _source_fps(check: Check, speeds: fix_speed.Speeds) -> Mend:
    path = check.config
    if not check.is_written:
        command = (
            f"wan-train dataset write {shlex.quote(str(path.parent))} --source-fps {min(speeds.by_index.values())}"
        )
        raise CannotMendError(f"all clips have one speed, so nothing need be encoded: {visible(command)}")
    if path.is_symlink():
        raise CannotMendError(f"all clips have one speed, so put {speeds.what} into {visible(str(path.resolve()))}")
    before = path.read_bytes()
    try:
        text = fix_speed.rewritten(before.decode("utf-8-sig"), speeds)
    except UnicodeDecodeError:
        text = None
    if text is None:
        raise CannotMendError(f"all clips have one speed; the dataset.toml has to be changed by hand: {speeds.what}")

    def make(made: Path) -> None:
        if path.read_bytes() != before:
            raise CannotMendError("it was changed by somebody else just now")
        made.write_bytes(text.encode())

    return Mend(path=path, target=path, what=speeds.what, make=make)


def _items(check: Check, kind: MediaKind) -> set[Path]:
    found = check.inventory.subsets if check.inventory is not None else ()
    return {item.path for each in found if each.subset.kind is kind for item in each.items}


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

"""Safe dataset fixes: encoding and names of captions, rotation of photos, `source_fps` in dataset.toml.

The original is backed up first. One rename then puts the fixed file in its place, so a kill at any moment leaves the
old file or the new one. A file that cannot be fixed without guessing stays as it is, with the reason.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomlkit
import tomlkit.exceptions

from wan_train.base import locks
from wan_train.base.errors import BadInputError
from wan_train.base.files import can_be_written, sync_directory, sync_file
from wan_train.base.text import visible
from wan_train.dataset.buckets import TARGET_FPS
from wan_train.dataset.captions import repaired
from wan_train.dataset.checks import is_same_speed
from wan_train.dataset.model import CannotFixError, Inventory, Problem, ProblemKind, SubsetInventory
from wan_train.dataset.pictures import Unreadable, read_picture
from wan_train.dataset.scan import Check
from wan_train.dataset.video import Clip, read_clip

if TYPE_CHECKING:
    from PIL import Image

BACKUP = ".wan-train-backup"
"""Folder beside the files. The trainer reads neither subfolders nor names with a leading dot."""

_LOCK, _STAGING = "lock", "staging"
_MOST_OFF = 12.0
"""Largest mean difference of grey levels (of 255). Re-encoding a JPEG at its own quality gives under 3."""
_SIDEWAYS = frozenset({5, 6, 7, 8})
_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True, kw_only=True)
class Fix:
    """One change: `make` writes the replacement of `path`; `what` describes it. `target` differs for a renamed file."""

    path: Path
    target: Path
    what: str
    make: Callable[[Path], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A problem of a fixable kind, and why it cannot be fixed here."""

    problem: Problem
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FixPlan:
    """What can be fixed, and what cannot."""

    fixes: tuple[Fix, ...]
    skipped: tuple[Skipped, ...]


def plan(check: Check) -> FixPlan:
    """What `--fix` would do; reads the files, changes nothing."""
    fixes: dict[Path, Fix] = {}
    skipped = []
    speeds = _common_speeds(check)
    why_no_speed = None
    if speeds:
        try:
            fixes[check.config] = _source_fps(check, speeds)
        except (CannotFixError, OSError) as error:
            why_no_speed = _reason(error)
    for problem in check.problems:
        path = problem.path
        if path is None or path in fixes or not problem.is_fixable:
            continue
        try:
            if problem.kind is not ProblemKind.FRAME_RATE:
                fixes[path] = _fix(problem, path, check)
                continue
        except (CannotFixError, OSError) as error:
            skipped.append(Skipped(problem=problem, why=_reason(error)))
            continue
        if _subset_of(path, check).subset.index not in speeds:
            why = "its dataset has several frame rates; move the clips of each to a separate folder"
            skipped.append(Skipped(problem=problem, why=why))
        elif why_no_speed is not None:
            skipped.append(Skipped(problem=problem, why=why_no_speed))
    return FixPlan(fixes=tuple(fixes.values()), skipped=tuple(skipped))


def command_for(inventory: Inventory) -> str | None:
    """The command that fixes some of the blocking problems; None if it cannot fix any."""
    config = inventory.config.path
    check = Check(
        config=config,
        is_written=config.is_file(),
        reading=inventory.reading,
        inventory=inventory,
        problems=inventory.stopping,
    )
    if not any(can_be_written(fix.path.parent) for fix in plan(check).fixes):
        return None
    return f"wan-train dataset check {shlex.quote(str(config if check.is_written else config.parent))} --fix"


def apply(fix: Fix, stamp: str) -> Path:
    """Make one change and return the path of the kept original. `stamp` names the backup folder of this round.

    Raises OSError or CannotFixError; the file is then unchanged.
    """
    home = fix.path.parent / BACKUP
    staging = home / _STAGING
    staging.mkdir(parents=True, exist_ok=True)
    made = staging / fix.target.name
    fix.make(made)
    sync_file(made)
    shutil.copymode(fix.path, made)
    kept = back_up(fix.path, home / stamp)
    if fix.target != fix.path:
        # Create the new name first, so that the caption exists at every moment.
        _move_to_free_name(made, fix.target)
        fix.path.unlink()
    else:
        made.replace(fix.path)
    sync_directory(fix.path.parent)
    return kept


def _move_to_free_name(made: Path, target: Path) -> None:
    """Move a file without ever replacing another; raises FileExistsError if `target` exists."""
    try:
        os.link(made, target)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links. Reserve the name, then replace our own empty file.
        target.touch(exist_ok=False)
        made.replace(target)
    else:
        made.unlink()


@contextmanager
def locked(folders: set[Path]) -> Iterator[None]:
    """Let only one program fix a folder at a time, and remove unfinished files of a killed one.

    Raises BadInputError if another one is running or a folder cannot be written.
    """
    with ExitStack() as stack:
        for folder in sorted(folders):
            home = folder / BACKUP
            try:
                home.mkdir(exist_ok=True)
                stack.enter_context(locks.held(home / _LOCK, mode=0o644))
            except BlockingIOError:
                raise BadInputError(
                    f"another `--fix` is running in {visible(str(folder))}", hint="Wait for it, then start again."
                ) from None
            except OSError as error:
                raise BadInputError(
                    f"{visible(str(folder))} cannot be written to: {error.strerror}",
                    hint="Nothing was changed. Make the folder writable, or copy the dataset to one that is.",
                ) from None
            stack.callback(shutil.rmtree, home / _STAGING, ignore_errors=True)
            shutil.rmtree(home / _STAGING, ignore_errors=True)
        yield


def stamp_of(now: float) -> str:
    """The name of a round's backup folder: UTC, to the second."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))


def back_up(path: Path, folder: Path) -> Path:
    """Keep the original in `folder` atomically and return its path there; never replaces a kept file."""
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
            sync_file(partial_copy)
            if kept.exists():
                continue
            partial_copy.replace(kept)
        sync_directory(folder)
        return kept
    raise CannotFixError(f"{visible(str(folder))} contains too many copies of it")


def _reason(error: OSError | CannotFixError) -> str:
    return f"it cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)


def _fix(problem: Problem, path: Path, check: Check) -> Fix:
    if problem.misnamed is not None:
        return _renamed(problem.misnamed, path, check)
    if path.is_symlink():
        raise CannotFixError(f"it is a link; fix {visible(str(path.resolve()))} instead")
    if not path.is_file():
        raise CannotFixError("it is not a file")
    if problem.kind is ProblemKind.ROTATED:
        return Fix(path=path, target=path, what="turned upright", make=partial(_write_upright, path))
    text, what = repaired(path.read_bytes())
    return Fix(path=path, target=path, what=what, make=partial(_write, data=text.encode()))


def _write(made: Path, *, data: bytes) -> None:
    made.write_bytes(data)


def _renamed(misnamed: Path, picture: Path, check: Check) -> Fix:
    found = check.inventory.subsets if check.inventory is not None else ()
    # Datasets of one folder may have different extensions. The wanted name differs from the file's only in case.
    wanted = (picture.with_suffix(each.subset.caption_extension or "") for each in found)
    target = next(path for path in wanted if path != misnamed and path.name.casefold() == misnamed.name.casefold())
    if misnamed.is_symlink() or not misnamed.is_file():
        raise CannotFixError(f"{visible(misnamed.name)} is not a regular file; rename it to {visible(target.name)}")
    if target.exists():
        raise CannotFixError(f"{visible(target.name)} exists already")
    what = f"renamed to {visible(target.name)}"
    return Fix(path=misnamed, target=target, what=what, make=partial(shutil.copyfile, misnamed))


def _subset_of(path: Path, check: Check) -> SubsetInventory:
    """The first dataset that contains the item."""
    found = check.inventory.subsets if check.inventory is not None else ()
    return next(each for each in found if any(item.path == path for item in each.items))


def _common_speeds(check: Check) -> dict[int, float]:
    """`source_fps` by dataset index, for datasets whose clips all share one frame rate but are read at another."""
    wrong = {each.path for each in check.problems if each.kind is ProblemKind.FRAME_RATE}
    found = check.inventory.subsets if check.inventory is not None else ()
    with_wrong = (each for each in found if each.subset.video and wrong & {item.path for item in each.items})
    speeds = {each.subset.index: _common_speed(each) for each in with_wrong}
    return {index: fps for index, fps in speeds.items() if fps is not None}


def _common_speed(found: SubsetInventory) -> float | None:
    speeds: list[float] = []
    for item in found.items:
        clip = read_clip(item.path)
        if not isinstance(clip, Clip) or clip.fps is None or clip.is_variable:
            return None
        speeds.append(clip.fps)
    fps = float(f"{Counter(speeds).most_common(1)[0][0]:.5g}")
    # The trainer drops frames and adds none.
    return fps if fps >= TARGET_FPS and all(is_same_speed(each, fps) for each in speeds) else None


def _source_fps(check: Check, speeds: dict[int, float]) -> Fix:
    path = check.config
    what = ", ".join(f"source_fps = {fps} in datasets[{index}]" for index, fps in speeds.items())
    if not check.is_written:
        command = f"wan-train dataset write {shlex.quote(str(path.parent))} --source-fps {min(speeds.values())}"
        raise CannotFixError(f"there is no dataset.toml yet; write one with {visible(command)}")
    if path.is_symlink():
        raise CannotFixError(f"the dataset.toml is a link; write {what} to {visible(str(path.resolve()))}")
    before = path.read_bytes()
    try:
        text = _with_speeds(before.decode("utf-8-sig"), speeds)
    except UnicodeDecodeError:
        text = None
    if text is None:
        raise CannotFixError(f"change the dataset.toml by hand: {what}")

    def make(made: Path) -> None:
        if path.read_bytes() != before:
            raise CannotFixError("another program changed it just now")
        made.write_bytes(text.encode())

    return Fix(path=path, target=path, what=what, make=make)


def _with_speeds(text: str, speeds: dict[int, float]) -> str | None:
    """The dataset.toml with its comments and these speeds; None if tomlkit would change anything else."""
    try:
        document = tomlkit.parse(text)
        expected = tomllib.loads(text)
        for index, fps in speeds.items():
            entries: Any = document["datasets"]
            entries[index]["source_fps"] = fps
            expected["datasets"][index]["source_fps"] = fps
        result = tomlkit.dumps(document)
        return result if tomllib.loads(result) == expected else None
    except (tomlkit.exceptions.TOMLKitError, tomllib.TOMLDecodeError, TypeError, KeyError, IndexError, ValueError):
        return None


def _write_upright(path: Path, made: Path) -> None:
    """Write the picture upright in its own format, and compare the result with the original.

    PNG and lossless WebP keep every pixel. A JPEG keeps its own quantisation tables, turned with it, so hardly
    anything is rounded twice. The colour profile and other EXIF entries stay.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        image.load()
        turned = ImageOps.exif_transpose(image)
        options = _save_options(image, path, sideways=image.getexif().get(_ORIENTATION) in _SIDEWAYS)
        options["exif"] = turned.getexif()
        if (profile := image.info.get("icc_profile")) is not None:
            options["icc_profile"] = profile
        with made.open("wb") as file:
            turned.save(file, "JPEG" if image.format == "MPO" else image.format, **options)
        size, expected = turned.size, _greys(turned)
    with Image.open(made) as written:
        off = sum(abs(one - other) for one, other in zip(expected, _greys(written), strict=True)) / len(expected)
        found = read_picture(made)
        if written.size != size or off > _MOST_OFF or isinstance(found, Unreadable) or found.orientation != 1:
            raise CannotFixError("the turned picture does not look like the original, so it was not used")


def _greys(image: Image.Image) -> bytes:
    from PIL import Image

    return image.convert("L").resize((64, 64), Image.Resampling.BOX).tobytes()


def _save_options(image: Any, path: Path, *, sideways: bool) -> dict[str, Any]:  # noqa: ANN401 - Pillow plugins differ
    from PIL import JpegImagePlugin

    match image.format:
        case "JPEG" | "MPO":
            tables = {number: _turned(table) if sideways else table for number, table in image.quantization.items()}
            sampling = JpegImagePlugin.get_sampling(image)
            # 4:2:2 turned on its side is 4:4:0, which cannot be written, so keep all colour detail.
            return {"qtables": tables, "subsampling": 0 if sampling < 0 or (sideways and sampling == 1) else sampling}
        case "WEBP":
            return {"lossless": True} if b"VP8L" in path.read_bytes()[:64] else {"quality": 95, "method": 6}
        case "AVIF":
            return {"quality": 90}
        case _:
            return {}


def _turned(table: list[int]) -> list[int]:
    """An 8x8 quantisation table turned with its picture: rows become columns."""
    return [table[column * 8 + row] for row in range(8) for column in range(8)]

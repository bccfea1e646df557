"""A closer look that decodes: what headers do not tell. A run does without; `dataset check` takes it where quick."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from wan_train.dataset import video
from wan_train.dataset.buckets import frames_read
from wan_train.dataset.duplicates import look, same_looks
from wan_train.dataset.media import Unreadable, damaged, quiet_about_size
from wan_train.dataset.model import Inventory, Item, MediaKind, Problem, ProblemKind, Severity, Subset

_QUICK_PIXELS = 150_000_000
"""About two seconds on two cores: 12 photos of a phone, or 150 pictures of a megapixel."""
_QUICK_CLIPS = 100
_LOOK_SIDE = 9
_OPAQUE = 255


class Depth(StrEnum):
    """How closely to look: only where it is quick, or at everything that can be decoded."""

    QUICK = "quick"
    THOROUGH = "thorough"


@dataclass(frozen=True, slots=True, kw_only=True)
class CloserLook:
    """What decoding brought. `left_out` says in sentences what was not done and how to have it done.

    `resolved` are problems of the first look that this one replaces.
    """

    problems: tuple[Problem, ...] = ()
    resolved: tuple[Problem, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    look: int | None = None
    is_transparent: bool | None = None
    damage: Unreadable | None = None


def look_closer(
    inventory: Inventory, depth: Depth, *, progress: Callable[[int, int], None] = lambda _done, _all: None
) -> CloserLook:
    """Decode pictures and first frames; with THOROUGH also whole clips. `progress` gets files done and to do."""
    stopped = {problem.path for problem in inventory.stopping}
    items = {item.path: (found.subset, item) for found in inventory.subsets for item in found.items}
    sound = [(subset, item) for subset, item in items.values() if item.path not in stopped]
    pictures = [item for subset, item in sound if subset.kind is MediaKind.IMAGE]
    clips = [(subset, item) for subset, item in sound if subset.kind is MediaKind.VIDEO and item.path.is_file()]
    left_out = []
    pixels = sum((item.width or 0) * (item.height or 0) for item in pictures)
    is_whole = depth is Depth.THOROUGH
    if not is_whole and pixels > _QUICK_PIXELS:
        left_out.append(
            f"{len(pictures):,} pictures were not decoded, so pictures that look the same, damage in the middle of a "
            "file and real transparency were not looked for. Add --thorough to look for them."
        )
        pictures = []
    if not is_whole and len(clips) > _QUICK_CLIPS:
        left_out.append(f"{len(clips):,} clips were not decoded. Add --thorough to decode them whole.")
        clips = []
    elif clips and not is_whole:
        left_out.append("Of clips only the first frame was decoded. Add --thorough to decode them whole.")
    if clips and video.pyav() is None:
        left_out[:] = [said for said in left_out if "first frame" not in said]
        clips = []
    problems, resolved = _pictures(inventory, pictures, is_whole=is_whole, progress=progress)
    problems += [found for subset, item in clips for found in _clip(subset, item, is_whole=is_whole)]
    return CloserLook(problems=tuple(problems), resolved=tuple(resolved), left_out=tuple(left_out))


def _pictures(
    inventory: Inventory, items: list[Item], *, is_whole: bool, progress: Callable[[int, int], None]
) -> tuple[list[Problem], list[Problem]]:
    transparent = {problem.path: problem for problem in inventory.problems if problem.kind is ProblemKind.TRANSPARENT}
    problems: list[Problem] = []
    resolved: list[Problem] = []
    looks: dict[Path, int] = {}
    # Decoders let other threads run, so both cores work.
    with quiet_about_size(), ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        seen = pool.map(lambda item: _see(item.path, fully=is_whole or item.path in transparent), items)
        for number, (item, found) in enumerate(zip(items, seen, strict=True), start=1):
            progress(number, len(items))
            problems += _judge(item.path, found)
            if found.look is not None:
                looks[item.path] = found.look
            if (told := transparent.get(item.path)) is not None and found.is_transparent is not None:
                resolved.append(told)
                if found.is_transparent:
                    problems.append(_transparent(told))
    same = [p.path for p in inventory.problems if p.kind is ProblemKind.DUPLICATE and p.path is not None]
    problems += same_looks(looks, known=same)
    return problems, resolved


def _see(path: Path, *, fully: bool) -> _Seen:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if not fully:
                # Of a JPEG an eighth of each side is enough, at a fifth of the time.
                image.draft("L", (_LOOK_SIDE * 8, _LOOK_SIDE * 8))
            image.load()
            transparent = None
            if fully and (image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info):
                transparent = min(image.convert("RGBA").getchannel("A").tobytes()) < _OPAQUE
            grey = image.convert("L").resize((_LOOK_SIDE, _LOOK_SIDE), Image.Resampling.BOX)
            return _Seen(look=look(grey.tobytes()), is_transparent=transparent)
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        return _Seen(damage=damaged(path, error))


def _judge(path: Path, seen: _Seen) -> Iterator[Problem]:
    if seen.damage is not None:
        what, mend = seen.damage.what, "Replace or remove the file"
        yield Problem(kind=seen.damage.kind, severity=Severity.STOPS, what=what, mend=mend, path=path)


def _transparent(told: Problem) -> Problem:
    return Problem(
        kind=ProblemKind.TRANSPARENT,
        severity=Severity.HARMS,
        what="has transparent parts; they are trained in the colour stored beneath them, often black",
        mend=told.mend,
        path=told.path,
    )


def _clip(subset: Subset, item: Item, *, is_whole: bool) -> Iterator[Problem]:
    seen = video.decode(item.path, at_most=frames_read(subset.video) if is_whole and subset.video else 1)
    match seen:
        case None:
            return
        case Unreadable(kind=kind, what=what):
            mend = "Replace or remove the file"
            yield Problem(kind=kind, severity=Severity.STOPS, what=what, mend=mend, path=item.path)
        case video.Decoded(quarter_turns=turns, frames=frames):
            if turns:
                yield Problem(
                    kind=ProblemKind.ROTATED,
                    severity=Severity.HARMS,
                    what="is stored turned with a mark for players to turn it back, which the trainer ignores",
                    mend="Turn it with --fix, or encode it anew without the mark: ffmpeg -i IN -crf 14 OUT.mp4",
                    path=item.path,
                )
            wanted = min(item.frames or 0, frames_read(subset.video) or item.frames or 0) if subset.video else 0
            if is_whole and frames < wanted:
                yield Problem(
                    kind=ProblemKind.TRUNCATED_MEDIA,
                    severity=Severity.LOSES,
                    what=f"says that it has {item.frames} frames, of which only {frames} are there",
                    mend="Copy it again",
                    path=item.path,
                )

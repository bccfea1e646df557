"""Problems that only decoding finds. A run skips this; `dataset check` does it where it is quick."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from wan_train.dataset import video
from wan_train.dataset.buckets import frames_read
from wan_train.dataset.checks import near_duplicates, perceptual_hash
from wan_train.dataset.model import Inventory, Item, MediaKind, Problem, ProblemKind, Subset, harms, loses, stops
from wan_train.dataset.pictures import Unreadable, damaged, quiet_about_size

_QUICK_PIXELS = 150_000_000
"""About two seconds on two cores: 12 phone photos, or 150 pictures of one megapixel."""
_QUICK_CLIPS = 100
_HASH_SIDE = 9
_OPAQUE = 255


class Depth(StrEnum):
    """How much to decode: only what is quick, or everything."""

    QUICK = "quick"
    THOROUGH = "thorough"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepScan:
    """Problems found by decoding. `left_out` are sentences: what was not checked, and the option that checks it.

    `resolved` are problems of the header scan that `problems` replaces.
    """

    problems: tuple[Problem, ...] = ()
    resolved: tuple[Problem, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decoded:
    bits: int | None = None
    is_transparent: bool | None = None
    damage: Unreadable | None = None


def deep_scan(
    inventory: Inventory, depth: Depth, *, progress: Callable[[int, int], None] = lambda _done, _all: None
) -> DeepScan:
    """Decode pictures and first frames; with THOROUGH also whole clips. `progress` gets files done and total."""
    stopped = {problem.path for problem in inventory.stopping}
    items = {item.path: (found.subset, item) for found in inventory.subsets for item in found.items}
    sound = [(subset, item) for subset, item in items.values() if item.path not in stopped]
    pictures = [item for subset, item in sound if subset.kind is MediaKind.IMAGE]
    clips = [(subset, item) for subset, item in sound if subset.kind is MediaKind.VIDEO and item.path.is_file()]
    left_out = []
    pixels = sum((item.width or 0) * (item.height or 0) for item in pictures)
    is_whole = depth is Depth.THOROUGH
    if not is_whole and pixels > _QUICK_PIXELS:
        count = "1 picture was" if len(pictures) == 1 else f"{len(pictures):,} pictures were"
        left_out.append(
            f"{count} not decoded: near-duplicates, damage in the middle of a file and real "
            "transparency were not checked. Add --thorough to check them."
        )
        pictures = []
    if not is_whole and len(clips) > _QUICK_CLIPS:
        left_out.append(f"{len(clips):,} clips were not decoded. Add --thorough to decode them.")
        clips = []
    elif clips and not is_whole:
        left_out.append("Only the first frame of each clip was decoded. Add --thorough to decode all frames.")
    if clips and video.pyav() is None:
        left_out[:] = [text for text in left_out if "first frame" not in text]
        clips = []
    total = len(pictures) + len(clips)
    problems, resolved = _pictures(inventory, pictures, is_whole=is_whole, progress=lambda done: progress(done, total))
    for done, (subset, item) in enumerate(clips, start=len(pictures) + 1):
        problems += _clip(subset, item, is_whole=is_whole)
        progress(done, total)
    return DeepScan(problems=tuple(problems), resolved=tuple(resolved), left_out=tuple(left_out))


def _pictures(
    inventory: Inventory, items: list[Item], *, is_whole: bool, progress: Callable[[int], None]
) -> tuple[list[Problem], list[Problem]]:
    transparent = {problem.path: problem for problem in inventory.problems if problem.kind is ProblemKind.TRANSPARENT}
    problems: list[Problem] = []
    resolved: list[Problem] = []
    hashes: dict[Path, int] = {}
    # Decoders release the interpreter lock, so threads use all cores.
    with quiet_about_size(), ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        seen = pool.map(lambda item: _decode(item.path, fully=is_whole or item.path in transparent), items)
        for number, (item, found) in enumerate(zip(items, seen, strict=True), start=1):
            progress(number)
            problems += _damage(item.path, found)
            if found.bits is not None:
                hashes[item.path] = found.bits
            if (reported := transparent.get(item.path)) is not None and found.is_transparent is not None:
                resolved.append(reported)
                if found.is_transparent:
                    problems.append(_transparent(reported))
    same = [p.path for p in inventory.problems if p.kind is ProblemKind.DUPLICATE and p.path is not None]
    problems += near_duplicates(hashes, known=same)
    return problems, resolved


def _decode(path: Path, *, fully: bool) -> _Decoded:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if not fully:
                # Decoding a JPEG at an eighth of each side takes a fifth of the time.
                image.draft("L", (_HASH_SIDE * 8, _HASH_SIDE * 8))
            image.load()
            transparent = None
            if fully and (image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info):
                transparent = min(image.convert("RGBA").getchannel("A").tobytes()) < _OPAQUE
            grey = image.convert("L").resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.BOX)
            return _Decoded(bits=perceptual_hash(grey.tobytes()), is_transparent=transparent)
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        return _Decoded(damage=damaged(path, error))


def _damage(path: Path, found: _Decoded) -> Iterator[Problem]:
    if found.damage is not None:
        what, fix = found.damage.what, "Replace or remove the file"
        yield stops(found.damage.kind, what, fix, path)


def _transparent(reported: Problem) -> Problem:
    return harms(
        ProblemKind.TRANSPARENT,
        "has transparent parts; the colour stored beneath them is trained, often black",
        reported.fix,
        reported.path,
    )


def _clip(subset: Subset, item: Item, *, is_whole: bool) -> Iterator[Problem]:
    seen = video.decode(item.path, at_most=frames_read(subset.video) if is_whole and subset.video else 1)
    match seen:
        case None:
            return
        case Unreadable(kind=kind, what=what):
            fix = "Replace or remove the file"
            yield stops(kind, what, fix, item.path)
        case video.Decoded(quarter_turns=turns, frames=frames):
            if turns:
                yield harms(
                    ProblemKind.ROTATED,
                    "is stored rotated, and the trainer ignores the rotation that players apply",
                    "Encode it upright: ffmpeg -i IN -crf 14 OUT.mp4",
                    item.path,
                )
            wanted = min(item.frames or 0, frames_read(subset.video) or item.frames or 0) if subset.video else 0
            if is_whole and frames < wanted:
                yield loses(
                    ProblemKind.TRUNCATED_MEDIA,
                    f"should have {item.frames} frames, but only {frames} can be decoded",
                    "Copy it again",
                    item.path,
                )

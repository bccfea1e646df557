"""Pictures that are there twice: byte for byte, or to the eye."""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from wan_train.dataset.model import Problem, ProblemKind, Severity

_SAMPLE = 16 * 1024
_HASH_SIDE = 8
_SAME_LOOK = 3
"""Of 128 bits; crops and other motifs differ by 20 and more, a picture saved again or scaled by 0 to 3."""


def same_files(sizes: Mapping[Path, int]) -> Iterator[Problem]:
    """Files with the bytes of an earlier one. `sizes` in bytes; only files of one size are read, whole only twins."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path, size in sizes.items():
        by_size[size].append(path)
    for size, paths in by_size.items():
        if len(paths) == 1:
            continue
        for suspects in _split(paths, functools.partial(_sample, size=size)):
            for first, *others in _split(suspects, _digest):
                for other in others:
                    yield Problem(
                        kind=ProblemKind.DUPLICATE,
                        severity=Severity.HARMS,
                        path=other,
                        what=f"is the same file as {first.name}, so it is learned twice as strongly",
                        mend="Remove one; num_repeats is the way to see all more often",
                    )


def same_looks(looks: Mapping[Path, int], *, known: Iterable[Path]) -> Iterator[Problem]:
    """Pictures that look like an earlier one by `look`; `known` are those already told to be the same file."""
    told = set(known)
    # Two looks within three bits agree in at least one of four parts of 32 bits: only those are compared.
    parts: dict[tuple[int, int], list[Path]] = defaultdict(list)
    for path, bits in looks.items():
        if path in told:
            continue
        keys = [(part, bits >> (32 * part) & 0xFFFFFFFF) for part in range(_SAME_LOOK + 1)]
        near = (other for key in keys for other in parts[key])
        twin = next((other for other in near if (looks[other] ^ bits).bit_count() <= _SAME_LOOK), None)
        if twin is None:
            for key in keys:
                parts[key].append(path)
            continue
        yield Problem(
            kind=ProblemKind.NEAR_DUPLICATE,
            severity=Severity.NOTE,
            path=path,
            what=f"looks like {twin.name}",
            mend="Keep one, unless both are meant",
        )


def look(grey: bytes) -> int | None:
    """128 bits of a picture scaled to 9x9 greys, row by row: where it gets brighter to the right and downwards.

    None for a picture without any structure, which would look like every other such.
    """
    side = _HASH_SIDE + 1
    bits = 0
    for y in range(_HASH_SIDE):
        for x in range(_HASH_SIDE):
            here, right, below = grey[y * side + x], grey[y * side + x + 1], grey[(y + 1) * side + x]
            bits = bits << 2 | (right > here) << 1 | (below > here)
    return bits if max(grey) - min(grey) > side else None


def _split(paths: Iterable[Path], key: Callable[[Path], bytes]) -> Iterator[list[Path]]:
    """Groups of at least two with one key; files that cannot be read are in none."""
    groups: dict[bytes, list[Path]] = defaultdict(list)
    for path in paths:
        try:
            groups[key(path)].append(path)
        except OSError:
            continue
    return (group for group in groups.values() if len(group) > 1)


def _sample(path: Path, *, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, size // 2 - _SAMPLE // 2))
        return file.read(_SAMPLE)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

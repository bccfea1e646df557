"""How the making of caches is shared out over several GPUs: whether that pays, and who makes what. Pure arithmetic.

An item stays together with everything of its stem: the trainer names caches by it, so two programs never write the same
file. That is all that keeps two of them apart in one folder: told to skip what exists and to keep the rest, each opens
only files of its own items (both versions; the text program re-reads a file that it is about to write over).
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

_WORTH_SECONDS = 30.0
_WORTH_PART = 0.1
"""What splitting has to save at least, in seconds and of the whole: the paces behind it are only assumed."""
_NEAR = 1.05

MOST_SHARDS = 64
"""More GPUs than any box has."""

Stem = tuple[str, str]
"""A cache directory and a stem of it: what is never torn apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The caching of one kind: seconds each program takes to load, seconds all items take on one GPU.

    `most` programs may do it: items that cannot be told apart, or RAM, may allow fewer than there are GPUs.
    """

    load: float
    work: float
    most: int


NO_WORK = Workload(load=0, work=0, most=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Which of `of` shards makes which item, numbered from 1: by cache directory, then by stem.

    An item that came later, or whose cache was right when the shares were made, belongs to the shard that its name
    gives.
    """

    of: int
    numbers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def number(self, folder: Path, stem: str) -> int:
        known = self.numbers.get(str(folder), {}).get(stem)
        return known or _number_in(stem) % self.of + 1


def _number_in(stem: str) -> int:
    """The same in every process. A checksum would not do: of names that only count up it may give even numbers only."""
    return int.from_bytes(hashlib.blake2b(stem.encode(errors="surrogatepass"), digest_size=8).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The items of one shard."""

    number: int
    shares: Shares

    def has(self, folder: Path, stem: str) -> bool:
        return self.shares.number(folder, stem) == self.number


def choose(latents: Workload, text: Workload, *, gpus: int) -> tuple[int, int]:
    """Into how many shards latents and text are split; 1 and 1 unless another way saves enough.

    Never more shards of a kind than GPUs. A GPU that two programs could share counts as one that takes them in turn:
    they would share its computing time.
    """
    whole = makespan(latents, text, (1, 1), gpus=gpus)
    ways = product(range(1, min(gpus, latents.most) + 1), range(1, min(gpus, text.most) + 1))
    seconds = {way: makespan(latents, text, way, gpus=gpus) for way in ways}
    # Each program more is one more that can fail, so the fewest of those that come near to the quickest.
    near = [way for way, took in seconds.items() if took <= _NEAR * min(seconds.values())]
    best = min(near, key=lambda way: (sum(way), seconds[way]))
    return best if whole - seconds[best] >= max(_WORTH_SECONDS, _WORTH_PART * whole) else (1, 1)


def makespan(latents: Workload, text: Workload, shards: tuple[int, int], *, gpus: int) -> float:
    """Seconds until the last of all programs ends, each on the first GPU that is free, latents before text."""
    ends = [0.0] * gpus
    for workload, count in zip((latents, text), shards, strict=True):
        for _ in range(count):
            heapq.heapreplace(ends, ends[0] + workload.load + workload.work / count)
    return max(ends)


def share_out(costs: Mapping[Stem, int], *, of: int) -> Shares:
    """Shares of about the same cost: the dearest item first, each to the shard that has least so far.

    No share is dearer than the cheapest by more than one item. The same costs give the same shares.
    """
    totals = [(0, number) for number in range(1, of + 1)]
    numbers: dict[str, dict[str, int]] = {}
    for (folder, stem), cost in sorted(costs.items(), key=lambda each: (-each[1], each[0])):
        total, number = totals[0]
        heapq.heapreplace(totals, (total + cost, number))
        numbers.setdefault(folder, {})[stem] = number
    return Shares(of=of, numbers=numbers)

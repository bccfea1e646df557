"""The training items: all caches on disk, in buckets, in a new order every epoch."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from wan_train.dataset.model import MediaKind, Subset
from wan_train.rehearsal.data import IMAGE_WINDOW, bucket_of, text_cache

logger = logging.getLogger(__name__)

Bucket = tuple[int, int, int]
Pair = tuple[Path, Path]
Batch = dict[str, Any]
"""Tensors by name; see `TrainSet`."""


class Buckets:
    """Batches of one dataset: pairs of latent and text cache that share a bucket (width, height, frames)."""

    def __init__(self, subset: Subset, seed: int) -> None:
        self.subset = subset
        self.seed = seed
        self.epoch = 0
        self.pairs = _pairs(subset)
        self.order = [
            (bucket, start)
            for bucket in sorted(self.pairs)
            for start in range(0, len(self.pairs[bucket]), subset.batch_size)
        ]
        for bucket in sorted(self.pairs):
            logger.info("bucket: %s, count: %d", bucket, len(self.pairs[bucket]))
        logger.info("total batches: %d", len(self.order))

    def set_epoch(self, epoch: int) -> None:
        """Shuffle items and batches once for every epoch that has begun, with seed + epoch."""
        if epoch > self.epoch:
            logger.info("epoch is incremented. current_epoch: %d, epoch: %d", self.epoch, epoch)
        while self.epoch < epoch:
            self.epoch += 1
            shuffler = random.Random(self.seed + self.epoch)  # noqa: S311 - an order, not a secret
            for bucket in self.pairs.values():
                shuffler.shuffle(bucket)
            shuffler.shuffle(self.order)

    def batch(self, number: int) -> Batch:
        bucket, start = self.order[number]
        return _stack(self.pairs[bucket][start : start + self.subset.batch_size])


class TrainSet:
    """All datasets as one sequence of ready batches.

    A batch holds `latents` (batch, 16, F, H, W), `t5` (a list of (tokens, 64), lengths differ) and with I2V
    `latents_image` (batch, 20, F, H, W).
    """

    def __init__(self, subsets: Sequence[Subset]) -> None:
        seed = random.randint(0, 2**31)  # noqa: S311 - follows from --seed
        self.buckets = [Buckets(subset, seed) for subset in subsets]
        self._index = [(part, number) for part in self.buckets for number in range(len(part.order))]

    def set_epoch(self, epoch: int) -> None:
        """Put every dataset into the order of this epoch, counted from one."""
        for part in self.buckets:
            part.set_epoch(epoch)

    @property
    def num_items(self) -> int:
        return sum(len(pairs) for part in self.buckets for pairs in part.pairs.values())

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, position: int) -> Batch:
        part, number = self._index[position]
        return part.batch(number)


def _pairs(subset: Subset) -> dict[Bucket, list[Pair]]:
    pairs: defaultdict[Bucket, list[Pair]] = defaultdict(list)
    for latents in sorted(subset.cache_directory.glob("*_wan.safetensors")):
        words = latents.name.split("_")
        width, height = map(int, words[-2].split("x"))
        if subset.kind is MediaKind.IMAGE:
            stem, frames = "_".join(words[:-2]), IMAGE_WINDOW
        else:
            stem, frames = "_".join(words[:-3]), int(words[-3].split("-")[1])
        text = text_cache(subset, stem)
        if not text.exists():
            logger.warning("Text encoder output cache file not found: %s", text)
            continue
        bucket = (*bucket_of(subset, (width, height)), frames)
        pairs[bucket] += [(latents, text)] * subset.num_repeats
    return dict(pairs)


def _stack(pairs: list[Pair]) -> Batch:
    columns: defaultdict[str, list[Tensor]] = defaultdict(list)
    for latents, text in pairs:
        for key, tensor in (load_file(latents) | load_file(text)).items():
            name = key.removeprefix("varlen_").rsplit("_", 1)[0]  # the last word is the dtype
            columns[name.rsplit("_", 1)[0] if name.startswith("latents_") else name].append(tensor)
    return {name: tensors if name == "t5" else torch.stack(tensors) for name, tensors in columns.items()}

"""What will be trained, as one value: the size and crop of every item, the counts, steps and cache bytes."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

from wan_train.dataset.buckets import (
    Crop,
    batches_per_epoch,
    bucket_for,
    bucket_of,
    clips,
    crop_for,
    frames_at_target_rate,
    rounded_frames,
)
from wan_train.dataset.captions import MOST_TOKENS
from wan_train.dataset.model import Inventory, Item, MediaKind, Subset, SubsetInventory

_PICTURE = ((0, 1),)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedFile:
    """One file of a dataset and the part of it that is trained.

    `crop` is None if the file's size is unknown or nothing of it would be left. `cuts` has the (first frame, frame
    count) of each training item, (0, 1) for a picture. It is empty if the length is unknown, the video is too short,
    or an earlier file's caches have the same names. `bucket` is the (width, height) by which the trainer sorts the
    file into batches: that of the crop, except for clips without buckets.
    """

    item: Item
    crop: Crop | None
    cuts: tuple[tuple[int, int], ...]
    bucket: tuple[int, int] | None
    is_known: bool

    @property
    def keys(self) -> tuple[tuple[int, int, int], ...]:
        """The (width, height, frames) of each training item; items with equal keys share batches."""
        if self.bucket is None:
            return ()
        return tuple((*self.bucket, frames) for _, frames in self.cuts)


def trained_files(found: SubsetInventory) -> tuple[TrainedFile, ...]:
    """The trained part of every item, in inventory order, by the trainer's own arithmetic.

    Of several files with the same cache name the trainer keeps one, by chance of its threads. All would have the same
    size and frames, so the first stands for it here.
    """
    names: set[tuple[str | int, ...]] = set()
    return tuple(_one(item, found.subset, names) for item in found.items)


def _one(item: Item, subset: Subset, names: set[tuple[str | int, ...]]) -> TrainedFile:
    if item.width is None or item.height is None:
        return TrainedFile(item=item, crop=None, cuts=(), bucket=None, is_known=False)
    stored = (item.width, item.height)
    stem = os.path.splitext(item.path.name)[0]
    if subset.video is None:
        size = bucket = bucket_of(subset, stored)
        cuts = _fresh(names, stem, stored, _PICTURE)
    else:
        # The trainer always scales a clip with buckets on, then sorts it by that size under the configured rule.
        size = bucket_for(*stored, resolution=subset.resolution)
        bucket = bucket_of(subset, size)
        kept = 0 if item.frames is None else frames_at_target_rate(item.frames, subset.video)
        cuts = _fresh(names, stem, size, clips(kept, subset.video))
    return TrainedFile(
        item=item,
        crop=crop_for(stored, size) if min(size) > 0 else None,
        cuts=cuts,
        bucket=bucket,
        is_known=subset.video is None or item.frames is not None,
    )


def _fresh(
    names: set[tuple[str | int, ...]], stem: str, size: tuple[int, int], cuts: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, int], ...]:
    """The cuts with unused cache names; adds their names to `names`."""
    fresh = tuple(cut for cut in cuts if (stem, *cut, *size) not in names)
    names.update((stem, *cut, *size) for cut in fresh)
    return fresh


_LATENT_CHANNELS = 16
_MASK_CHANNELS = 4
_VAE_STRIDE = 8
_BYTES_PER_VALUE = 2
_TEXT_WIDTH = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Items of one trained size; width and height in pixels, `frames` 1 for pictures, `items` before repeats."""

    width: int
    height: int
    frames: int
    items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetSummary:
    """One dataset. `items` counts training items before repeats (a video may give several); None if unknown."""

    index: int
    kind: MediaKind
    files: int
    captions: int
    items: int | None
    num_repeats: int
    batch_size: int
    resolution: tuple[int, int]
    buckets: tuple[Bucket, ...]
    batches_per_epoch: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSummary:
    """The whole dataset; `files` and `captions` count each file once, even if several datasets train it.

    `items_with_repeats` and `batches_per_epoch` are None if the length of any video is unknown.
    `latent_bytes` covers the known items. `text_bytes` is an estimate from the captions' lengths.
    """

    subsets: tuple[SubsetSummary, ...]
    files: int
    captions: int
    items_with_repeats: int | None
    batches_per_epoch: int | None
    latent_bytes: int
    text_bytes: int

    @property
    def cache_bytes(self) -> int:
        """Latents and text-encoder output together."""
        return self.latent_bytes + self.text_bytes


def summary(inventory: Inventory, *, image_to_video: bool = False) -> DatasetSummary:
    """Count what will be trained, by the trainer's own arithmetic; `image_to_video` only enlarges the latents."""
    subsets = tuple(_subset(found) for found in inventory.subsets)
    items = [subset.items for subset in subsets]
    batches = [subset.batches_per_epoch for subset in subsets]
    captioned = [item for found in inventory.subsets for item in found.items if item.caption_path is not None]
    return DatasetSummary(
        subsets=subsets,
        # Count each file once, even if its folder is trained at several resolutions.
        files=len({(item.path, item.caption) for found in inventory.subsets for item in found.items}),
        captions=len({(item.path, item.caption) for item in captioned}),
        items_with_repeats=None
        if None in items
        else sum((subset.items or 0) * subset.num_repeats for subset in subsets),
        batches_per_epoch=None if None in batches else sum(count or 0 for count in batches),
        latent_bytes=sum(
            bucket.items * latent_bytes(bucket.width, bucket.height, bucket.frames, image_to_video=image_to_video)
            for subset in subsets
            for bucket in subset.buckets
        ),
        text_bytes=sum(text_bytes(item.caption_characters) for item in captioned),
    )


def latent_bytes(width: int, height: int, frames: int = 1, *, image_to_video: bool = False) -> int:
    """Bytes of one latent cache; a picture of 960x960 has 0.46 MB.

    The latents have 16 channels of bfloat16, width / 8, height / 8 and (frames - 1) / 4 + 1 in time. Image-to-video
    adds the first frame's latents and a 4-channel mask.
    Source: musubi-tuner wan_cache_latents.py encode_and_save_batch, both versions.
    """
    positions = (width // _VAE_STRIDE) * (height // _VAE_STRIDE) * ((rounded_frames(frames) - 1) // 4 + 1)
    channels = _LATENT_CHANNELS + (_LATENT_CHANNELS + _MASK_CHANNELS if image_to_video else 0)
    return channels * positions * _BYTES_PER_VALUE


def text_bytes(caption_characters: int) -> int:
    """Estimated bytes of one text-encoder cache: 4096 bfloat16 values for each of at most 512 tokens.

    It assumes three characters per token plus the end mark. English has about four, so it overestimates.
    """
    tokens = min(MOST_TOKENS, caption_characters // 3 + 2)
    return tokens * _TEXT_WIDTH * _BYTES_PER_VALUE


def _subset(found: SubsetInventory) -> SubsetSummary:
    subset = found.subset
    each = trained_files(found)
    known = all(one.is_known for one in each)
    buckets = [key for one in each for key in one.keys]
    counted = Counter(buckets)
    return SubsetSummary(
        index=subset.index,
        kind=subset.kind,
        files=len(found.items),
        captions=sum(item.caption_path is not None for item in found.items),
        items=len(buckets) if known else None,
        num_repeats=subset.num_repeats,
        batch_size=subset.batch_size,
        resolution=subset.resolution,
        buckets=tuple(
            Bucket(width=width, height=height, frames=frames, items=count)
            for (width, height, frames), count in sorted(counted.items())
        ),
        batches_per_epoch=batches_per_epoch(buckets, batch_size=subset.batch_size, num_repeats=subset.num_repeats)
        if known
        else None,
    )


NOTABLE_LOSS = 0.1
"""Crops of at least this fraction of the area are reported; buckets alone crop a few hundredths at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """All files of a dataset trained at one (width, height) in pixels; None if it is unknown."""

    pixels: tuple[int, int] | None
    files: tuple[TrainedFile, ...]

    @property
    def largest_loss(self) -> float:
        return max((one.crop.share_lost for one in self.files if one.crop), default=0.0)

    @property
    def largest_scale(self) -> float:
        return max((one.crop.scale for one in self.files if one.crop), default=0.0)

    @property
    def enlarged(self) -> int:
        return sum(is_enlarged(one) for one in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetLayout:
    """One dataset."""

    subset: Subset
    summary: SubsetSummary
    files: tuple[TrainedFile, ...]

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The files by trained size, the size with most files first; unknown sizes last."""
        found: dict[tuple[int, int] | None, list[TrainedFile]] = {}
        for one in self.files:
            found.setdefault(one.crop.bucket if one.crop is not None and one.cuts else None, []).append(one)
        order = sorted(found, key=lambda pixels: (pixels is None, -len(found[pixels]), pixels or ()))
        return tuple(Size(pixels=pixels, files=tuple(found[pixels])) for pixels in order)

    @property
    def enlarged(self) -> tuple[TrainedFile, ...]:
        """The enlarged files, the most enlarged first."""
        return tuple(sorted(filter(is_enlarged, self.files), key=lambda one: -one.crop.scale if one.crop else 0))

    @property
    def cropped(self) -> tuple[TrainedFile, ...]:
        """The files that lose a notable share of their area, the largest loss first."""
        return tuple(sorted(filter(is_cropped, self.files), key=lambda one: -one.crop.share_lost if one.crop else 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The whole dataset under a recipe's `epochs` and gradient `accumulation` (batches per step)."""

    subsets: tuple[SubsetLayout, ...]
    summary: DatasetSummary
    epochs: int
    accumulation: int

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of one expert, rounded up as the trainer does; None if a video's length is unknown."""
        batches = self.summary.batches_per_epoch
        return None if batches is None else -(-batches // self.accumulation)

    @property
    def steps(self) -> int | None:
        """Optimizer steps of one expert in total."""
        return None if self.steps_per_epoch is None else self.steps_per_epoch * self.epochs


def layout_of(inventory: Inventory, *, epochs: int, accumulation: int, image_to_video: bool) -> Layout:
    """The layout of a training with this inventory."""
    counted = summary(inventory, image_to_video=image_to_video)
    return Layout(
        subsets=tuple(
            SubsetLayout(subset=found.subset, summary=each, files=trained_files(found))
            for found, each in zip(inventory.subsets, counted.subsets, strict=True)
        ),
        summary=counted,
        epochs=epochs,
        accumulation=accumulation,
    )


def is_enlarged(one: TrainedFile) -> bool:
    return one.crop is not None and one.crop.is_enlarged


def is_cropped(one: TrainedFile) -> bool:
    return one.crop is not None and one.crop.share_lost >= NOTABLE_LOSS

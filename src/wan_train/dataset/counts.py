"""What an inventory amounts to: items, buckets, batches, and the bytes of the caches to come."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from wan_train.dataset.buckets import batches_per_epoch, rounded_frames
from wan_train.dataset.model import Inventory, MediaKind, SubsetInventory
from wan_train.dataset.trained import trained

_LATENT_CHANNELS = 16
_MASK_CHANNELS = 4
_VAE_STRIDE = 8
_BYTES_PER_VALUE = 2
_TEXT_WIDTH = 4096
_MOST_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Items of one trained size; width and height in pixels, `frames` 1 for pictures, `items` before
    repeats.
    """

    width: int
    height: int
    frames: int
    items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetSummary:
    """One dataset. `items` counts training items (a video may give several), before repeats; None if
    unknown.
    """

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
    """The whole dataset.

    `items_with_repeats` and `batches_per_epoch` are None when the length of some video is unknown;
    `latent_bytes` covers the known items, `text_bytes` is an estimate from the captions' lengths.
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
    """Count what will be trained, by the trainer's own arithmetic; `image_to_video` only enlarges the
    latents.
    """
    subsets = tuple(_subset(found) for found in inventory.subsets)
    items = [subset.items for subset in subsets]
    batches = [subset.batches_per_epoch for subset in subsets]
    captioned = [item for found in inventory.subsets for item in found.items if item.caption_path is not None]
    return DatasetSummary(
        subsets=subsets,
        files=sum(subset.files for subset in subsets),
        captions=len(captioned),
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
    """Bytes of one latent cache: 16 channels of bfloat16, space / 8, time (frames - 1) / 4 + 1; 960x960 is
    0.46 MB.

    Image-to-video adds the first frame's latents and a 4 channel mask.
    Source: musubi-tuner wan_cache_latents.py encode_and_save_batch, both versions.
    """
    positions = (width // _VAE_STRIDE) * (height // _VAE_STRIDE) * ((rounded_frames(frames) - 1) // 4 + 1)
    channels = _LATENT_CHANNELS + (_LATENT_CHANNELS + _MASK_CHANNELS if image_to_video else 0)
    return channels * positions * _BYTES_PER_VALUE


def text_bytes(caption_characters: int) -> int:
    """Bytes of one text-encoder cache, estimated: 4096 values of bfloat16 for each of at most 512 tokens.

    Three characters a token plus the end mark; English has about four, so this errs upwards.
    """
    tokens = min(_MOST_TOKENS, caption_characters // 3 + 2)
    return tokens * _TEXT_WIDTH * _BYTES_PER_VALUE


def _subset(found: SubsetInventory) -> SubsetSummary:
    subset = found.subset
    each = trained(found)
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

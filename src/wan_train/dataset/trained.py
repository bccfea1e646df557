"""What becomes of each item: the size it is trained at, what is cut away, and the clips taken from a video."""

from __future__ import annotations

import os
from dataclasses import dataclass

from wan_train.dataset.buckets import bucket_for, clips, frames_at_target_rate
from wan_train.dataset.crops import Crop, crop_for
from wan_train.dataset.model import Item, Subset, SubsetInventory

_PICTURE = ((0, 1),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One file of a dataset and what is trained of it.

    `crop` is None where the file's size is unknown, or where nothing of it would be left. `cuts` are the (first frame,
    frame count) of each training item, (0, 1) for a picture; empty where the length is unknown, the video too short,
    or where an earlier file's caches have the same names. `bucket` is the (width, height) by which the trainer sorts
    it into batches: that of the crop, except for clips without buckets.
    """

    item: Item
    crop: Crop | None
    cuts: tuple[tuple[int, int], ...]
    bucket: tuple[int, int] | None
    is_known: bool

    @property
    def keys(self) -> tuple[tuple[int, int, int], ...]:
        """The (width, height, frames) of each training item: items of one key share batches."""
        if self.bucket is None:
            return ()
        return tuple((*self.bucket, frames) for _, frames in self.cuts)


def trained(found: SubsetInventory) -> tuple[Trained, ...]:
    """What is trained of every item, in the order of the inventory and by the trainer's own arithmetic.

    Of files whose caches would share a name the first counts, since training sees one of them only.
    """
    names: set[tuple[str | int, ...]] = set()
    return tuple(_one(item, found.subset, names) for item in found.items)


def _one(item: Item, subset: Subset, names: set[tuple[str | int, ...]]) -> Trained:
    if item.width is None or item.height is None:
        return Trained(item=item, crop=None, cuts=(), bucket=None, is_known=False)
    stored = (item.width, item.height)
    stem = os.path.splitext(item.path.name)[0]  # noqa: PTH122 - the trainer's own rule for stems
    if subset.video is None:
        size = bucket = _configured(stored, subset)
        cuts = _fresh(names, stem, stored, _PICTURE)
    else:
        # A clip is scaled with buckets on, then sorted by that size under the configured rule.
        size = bucket_for(*stored, resolution=subset.resolution)
        bucket = _configured(size, subset)
        kept = 0 if item.frames is None else frames_at_target_rate(item.frames, subset.video)
        cuts = _fresh(names, stem, size, clips(kept, subset.video))
    return Trained(
        item=item,
        crop=crop_for(stored, size) if min(size) > 0 else None,
        cuts=cuts,
        bucket=bucket,
        is_known=subset.video is None or item.frames is not None,
    )


def _configured(size: tuple[int, int], subset: Subset) -> tuple[int, int]:
    return bucket_for(
        *size,
        resolution=subset.resolution,
        enable_bucket=subset.enable_bucket,
        bucket_no_upscale=subset.bucket_no_upscale,
    )


def _fresh(
    names: set[tuple[str | int, ...]], stem: str, size: tuple[int, int], cuts: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, int], ...]:
    """The cuts whose caches no earlier file names; all of them are taken from now on."""
    fresh = tuple(cut for cut in cuts if (stem, *cut, *size) not in names)
    names.update((stem, *cut, *size) for cut in fresh)
    return fresh

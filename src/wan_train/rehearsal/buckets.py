"""Bucket arithmetic: which resolution an item is trained at, and how a picture is brought to it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from PIL import Image

STEP = 16
"""Bucket sides are multiples of this many pixels: 8 for the VAE times 2 for the DiT's patches."""

Size = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketSelector:
    """Chooses the bucket of a picture size; sizes are (width, height) in pixels.

    The rules are musubi-tuner's: widths from half the side of the square of equal area up to that side,
    heights as large
    as the area allows, both orientations, nearest aspect ratio wins and the narrower bucket on a tie.
    """

    resolution: Size
    enable_bucket: bool = True
    no_upscale: bool = False
    buckets: tuple[Size, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "buckets", self._all())

    def _all(self) -> tuple[Size, ...]:
        if not self.enable_bucket:
            return (self.resolution,)
        area = self.resolution[0] * self.resolution[1]
        side = math.isqrt(area)
        shortest = max(_floor(side // 2), STEP)
        found: set[Size] = set()
        for short in range(shortest, side + STEP, STEP):
            long = _floor(area // short)
            found |= {(short, long), (long, short)}
        return tuple(sorted(size for size in found if min(size) > 0))

    def select(self, size: Size) -> Size:
        """The bucket of a picture of this size.

        Raises:
            ValueError: upscaling is off and the picture is smaller than the smallest side.
        """
        width, height = size
        if self.enable_bucket and self.no_upscale and width * height <= self.resolution[0] * self.resolution[1]:
            kept = (_floor(width), _floor(height))
            if min(kept) == 0:
                raise ValueError(f"Image or video size too small: {width}x{height}, a side is below {STEP} pixels")
            return kept
        return min(self.buckets, key=lambda bucket: abs(bucket[0] / bucket[1] - width / height))


def fit(picture: Image.Image, bucket: Size) -> Image.Image:
    """The picture scaled to cover the bucket, its middle cut out."""
    if picture.size == bucket:
        return picture
    scale = max(bucket[0] / picture.width, bucket[1] / picture.height)
    size = (int(picture.width * scale + 0.5), int(picture.height * scale + 0.5))
    scaled = picture.resize(size, Image.Resampling.LANCZOS if scale > 1 else Image.Resampling.BOX)
    left, top = (size[0] - bucket[0]) // 2, (size[1] - bucket[1]) // 2
    return scaled.crop((left, top, left + bucket[0], top + bucket[1]))


def _floor(length: int) -> int:
    return length - length % STEP

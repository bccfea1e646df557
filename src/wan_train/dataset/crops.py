"""How a picture is brought to the size of its bucket: scaled until it covers it, then cut evenly on both sides."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """What is left of a picture. All sizes are (width, height) in pixels.

    `stored` is the picture, `scaled` what it is resized to, `bucket` the piece of `scaled` that is trained; `left` and
    `top` are where that piece begins, in pixels of `scaled`.
    """

    stored: tuple[int, int]
    scaled: tuple[int, int]
    bucket: tuple[int, int]
    left: int
    top: int

    @property
    def right(self) -> int:
        """Pixels of `scaled` cut away on the right, at most one more than on the left."""
        return self.scaled[0] - self.bucket[0] - self.left

    @property
    def bottom(self) -> int:
        """Pixels of `scaled` cut away below, at most one more than above."""
        return self.scaled[1] - self.bucket[1] - self.top

    @property
    def scale(self) -> float:
        """How often larger the picture is made; below 1 it is made smaller."""
        return max(self.bucket[0] / self.stored[0], self.bucket[1] / self.stored[1])

    @property
    def is_enlarged(self) -> bool:
        """Whether pixels are invented."""
        return self.scale > 1

    @property
    def share_lost(self) -> float:
        """The part of the picture's area that is cut away, 0 to 1."""
        return 1 - (self.bucket[0] * self.bucket[1]) / (self.scaled[0] * self.scaled[1])

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """The trained piece as (left, top, width, height) in pixels of the stored picture."""
        across, down = self.stored[0] / self.scaled[0], self.stored[1] / self.scaled[1]
        return self.left * across, self.top * down, self.bucket[0] * across, self.bucket[1] * down


def crop_for(stored: tuple[int, int], bucket: tuple[int, int]) -> Crop:
    """The crop of a picture of size `stored` for a bucket, both (width, height) in pixels and at least 1.

    Source: musubi-tuner resize_image_to_bucket (d0a1930 dataset/image_video_dataset.py, v0.3.4
    dataset/media_utils.py); floats are multiplied and rounded in the same order as there.
    """
    scale = max(bucket[0] / stored[0], bucket[1] / stored[1])
    scaled = (int(stored[0] * scale + 0.5), int(stored[1] * scale + 0.5))
    return Crop(
        stored=stored,
        scaled=scaled,
        bucket=bucket,
        left=(scaled[0] - bucket[0]) // 2,
        top=(scaled[1] - bucket[1]) // 2,
    )

"""Bucket arithmetic: the size of each picture, its crop, the clips of a video, the number of batches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from wan_train.dataset.model import FrameExtraction, Subset, VideoSettings

RESOLUTION_STEP = 16
"""Pixels; width and height of a bucket are multiples of it (VAE stride 8 x patch 2)."""

TARGET_FPS = 16.0
"""Frames per second of Wan 2.2 A14B; videos with `source_fps` are thinned to it."""

SMALLEST_RESOLUTION = (2 * RESOLUTION_STEP, 2 * RESOLUTION_STEP)
"""Below this area the trainer's table of buckets starts at width 0 and divides by it."""


def is_resolution_possible(resolution: tuple[int, int], *, enable_bucket: bool) -> bool:
    """Whether the trainer can build buckets for (width, height)."""
    width, height = resolution
    if width <= 0 or height <= 0:
        return False
    if not enable_bucket:
        # The only bucket is the resolution itself, and the transformer takes only whole patches.
        return width % RESOLUTION_STEP == 0 and height % RESOLUTION_STEP == 0
    return math.isqrt(width * height) >= SMALLEST_RESOLUTION[0]


@lru_cache(maxsize=64)
def candidates(resolution: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """All bucket sizes (width, height) for a resolution, ascending.

    With s as the side of a square of the same area, widths run from s/2 (rounded down) to s (rounded up) in steps
    of 16. Each gets the greatest height within the area. Every size also exists turned by 90 degrees.
    Source: musubi-tuner BucketSelector.__init__ (d0a1930 dataset/image_video_dataset.py, v0.3.4
    dataset/bucket.py).
    """
    area = resolution[0] * resolution[1]
    side = math.isqrt(area)
    sizes = set()
    for width in range(_whole_steps(side // 2), side + RESOLUTION_STEP, RESOLUTION_STEP):
        height = _whole_steps(area // width)
        sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


@lru_cache(maxsize=65536)
def bucket_for(
    width: int, height: int, *, resolution: tuple[int, int], enable_bucket: bool = True, bucket_no_upscale: bool = False
) -> tuple[int, int]:
    """The size (width, height) in pixels to which the trainer scales and crops a picture of width x height.

    Without buckets it is the resolution. With `bucket_no_upscale`, a picture whose area is not above the resolution's
    keeps its size, rounded down to multiples of 16 (0 for a side under 16 pixels, which the trainer cannot handle).
    Otherwise it is the candidate with the nearest aspect ratio; the first one wins a tie.
    Source: musubi-tuner BucketSelector.get_bucket_resolution at d0a1930 and v0.3.4.
    """
    if not enable_bucket:
        return resolution
    if bucket_no_upscale and width * height <= resolution[0] * resolution[1]:
        return _whole_steps(width), _whole_steps(height)
    aspect = width / height
    return min(candidates(resolution), key=lambda size: abs(size[0] / size[1] - aspect))


def bucket_of(subset: Subset, size: tuple[int, int]) -> tuple[int, int]:
    """`bucket_for` with the settings of a dataset."""
    return bucket_for(
        *size,
        resolution=subset.resolution,
        enable_bucket=subset.enable_bucket,
        bucket_no_upscale=subset.bucket_no_upscale,
    )


def batches_per_epoch(buckets: Iterable[Hashable], *, batch_size: int, num_repeats: int) -> int:
    """Batches in one epoch: ceil(items * repeats / batch size), summed over buckets. `buckets` has one entry per item.

    Items are repeated inside their bucket before it is cut into batches, so a bucket's last batch may be short.
    Source: musubi-tuner ImageDataset.prepare_for_training and BucketBatchManager.__init__ at both versions.
    """
    return sum(-(-count * num_repeats // batch_size) for count in Counter(buckets).values())


def rounded_frames(frames: int) -> int:
    """The greatest N*4+1 not above `frames`: the VAE packs four frames into one after the first."""
    return (frames - 1) // 4 * 4 + 1


def frames_at_target_rate(frames: int, settings: VideoSettings) -> int:
    """Number of a video's frames that the trainer keeps when it thins them from `source_fps` to 16 fps.

    A source slower than 16 fps gets no extra frames. Its frame numbers are spread instead, so `head` ends earlier.
    Source: musubi-tuner load_video at both versions; sums are accumulated in the same order, so rounding agrees.
    """
    if settings.source_fps is None:
        return frames
    end = max(settings.target_frames) if _extraction(settings) is FrameExtraction.HEAD else None
    delta = TARGET_FPS / settings.source_fps
    position, previous, kept = 0.0, -1, 0
    for _ in range(frames):
        index = int(position)
        position += delta
        if end is not None and index >= end:
            break
        if index != previous:
            previous = index
            kept += 1
    return kept


def frames_read(settings: VideoSettings) -> int | None:
    """Most frames that the trainer decodes from a file before it stops reading; None if it reads to the end.

    With `head` it reads one frame more than it uses. Source: musubi-tuner load_video at both versions.
    """
    if _extraction(settings) is not FrameExtraction.HEAD:
        return None
    wanted = max(rounded_frames(target) for target in settings.target_frames)
    if settings.source_fps is None:
        return wanted + 1
    return math.ceil((wanted + 1) * settings.source_fps / TARGET_FPS) + 1


def clips(frames: int, settings: VideoSettings) -> tuple[tuple[int, int], ...]:
    """The (first frame, frame count) of every training item cut from a video; empty if the video is too short.

    `frames` counts the frames after thinning to the target rate.
    Source: musubi-tuner VideoDataset.retrieve_latent_cache_batches at both versions.
    """
    targets = sorted({rounded_frames(target) for target in settings.target_frames})
    fitting = [target for target in targets if target <= frames]
    match _extraction(settings):
        case FrameExtraction.HEAD:
            cuts = [(0, target) for target in fitting]
        case FrameExtraction.CHUNK:
            cuts = [(start, target) for target in fitting for start in range(0, frames - target + 1, target)]
        case FrameExtraction.SLIDE:
            stride = settings.frame_stride
            cuts = [(start, target) for target in fitting for start in range(0, frames - target + 1, stride)]
        case FrameExtraction.UNIFORM:
            cuts = [
                (start, target)
                for target in fitting
                for start in _evenly(last=frames - target, count=settings.frame_sample)
            ]
        case FrameExtraction.FULL:
            target = rounded_frames(min(frames, settings.max_frames))
            cuts = [(0, target)] if target > 0 else []
    # Cuts with the same start and length share one cache file, so they are one item.
    return tuple(sorted(set(cuts)))


def _extraction(settings: VideoSettings) -> FrameExtraction:
    """The effective mode: the trainer treats `uniform` with one sample as `head`, also while it reads frames."""
    if settings.frame_extraction is FrameExtraction.UNIFORM and settings.frame_sample == 1:
        return FrameExtraction.HEAD
    return settings.frame_extraction


def _evenly(*, last: int, count: int) -> list[int]:
    if count == 1:
        return [0]
    step = last / (count - 1)
    return [int(position * step) for position in range(count - 1)] + [last]


def _whole_steps(pixels: int) -> int:
    return pixels - pixels % RESOLUTION_STEP


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """The trained part of a picture. All sizes are (width, height) in pixels.

    `stored` is the picture's size, `scaled` the size it is resized to, and `bucket` the size of the part of `scaled`
    that is trained. `left` and `top` are the offset of that part in pixels of `scaled`.
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
        """The scale factor; below 1 the picture is made smaller."""
        return max(self.bucket[0] / self.stored[0], self.bucket[1] / self.stored[1])

    @property
    def is_enlarged(self) -> bool:
        """Whether the picture is made larger, which invents pixels."""
        return self.scale > 1

    @property
    def share_lost(self) -> float:
        """The fraction of the picture's area that is cropped, 0 to 1."""
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
        stored=stored, scaled=scaled, bucket=bucket, left=(scaled[0] - bucket[0]) // 2, top=(scaled[1] - bucket[1]) // 2
    )

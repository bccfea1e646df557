from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_train.dataset.buckets import (
    batches_per_epoch,
    bucket_for,
    candidates,
    clips,
    frames_at_target_rate,
    is_resolution_possible,
    rounded_frames,
)
from wan_train.dataset.model import FrameExtraction, VideoSettings

sides = st.integers(1, 8000)
resolutions = st.tuples(st.integers(32, 2000), st.integers(32, 2000))


def settings(
    extraction: FrameExtraction = FrameExtraction.HEAD,
    *,
    targets: tuple[int, ...] = (1, 13, 25),
    stride: int = 10,
    sample: int = 4,
    most: int = 31,
    fps: float | None = None,
) -> VideoSettings:
    return VideoSettings(
        target_frames=targets,
        frame_extraction=extraction,
        frame_stride=stride,
        frame_sample=sample,
        max_frames=most,
        source_fps=fps,
    )


# Values taken from the trainer's own BucketSelector at d0a1930 and v0.3.4.
@pytest.mark.parametrize(
    ("size", "resolution", "bucket"),
    [
        ((1024, 1024), (960, 960), (960, 960)),
        ((1920, 1080), (960, 960), (1280, 720)),
        ((1080, 1920), (960, 960), (720, 1280)),
        ((6000, 100), (960, 960), (1920, 480)),
        ((100, 6000), (960, 960), (480, 1920)),
        ((1000, 667), (960, 544), (880, 592)),
        ((33, 32), (32, 32), (32, 32)),
    ],
)
def test_a_picture_goes_into_the_bucket_the_trainer_chooses(
    size: tuple[int, int], resolution: tuple[int, int], bucket: tuple[int, int]
) -> None:
    assert bucket_for(*size, resolution=resolution) == bucket


def test_without_buckets_everything_becomes_the_resolution() -> None:
    assert bucket_for(300, 900, resolution=(960, 544), enable_bucket=False, bucket_no_upscale=True) == (960, 544)


def test_no_upscale_keeps_small_pictures_and_scales_large_ones() -> None:
    assert bucket_for(500, 333, resolution=(960, 960), bucket_no_upscale=True) == (496, 320)
    assert bucket_for(2000, 2000, resolution=(960, 960), bucket_no_upscale=True) == (960, 960)
    assert bucket_for(8, 500, resolution=(960, 960), bucket_no_upscale=True) == (0, 496)


@given(width=sides, height=sides, resolution=resolutions)
def test_a_bucket_is_made_of_whole_patches_within_the_area_and_has_the_nearest_shape(
    width: int, height: int, resolution: tuple[int, int]
) -> None:
    if not is_resolution_possible(resolution, enable_bucket=True):
        return
    bucket = bucket_for(width, height, resolution=resolution)
    assert bucket[0] % 16 == bucket[1] % 16 == 0
    assert 0 < bucket[0] * bucket[1] <= (math.isqrt(resolution[0] * resolution[1]) + 16) ** 2
    error = abs(bucket[0] / bucket[1] - width / height)
    assert all(error <= abs(w / h - width / height) for w, h in candidates(resolution))


@given(width=sides, height=sides, resolution=resolutions, factor=st.integers(2, 4))
def test_the_bucket_depends_on_the_shape_only(
    width: int, height: int, resolution: tuple[int, int], factor: int
) -> None:
    if is_resolution_possible(resolution, enable_bucket=True):
        larger = bucket_for(width * factor, height * factor, resolution=resolution)
        assert larger == bucket_for(width, height, resolution=resolution)


@pytest.mark.parametrize(
    ("resolution", "enable_bucket", "possible"),
    [
        ((960, 960), True, True),
        ((31, 32), True, False),
        ((0, 960), True, False),
        ((100, 100), True, True),
        ((100, 100), False, False),
        ((96, 16), False, True),
    ],
)
def test_resolutions_the_trainer_would_die_of_are_known(
    resolution: tuple[int, int], *, enable_bucket: bool, possible: bool
) -> None:
    assert is_resolution_possible(resolution, enable_bucket=enable_bucket) is possible


def test_repeats_are_counted_inside_a_bucket_before_it_is_cut_into_batches() -> None:
    wide, square = (1280, 720), (960, 960)
    assert batches_per_epoch([wide, wide, wide, square], batch_size=1, num_repeats=1) == 4
    assert batches_per_epoch([wide, wide, wide, square], batch_size=2, num_repeats=1) == 3
    assert batches_per_epoch([wide, wide, wide, square], batch_size=4, num_repeats=3) == 4
    assert batches_per_epoch([], batch_size=4, num_repeats=3) == 0


@given(counts=st.lists(st.integers(1, 30), max_size=8), batch_size=st.integers(1, 9), num_repeats=st.integers(1, 5))
def test_batches_hold_all_items_and_none_is_empty(counts: list[int], batch_size: int, num_repeats: int) -> None:
    buckets = [index for index, count in enumerate(counts) for _ in range(count)]
    batches = batches_per_epoch(buckets, batch_size=batch_size, num_repeats=num_repeats)
    items = len(buckets) * num_repeats
    assert math.ceil(items / batch_size) <= batches <= items // batch_size + len(counts)


# The trainer's documented example: a video of 40 frames.
@pytest.mark.parametrize(
    ("extraction", "targets", "cuts"),
    [
        (FrameExtraction.HEAD, (1, 13, 25), {(0, 1), (0, 13), (0, 25)}),
        (FrameExtraction.HEAD, (13, 45), {(0, 13)}),
        (FrameExtraction.CHUNK, (13, 25), {(0, 13), (13, 13), (26, 13), (0, 25)}),
        (FrameExtraction.SLIDE, (13, 25), {(0, 13), (10, 13), (20, 13), (0, 25), (10, 25)}),
        (FrameExtraction.UNIFORM, (1, 25), {(0, 1), (13, 1), (26, 1), (39, 1), (0, 25), (5, 25), (10, 25), (15, 25)}),
        (FrameExtraction.FULL, (1,), {(0, 29)}),
    ],
)
def test_clips_are_cut_as_documented(
    extraction: FrameExtraction, targets: tuple[int, ...], cuts: set[tuple[int, int]]
) -> None:
    assert set(clips(40, settings(extraction, targets=targets))) == cuts


def test_clip_lengths_are_rounded_down_to_what_the_vae_takes() -> None:
    assert [rounded_frames(frames) for frames in (1, 4, 5, 12, 13, 45)] == [1, 1, 5, 9, 13, 45]
    assert clips(30, settings(targets=(24,))) == ((0, 21),)


def test_a_faster_video_is_thinned_to_sixteen_frames_a_second() -> None:
    assert frames_at_target_rate(60, settings(FrameExtraction.FULL)) == 60
    assert frames_at_target_rate(60, settings(FrameExtraction.FULL, fps=30.0)) == 32
    assert frames_at_target_rate(16, settings(FrameExtraction.FULL, fps=16.0)) == 16
    assert frames_at_target_rate(8, settings(FrameExtraction.FULL, fps=8.0)) == 8
    assert frames_at_target_rate(40, settings(FrameExtraction.HEAD, fps=8.0)) == 13


def test_one_uniform_sample_reads_no_further_than_head_does() -> None:
    # Both trainer versions, 61 frames: of a source slower than 16 the frames up to the longest target are read, so
    # 13 of 25 remain.
    slow = settings(FrameExtraction.UNIFORM, sample=1, fps=8.0)
    assert frames_at_target_rate(61, slow) == 13
    assert clips(frames_at_target_rate(61, slow), slow) == ((0, 1), (0, 13))

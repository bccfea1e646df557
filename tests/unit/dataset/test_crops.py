from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_train.dataset.buckets import Crop, bucket_for, crop_for

sides = st.integers(1, 8000)
resolutions = st.tuples(st.integers(32, 2000), st.integers(32, 2000))


@st.composite
def crops(draw: st.DrawFn) -> Crop:
    stored = (draw(sides), draw(sides))
    rule = draw(st.sampled_from([(True, False), (True, True), (False, False)]))
    bucket = bucket_for(*stored, resolution=draw(resolutions), enable_bucket=rule[0], bucket_no_upscale=rule[1])
    return crop_for(stored, (max(16, bucket[0]), max(16, bucket[1])))


# Sizes that the trainer's own resize_image_to_bucket asks for and cuts to, at d0a1930 and v0.3.4.
@pytest.mark.parametrize(
    ("stored", "bucket", "scaled", "cut"),
    [
        ((960, 960), (960, 960), (960, 960), (0, 0, 0, 0)),
        ((1920, 1080), (1280, 720), (1280, 720), (0, 0, 0, 0)),
        ((1600, 1200), (1104, 832), (1109, 832), (2, 0, 3, 0)),
        ((16, 16), (224, 240), (240, 240), (8, 0, 8, 0)),
        ((500, 2600), (480, 1920), (480, 2496), (0, 288, 0, 288)),
    ],
)
def test_a_picture_is_scaled_to_cover_its_bucket_and_cut_evenly(
    stored: tuple[int, int], bucket: tuple[int, int], scaled: tuple[int, int], cut: tuple[int, int, int, int]
) -> None:
    crop = crop_for(stored, bucket)
    assert crop.scaled == scaled
    assert (crop.left, crop.top, crop.right, crop.bottom) == cut


@given(crop=crops())
def test_the_trained_piece_lies_inside_the_picture_and_fills_the_bucket(crop: Crop) -> None:
    assert min(crop.left, crop.top, crop.right, crop.bottom) >= 0
    assert crop.left + crop.bucket[0] + crop.right == crop.scaled[0]
    assert crop.top + crop.bucket[1] + crop.bottom == crop.scaled[1]
    left, top, width, height = crop.frame
    tolerance = 1e-6 * max(crop.stored)
    assert left >= 0
    assert top >= 0
    assert left + width <= crop.stored[0] + tolerance
    assert top + height <= crop.stored[1] + tolerance


@given(crop=crops())
def test_one_side_at_least_is_kept_whole_and_the_other_loses_the_same_on_both_ends(crop: Crop) -> None:
    assert crop.left + crop.right == 0 or crop.top + crop.bottom == 0
    assert crop.right - crop.left in {0, 1}
    assert crop.bottom - crop.top in {0, 1}


@given(crop=crops())
def test_what_is_lost_is_the_area_outside_of_the_frame(crop: Crop) -> None:
    _, _, width, height = crop.frame
    kept = width * height / (crop.stored[0] * crop.stored[1])
    assert 0 <= crop.share_lost < 1
    assert crop.share_lost == pytest.approx(1 - kept, abs=1e-9)


@given(width=st.integers(400, 4000), height=st.integers(400, 4000))
def test_buckets_cost_shapes_between_one_and_three_little(width: int, height: int) -> None:
    if max(width, height) <= 3 * min(width, height):
        crop = crop_for((width, height), bucket_for(width, height, resolution=(960, 960)))
        assert crop.share_lost < 0.05


@given(width=st.integers(16, 3000), height=st.integers(16, 3000))
def test_no_upscale_never_enlarges(width: int, height: int) -> None:
    bucket = bucket_for(width, height, resolution=(960, 960), bucket_no_upscale=True)
    if width * height <= 960 * 960:
        assert not crop_for((width, height), bucket).is_enlarged

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from views.datasets import inventory_of, subset_of
from views.support import shown
from wan_train.dataset.layout import layout_of
from wan_train.dataset.model import FrameExtraction, VideoSettings
from wan_train.views.dataset_tables import settings_of, trained_lines


def test_many_sizes_are_summed_up() -> None:
    sizes = [(960, 300 + 20 * number) for number in range(40)]
    ahead = layout_of(inventory_of(sizes), epochs=1, accumulation=1, image_to_video=False)
    text = shown(trained_lines(ahead, stops=False), 80)
    listed = [int(found[1]) for found in re.finditer(r"^    \d+x\d+ +(\d+) ", text, re.MULTILINE)]
    (rest,) = [line for line in text.splitlines() if "more sizes" in line]
    assert len(listed) == 12
    assert sum(listed) + int(rest.split()[3]) == 40


def test_names_cannot_act_on_the_terminal() -> None:
    ahead = layout_of(
        inventory_of([(9000, 300)], name="\x1b[2J\u202e{}.png"), epochs=1, accumulation=1, image_to_video=False
    )
    text = shown(trained_lines(ahead, stops=False), 120)
    assert "\\x1b[2J\\u202e" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("is_video", [False, True])
def test_only_pictures_are_said_to_stay_small(is_video: bool) -> None:
    """The trainer enlarges clips whatever bucket_no_upscale says."""
    video = VideoSettings(
        target_frames=(1,),
        frame_extraction=FrameExtraction.FULL,
        frame_stride=1,
        frame_sample=1,
        max_frames=81,
        source_fps=None,
    )
    subset = replace(subset_of(video=video if is_video else None), bucket_no_upscale=True)
    assert ("nothing is enlarged" in settings_of(subset)) is not is_video

"""Our own crops and clips against what the trainer really cuts."""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from musubi.trainer import Trainer, draw_dataset, text_of
from wan_train.dataset.buckets import Crop, bucket_for, clips, crop_for, frames_at_target_rate
from wan_train.dataset.config import load
from wan_train.dataset.layout import layout_of
from wan_train.dataset.model import FrameExtraction, VideoSettings
from wan_train.dataset.scan import scan
from wan_train.engine.tensors import read_header

_RESOLUTIONS = [(256, 256), (320, 176), (100, 100), (33, 47)]
_FILTER = 3
"""Pixels to each side that Lanczos weighs."""


def _sizes() -> list[tuple[int, int]]:
    dice = random.Random(7)
    some = [(dice.randrange(16, 900), dice.randrange(16, 900)) for _ in range(120)]
    # Around every multiple of 16, where roundings part; the largest enlargements; shapes beyond every bucket.
    some += [(side + off, 256 + other) for side in (240, 256, 272) for off in (-1, 0, 1) for other in (-1, 0, 1)]
    return [*some, (16, 16), (17, 31), (40, 900), (900, 40), (255, 257), (333, 777), (800, 600), (1280, 720)]


def _cases() -> list[tuple[tuple[int, int], tuple[int, int]]]:
    found = {
        (
            size,
            bucket_for(*size, resolution=resolution, enable_bucket=enable, bucket_no_upscale=no_upscale),
        )
        for size in _sizes()
        for resolution in _RESOLUTIONS
        for enable, no_upscale in ((True, False), (True, True), (False, False))
    }
    return sorted(found)


def _misses(crop: Crop, answer: dict[str, Any]) -> list[str]:
    missed = []
    if list(crop.scaled) != answer["scaled"]:
        missed.append(f"scaled to {answer['scaled']}")
    if list(crop.bucket) != answer["size"]:
        missed.append(f"cut to {answer['size']}")
    for side, (begin, values) in enumerate(((crop.left, answer["columns"]), (crop.top, answer["rows"]))):
        count, per_pixel = crop.bucket[side], crop.stored[side] / crop.scaled[side]
        for index, value in zip((0, count // 2, count - 1), values, strict=True):
            # The centre of a pixel of the scaled picture, in coordinates of the stored one. Near an edge the filter of
            # an enlargement has fewer pixels to weigh.
            expected = (index + begin + 0.5) * per_pixel - 0.5
            near_edge = crop.is_enlarged and not _FILTER <= expected <= crop.stored[side] - 1 - _FILTER
            allowed = 0.45 * per_pixel + (0.5 if near_edge else 0.0)
            if abs(value - expected) > allowed:
                missed.append(f"pixel {index} of side {side} came from {value:.2f}, not {expected:.2f}")
    return missed


def test_every_picture_is_cut_where_we_say(trainer: Trainer) -> None:
    cases = _cases()
    asked = [{"stored": stored, "bucket": bucket} for stored, bucket in cases]

    answers = trainer.ask("dump_crops.py", stdin=json.dumps(asked))

    crops = [crop_for(stored, bucket) for stored, bucket in cases]
    different = [
        (crop, missed) for crop, answer in zip(crops, answers, strict=True) if (missed := _misses(crop, answer))
    ]
    assert different == []
    assert len(cases) > 1000
    assert sum(crop.is_enlarged for crop in crops) > 100
    assert sum(crop.left > 0 for crop in crops) > 100
    assert sum(crop.left != crop.right for crop in crops) > 100


def test_the_trainer_caches_what_the_outlook_shows(trainer: Trainer, tmp_path: Path) -> None:
    sizes = ((96, 64), (64, 64), (60, 101), (151, 110), (20, 20), (400, 40), (33, 95), (641, 479))
    dataset = draw_dataset(tmp_path, sizes=sizes)
    done = trainer.cache_latents(dataset)
    assert done.returncode == 0, text_of(done)

    ahead = layout_of(scan(load(dataset.config)), epochs=1, accumulation=1, image_to_video=False)
    expected = {
        f"{one.item.path.stem}_{one.item.width:04d}x{one.item.height:04d}_wan.safetensors": {
            f"latents_{frames}x{height // 8}x{width // 8}_bfloat16" for width, height, frames in one.keys
        }
        for one in ahead.subsets[0].files
    }
    assert {name: set(read_header(dataset.cache / name).tensors) for name in dataset.caches()} == expected
    assert len(expected) == len(sizes)


@pytest.mark.parametrize("frames", [1, 4, 26, 61])
def test_every_clip_is_cut_where_we_say(trainer: Trainer, tmp_path: Path, frames: int) -> None:
    video = tmp_path / "video"
    video.mkdir()
    for number in range(frames):
        Image.new("RGB", (70, 45), (number, 0, 0)).save(video / f"{number:03d}.png")
    jsonl = tmp_path / "videos.jsonl"
    jsonl.write_text(json.dumps({"video_path": str(video), "caption": "red"}), encoding="utf-8")
    settings = [
        VideoSettings(
            target_frames=targets,
            frame_extraction=extraction,
            frame_stride=stride,
            frame_sample=sample,
            max_frames=most,
            source_fps=fps,
        )
        for targets in ((1, 13, 25), (6,))
        for extraction, stride, sample, most in (
            (FrameExtraction.HEAD, 1, 1, 129),
            (FrameExtraction.CHUNK, 1, 1, 129),
            *((FrameExtraction.SLIDE, stride, 1, 129) for stride in (1, 7)),
            *((FrameExtraction.UNIFORM, 1, sample, 129) for sample in (1, 2, 3, 5)),
            *((FrameExtraction.FULL, 1, 1, most) for most in (20, 129)),
        )
        for fps in (None, 24.0, 29.97, 8.0)
    ]
    cases = [
        {
            "resolution": (64, 64),
            "enable_bucket": enable,
            "bucket_no_upscale": False,
            "target_frames": one.target_frames,
            "frame_extraction": one.frame_extraction,
            "frame_stride": one.frame_stride,
            "frame_sample": one.frame_sample,
            "max_frames": one.max_frames,
            "source_fps": one.source_fps,
        }
        for one, enable in product(settings, (True, False))
    ]

    answers = trainer.ask("dump_clips.py", stdin=json.dumps({"jsonl": str(jsonl), "cases": cases}))

    size = bucket_for(70, 45, resolution=(64, 64))
    ours = [
        [[*cut, *size] for cut in clips(frames_at_target_rate(frames, one), one)]
        for one, _ in product(settings, (True, False))
    ]
    different = [
        (case, theirs, mine) for case, theirs, mine in zip(cases, answers, ours, strict=True) if theirs != mine
    ]
    assert different == []

"""Our own bucket arithmetic against the trainer's BucketSelector."""

from __future__ import annotations

import json
import random

from musubi.trainer import Trainer
from wan_train.dataset.buckets import bucket_for, is_resolution_possible

RESOLUTIONS = [
    (960, 960),
    (512, 512),
    (1280, 720),
    (480, 832),
    (256, 256),
    (64, 64),
    (100, 100),
    (33, 47),
    (32, 32),
]


def test_every_size_gets_the_trainers_bucket(trainer: Trainer) -> None:
    dice = random.Random(5)
    sizes = [(dice.randrange(16, 4096), dice.randrange(16, 4096)) for _ in range(200)]
    sizes += [(side, side) for side in (15, 16, 17, 64, 960, 961)] + [
        (64, 4096),
        (4096, 64),
        (1, 9999),
        (1920, 1080),
    ]
    sizes += [(dice.randrange(16, 256), dice.randrange(16, 256)) for _ in range(100)]
    cases = [
        {"resolution": resolution, "enable_bucket": enable, "bucket_no_upscale": no_upscale, "sizes": sizes}
        for resolution in RESOLUTIONS
        for enable in (True, False)
        for no_upscale in (True, False)
    ]

    answers = trainer.ask("dump_buckets.py", stdin=json.dumps(cases))

    different = [
        (case["resolution"], case["enable_bucket"], case["bucket_no_upscale"], size, tuple(theirs), ours)
        for case, answer in zip(cases, answers, strict=True)
        for size, theirs in zip(sizes, answer, strict=True)
        if (
            ours := bucket_for(
                *size,
                resolution=case["resolution"],
                enable_bucket=case["enable_bucket"],
                bucket_no_upscale=case["bucket_no_upscale"],
            )
        )
        != tuple(theirs)
    ]
    assert different == []


def test_resolutions_too_small_for_the_trainer_are_the_ones_we_refuse(trainer: Trainer) -> None:
    resolutions = [(side, side) for side in range(1, 80)] + [
        (16, 4096),
        (4096, 16),
        (8, 100),
        (31, 33),
        (32, 31),
    ]
    cases = [
        {"resolution": resolution, "enable_bucket": True, "bucket_no_upscale": False, "sizes": [(640, 480)]}
        for resolution in resolutions
    ]

    answers = trainer.ask("dump_buckets.py", stdin=json.dumps(cases))

    different = [
        (resolution, answer, possible)
        for resolution, answer in zip(resolutions, answers, strict=True)
        if (possible := is_resolution_possible(resolution, enable_bucket=True)) != (answer is not None)
    ]
    assert different == []

"""Answers which clips the trainer's own VideoDataset cuts.

JSON in on stdin: {"jsonl": a file of one video, "cases": a list of the settings of a [[datasets]] entry}. JSON out, on
the last line: for each a sorted list of [first frame, frame count, width, height]. Runs in the trainer's environment.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from musubi_tuner.dataset import image_video_dataset as datasets

asked = json.load(sys.stdin)


def answer(settings: dict[str, Any]) -> list[list[int]]:
    dataset = datasets.VideoDataset(
        caption_extension=None,
        batch_size=1,
        num_repeats=1,
        video_jsonl_file=asked["jsonl"],
        cache_directory="unused",
        architecture=datasets.ARCHITECTURE_WAN,
        **{**settings, "resolution": tuple(settings["resolution"])},
    )
    cut = set()
    for _, batch in dataset.retrieve_latent_cache_batches(1):
        for item in batch:
            position = re.search(r"_(\d+)-(\d+)(\.\w+)?$", item.item_key)
            assert position is not None, item.item_key
            frames, height, width = item.content.shape[:3]
            cut.add((int(position[1]), frames, width, height))
    return [list(clip) for clip in sorted(cut)]


sys.stdout.write(f"\n{json.dumps([answer(case) for case in asked['cases']])}\n")

"""Answers which bucket the trainer's own BucketSelector gives each picture size.

JSON in on stdin: a list of {"resolution", "enable_bucket", "bucket_no_upscale", "sizes"}. JSON out, on the
last line: for each a list of (width, height), or null where the trainer cannot build its buckets. Runs in the
trainer's environment.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from musubi_tuner.dataset import image_video_dataset as datasets


def answer(case: dict[str, Any]) -> list[list[int]] | None:
    flags = (case["enable_bucket"], case["bucket_no_upscale"])
    try:
        selector = datasets.BucketSelector(tuple(case["resolution"]), *flags, datasets.ARCHITECTURE_WAN)
    except (ZeroDivisionError, ValueError):
        return None
    return [list(map(int, selector.get_bucket_resolution(tuple(size)))) for size in case["sizes"]]


sys.stdout.write(f"\n{json.dumps([answer(case) for case in json.load(sys.stdin)])}\n")

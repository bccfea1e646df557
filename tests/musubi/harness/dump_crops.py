"""Answers what the trainer's own resize_image_to_bucket makes of each picture size.

JSON in on stdin: a list of {"stored": [width, height], "bucket": [width, height]}. JSON out, on the last line, for
each: "scaled", the size it asked its image libraries for; "size", what came back; "columns" and "rows", the coordinate
in the stored picture of the first, the middle and the last pixel of what came back. Runs in the trainer's environment.

The pictures are ramps whose values are the coordinates of their pixels, so what is left of them tells where it lay.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from musubi_tuner.dataset import image_video_dataset as datasets
from PIL import Image

resize_image_to_bucket = datasets.resize_image_to_bucket
# At v0.3.4 the function lives in a module of its own, which holds the names that it looks up.
home = sys.modules[resize_image_to_bucket.__module__]
asked: list[tuple[int, int]] = []


class WatchedCv2:
    """cv2 as the trainer sees it, with the sizes noted."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cv2, name)

    def __init__(self, cv2: Any) -> None:
        self._cv2 = cv2

    def resize(self, image: Any, size: tuple[int, int], **options: Any) -> Any:
        asked.append(size)
        return self._cv2.resize(image, size, **options)


class WatchedImage(Image.Image):
    def resize(self, size: tuple[int, int], *arguments: Any, **options: Any) -> Image.Image:
        asked.append(size)
        return super().resize(size, *arguments, **options)


def watched(array: Any) -> Image.Image:
    image = Image.fromarray(array)
    image.__class__ = WatchedImage
    return image


def three(line: Any) -> list[float]:
    return [float(line[0]), float(line[len(line) // 2]), float(line[-1])]


def answer(case: dict[str, Any]) -> dict[str, Any]:
    width, height = case["stored"]
    across = np.ascontiguousarray(np.broadcast_to(np.arange(width, dtype=np.float32), (height, width)))
    down = np.ascontiguousarray(np.broadcast_to(np.arange(height, dtype=np.float32)[:, None], (height, width)))
    asked.clear()
    # Pictures come to it as Pillow images, the frames of clips in folders as arrays.
    left = resize_image_to_bucket(watched(across), tuple(case["bucket"]))
    top = resize_image_to_bucket(down, tuple(case["bucket"]))
    sizes = {tuple(size) for size in asked} or {(width, height)}
    assert len(sizes) == 1, sizes
    return {
        "scaled": [int(side) for side in sizes.pop()],
        "size": [left.shape[1], left.shape[0]],
        "columns": three(left[left.shape[0] // 2]),
        "rows": three(top[:, top.shape[1] // 2]),
    }


home.cv2 = WatchedCv2(home.cv2)
sys.stdout.write(f"\n{json.dumps([answer(case) for case in json.load(sys.stdin)])}\n")

"""`source_fps` in a dataset.toml, where all clips of a dataset have one speed: nothing is encoded anew for it."""

from __future__ import annotations

import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
import tomlkit.exceptions

from wan_train.dataset import video
from wan_train.dataset.buckets import TARGET_FPS
from wan_train.dataset.check import Check
from wan_train.dataset.clip_checks import is_same_speed
from wan_train.dataset.model import ProblemKind, SubsetInventory


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """The speed of each dataset that has one and is not read at it: frames per second by its index in the file.

    `clips` are those of these datasets.
    """

    by_index: dict[int, float]
    clips: frozenset[Path]

    @property
    def what(self) -> str:
        return ", ".join(f"source_fps = {fps} in datasets[{index}]" for index, fps in self.by_index.items())


def one_speed(check: Check) -> Speeds:
    """The datasets for which a `source_fps` mends the speed of every clip."""
    wrong = {each.path for each in check.problems if each.kind is ProblemKind.FRAME_RATE}
    found = check.inventory.subsets if check.inventory is not None else ()
    by_index: dict[int, float] = {}
    clips: set[Path] = set()
    for each in found:
        paths = {item.path for item in each.items}
        speed = _speed_of(each) if each.subset.video is not None and paths & wrong else None
        if speed is not None:
            by_index[each.subset.index] = speed
            clips |= paths
    return Speeds(by_index=by_index, clips=frozenset(clips))


def _speed_of(found: SubsetInventory) -> float | None:
    speeds: list[float] = []
    for item in found.items:
        clip = video.read_clip(item.path)
        if not isinstance(clip, video.Clip) or clip.fps is None or clip.is_variable:
            return None
        speeds.append(clip.fps)
    fps = float(f"{Counter(speeds).most_common(1)[0][0]:.5g}")
    # The trainer leaves frames out and makes none up.
    is_mended = fps >= TARGET_FPS and all(is_same_speed(each, fps) for each in speeds)
    return fps if is_mended else None


def rewritten(text: str, speeds: Speeds) -> str | None:
    """The dataset.toml with its comments and these speeds; None where it cannot be changed without other changes."""
    try:
        document = tomlkit.parse(text)
        expected = tomllib.loads(text)
        for index, fps in speeds.by_index.items():
            entries: Any = document["datasets"]
            entries[index]["source_fps"] = fps
            expected["datasets"][index]["source_fps"] = fps
        result = tomlkit.dumps(document)
        return result if tomllib.loads(result) == expected else None
    except (tomlkit.exceptions.TOMLKitError, tomllib.TOMLDecodeError, TypeError, KeyError, IndexError, ValueError):
        return None

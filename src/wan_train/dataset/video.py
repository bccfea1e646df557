"""Read videos with PyAV, which is optional: size, length and frame rate from the header, frames on request."""

from __future__ import annotations

import importlib
import math
import os
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from wan_train.dataset.model import ProblemKind
from wan_train.dataset.pictures import Unreadable, damaged, open_regular

_STEADY = 0.01
_JITTER = 0.25
"""Fraction of a frame's duration. Containers with millisecond times round it."""
_FEW = 0.05
"""Fraction of all frames. One dropped frame does not make a variable rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A video's size in pixels, its frames, and frames per second; None where unknown.

    `is_variable` means that frames have different durations, so `fps` is an average and no `source_fps` fits.
    """

    width: int
    height: int
    frames: int | None
    fps: float | None = None
    is_variable: bool = False


def pyav() -> Any | None:  # noqa: ANN401 - type checkers have no stubs for it where it is not installed
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module("av")
    except ImportError:
        return None


def read_clip(path: Path) -> Clip | Unreadable | None:
    """The size and length of a video; None without PyAV, which is not required. Nothing is decoded."""
    try:
        with open_regular(path) as file:
            if not file.read(1):
                return Unreadable(ProblemKind.UNREADABLE_MEDIA, "is empty")
    except (OSError, ValueError) as error:  # ValueError: an impossible file name
        return damaged(path, error)
    av = pyav()
    if av is None:
        return None
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.video:
                return Unreadable(ProblemKind.UNREADABLE_MEDIA, "contains no video stream")
            stream = container.streams.video[0]
            rate = stream.average_rate
            frames = stream.frames
            times: list[int] = []
            if not frames or _is_trimmed(stream) or _may_vary(stream):
                # Count packets, still without decoding. Matroska and WebM headers lack the number of frames. An MP4
                # that was cut without re-encoding has frames that its edit list hides, also from the trainer.
                shown = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
                frames = len(shown)
                times = [packet.pts for packet in shown if packet.pts is not None]
            is_variable = _vary(times)
            if is_variable and stream.time_base:
                # A Matroska header has the rate that a player starts with, not the average.
                rate = Fraction(len(times) - 1, max(times) - min(times)) / stream.time_base
            return Clip(
                width=stream.width,
                height=stream.height,
                frames=frames or None,
                fps=float(rate) if rate and not math.isinf(rate) else None,
                is_variable=is_variable,
            )
    except (av.FFmpegError, OSError, ValueError) as error:
        return damaged(path, error)


def _is_trimmed(stream: Any) -> bool:  # noqa: ANN401 - as above
    """Whether a stream's duration is shorter than that of all its frames."""
    if stream.duration is None or stream.time_base is None or not stream.average_rate:
        return False
    return bool(stream.duration * stream.time_base * stream.average_rate < stream.frames - 0.5)


def _may_vary(stream: Any) -> bool:  # noqa: ANN401 - as above
    """Whether the header's average rate differs from its base rate, the grid of all frame times."""
    average, base = stream.average_rate, stream.base_rate
    return bool(average and base and abs(float(base) / float(average) - 1) > _STEADY)


def _vary(times: list[int]) -> bool:
    """Whether more than a few frames differ from the usual duration."""
    lasts = [later - earlier for earlier, later in pairwise(sorted(times))]
    if not lasts:
        return False
    usual = sorted(lasts)[len(lasts) // 2]
    odd = sum(abs(each - usual) > usual * _JITTER for each in lasts)
    return odd > len(lasts) * _FEW


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The result of decoding: frames decoded, and left `quarter_turns` that players apply and the trainer ignores."""

    quarter_turns: int
    frames: int


def quarter_turns(frame: Any) -> int:  # noqa: ANN401 - as above
    """The quarter turns to the left in a decoded frame's rotation mark."""
    return round(getattr(frame, "rotation", 0) / 90) % 4


def decode(path: Path, *, at_most: int | None) -> Decoded | Unreadable | None:
    """Decode the first `at_most` frames (None: all); returns None without PyAV."""
    av = pyav()
    if av is None:
        return None
    turns: int | None = None
    frames = 0
    try:
        with av.open(os.fspath(path)) as container:
            for frame in container.decode(video=0):
                if turns is None:
                    turns = quarter_turns(frame)
                frames += 1
                if frames == at_most:
                    break
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        return damaged(path, error)
    if turns is None:
        return Unreadable(ProblemKind.UNREADABLE_MEDIA, "has no frame that can be decoded")
    return Decoded(quarter_turns=turns, frames=frames)

"""Clips by PyAV, which is optional: size, length and speed from the header, frames on request."""

from __future__ import annotations

import importlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan_train.dataset.media import Unreadable, damaged, open_regular
from wan_train.dataset.model import ProblemKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A video's size in pixels, its frames, and frames per second; None where its header does not tell."""

    width: int
    height: int
    frames: int | None
    fps: float | None = None


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
                return Unreadable(kind=ProblemKind.UNREADABLE_MEDIA, what="is empty")
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return damaged(path, error)
    av = pyav()
    if av is None:
        return None
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.video:
                return Unreadable(kind=ProblemKind.UNREADABLE_MEDIA, what="holds no video")
            stream = container.streams.video[0]
            # Matroska and WebM headers do not say; their packets are counted, still without decoding.
            frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
            rate = stream.average_rate
            return Clip(
                width=stream.width,
                height=stream.height,
                frames=frames or None,
                fps=float(rate) if rate and not math.isinf(rate) else None,
            )
    except (av.FFmpegError, OSError, ValueError) as error:
        return damaged(path, error)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstFrame:
    """What only decoding tells; `quarter_turns` to the left are what a player applies and the trainer does not."""

    quarter_turns: int


def decode(path: Path, *, whole: bool = False) -> FirstFrame | Unreadable | None:
    """Decode the first frame, or with `whole` all of them; None without PyAV."""
    av = pyav()
    if av is None:
        return None
    turns: int | None = None
    try:
        with av.open(os.fspath(path)) as container:
            for frame in container.decode(video=0):
                if turns is None:
                    turns = round(getattr(frame, "rotation", 0) / 90) % 4
                if not whole:
                    break
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        return damaged(path, error)
    if turns is None:
        return Unreadable(kind=ProblemKind.UNREADABLE_MEDIA, what="holds no frame that can be decoded")
    return FirstFrame(quarter_turns=turns)

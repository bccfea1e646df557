"""A clip as a copy: upright, and where that is asked for with Wan's 16 frames a second.

Where all clips of a dataset have one speed, `source_fps` in the dataset.toml does the same without encoding anything
anew, and is the better mend. Copies are for folders of clips of several speeds, since a dataset has one `source_fps`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from wan_train.dataset import video
from wan_train.dataset.buckets import TARGET_FPS
from wan_train.dataset.check import Check

_QUALITY = "12"
"""CRF of H.264: no difference to the eye."""
_ROUGH = 0.5
"""Frames a second: clips of a few frames have rough averages."""
_HOLDS_H264 = frozenset({".mp4", ".mov", ".mkv", ".m4v"})


_MOST_OFF = 12.0
"""Mean difference of grey levels (of 255) between a frame and its copy."""
_TURNS = {0: (), 1: (("transpose", "cclock"),), 2: (("hflip", ""), ("vflip", "")), 3: (("transpose", "clock"),)}
"""FFmpeg's filters by quarter turns to the left."""


class CopyError(OSError):
    """The copy is not what it should be."""


def target(path: Path) -> Path:
    """What the copy is called: as the clip, in a container that holds H.264."""
    return path if path.suffix.lower() in _HOLDS_H264 else path.with_suffix(".mp4")


def why_not_slower(path: Path, check: Check) -> str | None:
    """Why no copy with 16 frames a second is made of this clip, or None."""
    clip = video.read_clip(path)
    if not isinstance(clip, video.Clip) or clip.fps is None:
        return "its speed cannot be read"
    if clip.fps < TARGET_FPS:
        return "it has fewer than 16 frames a second, and frames that are not there would have to be made up"
    found = check.inventory.subsets if check.inventory is not None else ()
    home = next((each for each in found if any(item.path == path for item in each.items)), None)
    if home is None or home.subset.video is None or home.subset.video.source_fps is not None:
        return "the dataset.toml has a source_fps, and it is not this clip's"
    return None


def why_not_turned(path: Path) -> str | None:
    """Why this clip cannot be turned safely, or None."""
    av = video.pyav()
    if av is None:
        return "PyAV is not installed"
    try:
        with av.open(str(path)) as source:
            matrix = next(source.decode(video=0)).side_data.get("DISPLAYMATRIX")
            a, b, _, c, d = struct.unpack_from("<5i", bytes(matrix)) if matrix is not None else (1, 0, 0, 0, 1)
    except (av.FFmpegError, ValueError, IndexError, StopIteration, struct.error):
        return "it cannot be decoded"
    if a * d - b * c < 0:
        return "its mark mirrors it too"
    if (a or d) and (b or c):
        return "its mark turns it by an odd angle"
    return None


def copy(path: Path, made: Path, *, sixteen: bool) -> None:
    """Write the copy and check it against the original; raises OSError.

    Every frame is turned as the clip's mark says. With `sixteen` frames are left out; without, all are kept with
    their times. Sound is left out: the trainer ignores it.
    """
    av = video.pyav()
    if av is None:
        raise CopyError(0, "PyAV is not installed")
    first = None
    written = 0
    try:
        with av.open(str(path)) as source, av.open(str(made), "w") as target_file:
            stream = source.streams.video[0]
            kept = (_sixteenths if sixteen else _as_they_are)(source.decode(stream), stream)
            out = None
            for frame, time, time_base in kept:
                turned = _turned(av, frame, stream)
                if out is None:
                    rate = Fraction(int(TARGET_FPS)) if sixteen else stream.average_rate
                    out = target_file.add_stream("libx264", rate=rate, options={"crf": _QUALITY, "preset": "medium"})
                    out.width, out.height = turned.width, turned.height
                    is_even = turned.width % 2 == 0 and turned.height % 2 == 0
                    out.pix_fmt = "yuv420p" if is_even else "yuv444p"
                    out.time_base = time_base
                    first = _grey(turned)
                plain = turned.reformat(format=out.pix_fmt)
                plain.pts, plain.time_base = time, time_base
                written += 1
                target_file.mux(out.encode(plain))
            if out is not None:
                target_file.mux(out.encode())
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise CopyError(0, f"encoding it failed: {error}") from error
    _verify(av, path, made, written, first, sixteen=sixteen)


def _verify(av: Any, path: Path, made: Path, written: int, first: bytes | None, *, sixteen: bool) -> None:  # noqa: ANN401 - PyAV is optional
    original, clip = video.read_clip(path), video.read_clip(made)
    if not isinstance(clip, video.Clip) or not isinstance(original, video.Clip) or clip.frames != written:
        raise CopyError(0, "the copy does not have the frames that it should have, so it was not used")
    wanted = TARGET_FPS if sixteen else original.fps or 0.0
    if abs((clip.fps or 0) - wanted) > _ROUGH:
        raise CopyError(0, f"the copy does not have {wanted:g} frames a second, so it was not used")
    with av.open(str(made)) as copied:
        frame = next(copied.decode(video=0))
        if first is None or video.quarter_turns(frame) or _difference(first, _grey(frame)) > _MOST_OFF:
            raise CopyError(0, "the copy does not look like the original, so it was not used")


def _sixteenths(frames: Iterator[Any], _stream: object) -> Iterator[tuple[Any, int, Fraction]]:
    start, last, count = None, None, 0
    for frame in frames:
        if frame.time is None:
            continue
        start = frame.time if start is None else start
        # The last frame at or before each sixteenth of a second would need one more frame to be read; the first one
        # at or after it is the same on average.
        # A frame that lasts longer than a sixteenth, as in a clip of variable rate, stands for all of them.
        due = int((frame.time - start) * TARGET_FPS + 1e-6)
        while count < due and last is not None:
            yield last, count, Fraction(1, int(TARGET_FPS))
            count += 1
        last = frame
        if (frame.time - start) * TARGET_FPS + 1e-6 >= count:
            yield frame, count, Fraction(1, int(TARGET_FPS))
            count += 1


def _as_they_are(frames: Iterator[Any], stream: Any) -> Iterator[tuple[Any, int, Fraction]]:  # noqa: ANN401 - as above
    start = None
    for frame in frames:
        start = frame.pts if start is None else start
        yield frame, frame.pts - start, stream.time_base


def _turned(av: Any, frame: Any, stream: Any) -> Any:  # noqa: ANN401 - as above
    steps = _TURNS[video.quarter_turns(frame)]
    if not steps:
        return frame
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format.name, time_base=stream.time_base
    )
    nodes = [source, *(graph.add(name, setting or None) for name, setting in steps), graph.add("buffersink")]
    for one, following in pairwise(nodes):
        one.link_to(following)
    graph.configure()
    graph.push(frame)
    return graph.pull()


def _grey(frame: Any) -> bytes:  # noqa: ANN401 - as above
    from PIL import Image

    picture: Image.Image = frame.to_image()
    return picture.convert("L").resize((64, 64), Image.Resampling.BOX).tobytes()


def _difference(one: bytes, other: bytes) -> float:
    return sum(abs(left - right) for left, right in zip(one, other, strict=True)) / len(one)

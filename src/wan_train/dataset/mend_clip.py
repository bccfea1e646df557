"""A clip as a copy with Wan's 16 frames a second.

Where all clips of a dataset have one speed, `source_fps` in the dataset.toml does the same without encoding anything
anew, and is the better mend. Copies are for folders of clips of several speeds, since a dataset has one `source_fps`.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from wan_train.dataset import footage
from wan_train.dataset.buckets import TARGET_FPS
from wan_train.dataset.check import Check
from wan_train.dataset.model import Problem, ProblemKind

_QUALITY = "12"
"""CRF of H.264: no difference to the eye."""
_ROUGH = 0.5
"""Frames a second: clips of a few frames have rough averages."""
_HOLDS_H264 = frozenset({".mp4", ".mov", ".mkv", ".m4v"})


class NotSixteenError(OSError):
    """The copy is not what it should be."""


def target(path: Path) -> Path:
    """What the copy is called: as the clip, in a container that holds H.264."""
    return path if path.suffix.lower() in _HOLDS_H264 else path.with_suffix(".mp4")


def why_not(path: Path, check: Check, problem: Problem) -> str | None:
    """Why no copy is made of this clip, or None."""
    clip = footage.read_clip(path)
    if not isinstance(clip, footage.Clip) or clip.fps is None:
        return "its speed cannot be read"
    if clip.fps < TARGET_FPS:
        return "it has fewer than 16 frames a second, and frames that are not there would have to be made up"
    found = check.inventory.subsets if check.inventory is not None else ()
    home = next((each for each in found if any(item.path == path for item in each.items)), None)
    if home is None or home.subset.video is None or home.subset.video.source_fps is not None:
        return f"the dataset.toml has a source_fps, and it is not this clip's: {_first_lower(problem.mend)}"
    ours = {item.path for item in home.items}
    others = [each for each in check.problems if each.kind is ProblemKind.FRAME_RATE and each.path in ours]
    if len(others) == len(ours) and len({each.mend for each in others}) == 1:
        return f"all clips have this speed, so nothing need be encoded: {_first_lower(problem.mend)}"
    return None


def _first_lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def at_sixteen(path: Path, made: Path) -> None:
    """Write the copy and check its length and speed; raises OSError. Sound is left out: the trainer ignores it."""
    av = footage.pyav()
    if av is None:
        raise NotSixteenError(0, "PyAV is not installed")
    rate = Fraction(int(TARGET_FPS))
    try:
        with av.open(str(path)) as source, av.open(str(made), "w") as copy:
            stream = source.streams.video[0]
            out = copy.add_stream("libx264", rate=rate, options={"crf": _QUALITY, "preset": "medium"})
            out.width, out.height = stream.width, stream.height
            out.pix_fmt = "yuv420p" if stream.width % 2 == 0 and stream.height % 2 == 0 else "yuv444p"
            out.time_base = 1 / rate
            written, start = 0, None
            for frame in source.decode(stream):
                if frame.time is None:
                    continue
                start = frame.time if start is None else start
                # The last frame at or before each sixteenth of a second would need one more frame to be read; the
                # first one at or after it is the same on average.
                if (frame.time - start) * TARGET_FPS + 1e-6 < written:
                    continue
                kept = frame.reformat(format=out.pix_fmt)
                kept.pts, kept.time_base = written, 1 / rate
                written += 1
                for packet in out.encode(kept):
                    copy.mux(packet)
            for packet in out.encode():
                copy.mux(packet)
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise NotSixteenError(0, f"encoding it failed: {error}") from error
    clip = footage.read_clip(made)
    if not isinstance(clip, footage.Clip) or clip.frames != written or abs((clip.fps or 0) - TARGET_FPS) > _ROUGH:
        raise NotSixteenError(0, "the copy does not have 16 frames a second, so it was not used")

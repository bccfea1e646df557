"""What the trainer makes of a clip: how many of its frames it uses, and at what speed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from wan_train.dataset.buckets import TARGET_FPS, clips, frames_at_target_rate
from wan_train.dataset.model import FrameExtraction, Problem, ProblemKind, Severity, VideoSettings
from wan_train.dataset.video import Clip

_SAME_SPEED = 0.05
"""Relative; 15.98 and 29.97 frames a second are 16 and 30 to the eye."""


def judge(path: Path, clip: Clip, settings: VideoSettings) -> Iterator[Problem]:
    """Everything that a header tells.

    Source: load_video and VideoDataset.retrieve_latent_cache_batches at both versions, see `buckets`.
    """
    yield from _speed(path, clip, settings)
    if clip.frames is None:
        return
    kept = frames_at_target_rate(clip.frames, settings)
    cuts = clips(kept, settings)
    if not cuts:
        what = f"has {kept} frames, fewer than any of target_frames, so it is left out"
        yield Problem(
            kind=ProblemKind.TOO_FEW_FRAMES,
            severity=Severity.LOSES,
            what=what,
            mend="Add a smaller count to target_frames",
            path=path,
        )
        return
    # `head` with source_fps stops reading where it has enough, so the length at 16 a second is reckoned here.
    length = int(clip.frames * TARGET_FPS / settings.source_fps) if settings.source_fps is not None else clip.frames
    used = max(start + count for start, count in cuts)
    if settings.frame_extraction in {FrameExtraction.HEAD, FrameExtraction.FULL} and length - used > 3:  # noqa: PLR2004 - N*4+1 leaves up to three over
        yield Problem(
            kind=ProblemKind.UNUSED_FRAMES,
            severity=Severity.NOTE,
            what=f"has {length} frames, of which the first {used} are trained",
            mend='Use frame_extraction = "chunk" or "uniform", or larger target_frames (max_frames for "full")',
            path=path,
        )


def is_same_speed(fps: float, other: float) -> bool:
    """Whether two speeds in frames per second are one to the eye."""
    return abs(fps - other) <= other * _SAME_SPEED


def _speed(path: Path, clip: Clip, settings: VideoSettings) -> Iterator[Problem]:
    if clip.fps is None:
        return
    if clip.is_variable:
        yield Problem(
            kind=ProblemKind.FRAME_RATE,
            severity=Severity.HARMS,
            what=f"has a variable frame rate ({clip.fps:.3g} a second on average), which no source_fps fixes: "
            "the trainer takes its frames as evenly spaced",
            mend=f"{'Use --fix, or make' if clip.fps >= TARGET_FPS else 'Make'} a copy with even frames: "
            f"ffmpeg -i IN -vf fps={TARGET_FPS:g} -crf 14 OUT.mp4",
            path=path,
        )
        return
    # The trainer leaves frames out and makes none up, so a source_fps below 16 changes nothing.
    kept = clip.fps * min(1.0, TARGET_FPS / (settings.source_fps or TARGET_FPS))
    if is_same_speed(kept, TARGET_FPS):
        return
    is_slow = kept > TARGET_FPS
    read_as = (
        f"is taken for one of {TARGET_FPS:g}"
        if settings.source_fps is None
        else f"source_fps says {settings.source_fps:g}"
    )
    what = (
        f"has {clip.fps:g} frames a second and {read_as}: "
        f"{'slow motion' if is_slow else 'fast motion'} is learned ({kept / TARGET_FPS:.2g} times)"
    )
    mend = (
        f"Set source_fps = {float(f'{clip.fps:.5g}')} for clips of this speed"
        if clip.fps >= TARGET_FPS
        else "Leave it out, or make one of 16 frames a second with a program that invents frames between"
    )
    yield Problem(kind=ProblemKind.FRAME_RATE, severity=Severity.HARMS, what=what, mend=mend, path=path)

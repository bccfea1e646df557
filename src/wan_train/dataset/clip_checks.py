"""What the trainer makes of a clip: how many of its frames it uses, and at what speed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from wan_train.dataset.buckets import TARGET_FPS, clips, frames_at_target_rate
from wan_train.dataset.footage import Clip
from wan_train.dataset.model import FrameExtraction, Problem, ProblemKind, Severity, VideoSettings

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


def _speed(path: Path, clip: Clip, settings: VideoSettings) -> Iterator[Problem]:
    if clip.fps is None:
        return
    taken = settings.source_fps or TARGET_FPS
    if abs(clip.fps - taken) <= taken * _SAME_SPEED:
        return
    is_slow = clip.fps > taken
    read_as = f"is taken for one of {taken:g}" if settings.source_fps is None else f"source_fps says {taken:g}"
    what = (
        f"has {clip.fps:g} frames a second and {read_as}: "
        f"{'slow motion' if is_slow else 'fast motion'} is learned ({clip.fps / taken:.2g} times)"
    )
    mend = f"Set source_fps = {float(f'{clip.fps:.5g}')} for clips of this speed"
    yield Problem(kind=ProblemKind.FRAME_RATE, severity=Severity.HARMS, what=what, mend=mend, path=path)

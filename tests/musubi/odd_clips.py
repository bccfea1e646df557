"""Clips that people really have, encoded here."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from PIL import Image

from musubi.odd_pictures import art

SIZE = (96, 64)
FRAMES = 20
FPS = 16

_ONE = b"\0\1\0\0"
_UPRIGHT = _ONE + bytes(12) + _ONE + bytes(12) + b"\x40\0\0\0"
_QUARTER = bytes(4) + _ONE + bytes(4) + b"\xff\xff\0\0" + bytes(16) + b"\x40\0\0\0"


def write_clip(
    path: Path,
    *,
    frames: int = FRAMES,
    size: tuple[int, int] = SIZE,
    fps: int = FPS,
    codec: str = "mpeg4",
    pixels: str = "yuv420p",
    container: str | None = None,
    options: dict[str, str] | None = None,
    shown_at: Callable[[int], int] = lambda number: number,
) -> None:
    """A clip whose frames differ, without a caption. `shown_at` gives each frame's time in `1 / fps` seconds."""
    with av.open(str(path), "w", format=container, options=options or {}) as file:
        stream: Any = file.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        for number in range(frames):
            frame = av.VideoFrame.from_image(art(number, size))
            frame.pts, frame.time_base = shown_at(number), Fraction(1, fps)
            for packet in stream.encode(frame):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)


def mark_turned(path: Path) -> None:
    """Give an MP4 the mark that has players turn it by a quarter."""
    head, tag, tail = path.read_bytes().partition(b"tkhd")
    assert _UPRIGHT in tail
    path.write_bytes(head + tag + tail.replace(_UPRIGHT, _QUARTER, 1))


def trim_start(source: Path, made: Path, *, seconds: float) -> None:
    """As `ffmpeg -ss -c copy` cuts: the packets stay and an edit list hides the beginning."""
    with av.open(str(source)) as given, av.open(str(made), "w") as cut:
        stream = given.streams.video[0]
        out = cut.add_stream_from_template(stream)
        for packet in given.demux(stream):
            if packet.dts is None or packet.pts is None or stream.time_base is None:
                continue
            packet.pts -= int(seconds / stream.time_base)
            packet.dts -= int(seconds / stream.time_base)
            packet.stream = out
            cut.mux(packet)


def keep_part(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def blank(path: Path, at: float, count: int = 400) -> None:
    """Zeroes in the middle of a file."""
    data = bytearray(path.read_bytes())
    start = int(len(data) * at)
    data[start : start + count] = bytes(count)
    path.write_bytes(bytes(data))


def write_odd_clips(folder: Path) -> None:
    """All of them with which a training goes on under `head` with at most 17 frames; captions beside."""
    write_clip(folder / "plain.mp4")
    write_clip(folder / "turned.mp4")
    mark_turned(folder / "turned.mp4")
    write_clip(folder / "fast.mp4", fps=30)
    write_clip(folder / "short.mp4", frames=3)
    write_clip(folder / "odd sides.mp4", size=(71, 45), codec="libx264", pixels="yuv444p")
    write_clip(folder / "ten bits.mp4", codec="libx264", pixels="yuv420p10le")
    write_clip(folder / "unsteady.mp4", codec="libx264", shown_at=lambda number: number * number // 4 + number)
    write_clip(folder / "vp9.webm", codec="libvpx-vp9", pixels="yuva420p")
    write_clip(folder / "older.avi")
    write_clip(folder / "UPPER.MP4")
    write_clip(folder / "matroska.mp4", container="matroska")
    write_clip(folder / "fragments.mp4", codec="libx264", options={"movflags": "frag_keyframe+empty_moov"})
    write_clip(folder / "tv.mpg", codec="mpeg2video", fps=25)
    write_clip(folder / "windows.wmv", codec="wmv2", container="asf")
    Image.new("RGB", SIZE, "red").save(folder / "picture.mp4", "PNG")
    write_clip(folder / "whole.mp4", frames=24)
    trim_start(folder / "whole.mp4", folder / "trimmed.mp4", seconds=0.5)
    write_clip(folder / "part.mkv", frames=30, codec="libx264")
    keep_part(folder / "part.mkv", 0.7)
    write_clip(folder / "half.mp4", frames=60, codec="libx264", options={"movflags": "faststart"})
    keep_part(folder / "half.mp4", 0.7)
    for path in sorted(folder.iterdir()):
        path.with_suffix(".txt").write_text(f"it moves in {path.stem}")

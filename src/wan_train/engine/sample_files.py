"""Sample pictures and clips that a trainer makes during training: their names, and whether they are complete."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_SIZE_AT = 16
"""Offset of a PNG's width and height, after its signature and its first chunk's header."""
_BOX_HEAD = 8
_LONG_BOX_HEAD = 16


class SampleKind(StrEnum):
    """What the trainer made from a prompt: a PNG for one frame, an MP4 for more."""

    PICTURE = "picture"
    CLIP = "clip"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFile:
    """One complete sample of one attempt. `epoch` is the trainer's own count, 0 before the first step."""

    path: Path
    epoch: int
    prompt_index: int
    seed: int | None
    kind: SampleKind
    size: tuple[int, int] | None
    """Width and height in pixels; None if reading them needs a decoder."""


def sample_dir(output: Path) -> Path:
    """The trainer's sample directory. The trainer creates it."""
    return output / "sample"


def sample_files(output: Path, name: str) -> tuple[SampleFile, ...]:
    """The complete samples in an attempt's output directory, by epoch and prompt.

    Names (both versions, `sample_image_inference`): `NAME_e000010_00_20250817143005[_SEED]_000.png` and
    `NAME_e000010_00_20250817143005[_SEED].mp4`. The trainer writes neither atomically.
    """
    directory = sample_dir(output)
    if not directory.is_dir():
        return ()
    return tuple(sorted(_found(directory, name), key=lambda file: (file.epoch, file.prompt_index, file.path.name)))


def _found(directory: Path, name: str) -> Iterator[SampleFile]:
    pattern = re.compile(
        rf"{re.escape(name)}_e(?P<epoch>\d{{6,}})_(?P<index>\d{{2,}})_\d{{14}}(?:_(?P<seed>\d+))?"
        r"(?:_000\.png|(?P<clip>\.mp4))",
        re.ASCII,
    )
    for path in directory.iterdir():
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        kind = SampleKind.CLIP if match["clip"] else SampleKind.PICTURE
        try:
            size = png_size(path) if kind is SampleKind.PICTURE else None
            whole = size is not None or (kind is SampleKind.CLIP and is_whole_clip(path))
        except OSError:
            continue  # removed meanwhile
        if whole:
            yield SampleFile(
                path=path,
                epoch=int(match["epoch"]),
                prompt_index=int(match["index"]),
                seed=int(match["seed"]) if match["seed"] else None,
                kind=kind,
                size=size,
            )


def png_size(path: Path) -> tuple[int, int] | None:
    """Width and height of a complete PNG; None for anything else. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(_SIZE_AT + 8)
        if len(head) < _SIZE_AT + 8 or not head.startswith(_PNG_START):
            return None
        file.seek(-len(_PNG_END), 2)
        if file.read() != _PNG_END:
            return None
    width, height = struct.unpack_from(">II", head, _SIZE_AT)
    return width, height


def is_whole_clip(path: Path) -> bool:
    """Whether an MP4 is complete: its boxes fill the file and include the index `moov`. Raises OSError."""
    length, at, has_index = path.stat().st_size, 0, False
    with path.open("rb") as file:
        while at < length:
            file.seek(at)
            head = file.read(_LONG_BOX_HEAD)
            if len(head) < _BOX_HEAD:
                return False
            size, kind = struct.unpack_from(">I4s", head)
            if size == 1 and len(head) == _LONG_BOX_HEAD:
                (size,) = struct.unpack_from(">Q", head, _BOX_HEAD)
            if size < _BOX_HEAD:
                return False
            has_index |= kind == b"moov"
            at += size
    return has_index and at == length

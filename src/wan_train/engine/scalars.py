"""Per-step numbers from the trainer's TensorBoard files, read while they grow, without TensorBoard itself.

The tensorboard package needs 100 MB of dependencies to read numbers. The format is public and small: records of
length (8 bytes), checksum (4), data, checksum (4); the data is a protobuf `Event` with step (field 2) and summary
values (field 5: tag in field 1, float in field 2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_FRAME = struct.Struct("<QI")
_MAX_RECORD = 16 * 1024 * 1024
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """One logged number. Tags of the trainer: `loss/current`, `loss/average`, `lr/unet`, `loss/epoch`."""

    tag: str
    step: int
    value: float


@dataclass(slots=True)
class ScalarFollower:
    """Reads the new entries of all event files below a directory since the last call."""

    directory: Path
    _offsets: dict[Path, int] = field(default_factory=dict)

    def new_scalars(self) -> Iterator[Scalar]:
        for path in sorted(self.directory.rglob("events.out.tfevents.*")):
            yield from self._read(path)

    def _read(self, path: Path) -> Iterator[Scalar]:
        offset = self._offsets.get(path, 0)
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
        position = 0
        while position + _FRAME.size <= len(data):
            length, _ = _FRAME.unpack_from(data, position)
            end = position + _FRAME.size + length + 4
            if length > _MAX_RECORD or end > len(data):
                break  # still being written, or not an event file
            yield from _scalars(data[position + _FRAME.size : end - 4])
            position = end
        self._offsets[path] = offset + position


def _scalars(event: bytes) -> Iterator[Scalar]:
    step = 0
    summaries = []
    for number, kind, value in _fields(event):
        if number == 2 and kind == _VARINT and isinstance(value, int):  # field numbers of Event
            step = value
        elif number == 5 and isinstance(value, bytes):
            summaries.append(value)
    for summary in summaries:
        for _, _, entry in _fields(summary):
            if isinstance(entry, bytes):
                tag, number_read = "", None
                for number, kind, value in _fields(entry):
                    if number == 1 and isinstance(value, bytes):
                        tag = value.decode("utf-8", errors="replace")
                    elif number == 2 and kind == _FIXED32 and isinstance(value, bytes):  # Summary.Value
                        number_read = struct.unpack("<f", value)[0]
                if number_read is not None:
                    yield Scalar(tag=tag, step=step, value=number_read)


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """The fields of a protobuf message; stops at anything malformed."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield number, kind, value
            continue
        if kind == _BYTES:
            length, position = _varint(data, position)
        elif kind in {_FIXED64, _FIXED32}:
            length = 8 if kind == _FIXED64 else 4
        else:
            return
        if position + length > len(data):
            return
        yield number, kind, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # the continuation bit
            break
        shift += 7
    return value, position

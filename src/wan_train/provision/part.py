"""The bytes of one remote file that are there already: a folder with the part and the record of what is in it.

The record is aria2's control file, https://aria2.github.io/manual/en/html/technical-notes.html. Without one the part
was written from its beginning on, by huggingface_hub's client, and all of it counts.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from wan_train.base.files import write_whole

_HEAD = struct.Struct(">HII")
_SIZES = struct.Struct(">IQQI")
_PIECE = struct.Struct(">III")
_PIECE_BYTES = 1024 * 1024
_BLOCK_BYTES = 16 * 1024
"""What a bit of a piece in flight stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A file of `size` bytes that is being fetched into `folder`, which belongs to these bytes and no others."""

    folder: Path
    size: int

    @property
    def path(self) -> Path:
        return self.folder / "part"

    @property
    def control(self) -> Path:
        return self.folder / "part.aria2"

    def done(self) -> int:
        """How many of its bytes are there."""
        record = self._record()
        return self._length() if record is None else min(record.done(), self.size)

    def is_whole(self) -> bool:
        """All is there, as far as lengths can tell."""
        return self._length() == self.size == self.done()

    def for_ranges(self) -> None:
        """Before several connections write at once: leave a record, so that a kill never makes a gap look filled."""
        if self.control.exists() and self._record() is not None:
            return
        length = self._length()
        if length > self.size:
            self.clear()
            length = 0
        self.path.touch()
        write_whole(self.control, _control(self.size, length), durable=False)

    def for_appending(self) -> None:
        """Before one connection writes at the end: cut at the first gap. A kill in between leaves nothing untrue."""
        record = self._record()
        keep = self._length() if record is None else record.beginning()
        if keep > self.size:
            keep = 0
        if record is not None:
            write_whole(self.control, _control(self.size, keep), durable=False)
        if self._length() > keep:
            os.truncate(self.path, keep)
        self.control.unlink(missing_ok=True)

    def clear(self) -> None:
        """Begin anew."""
        self.path.unlink(missing_ok=True)
        self.control.unlink(missing_ok=True)

    def _length(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def _record(self) -> _Record | None:
        """What the control file says; None without one. One that is torn or of another file says: nothing is there."""
        try:
            data = self.control.read_bytes()
        except FileNotFoundError:
            return None
        try:
            record = _read(data)
        except (struct.error, IndexError, ValueError):
            record = _Record(total=0, piece=_PIECE_BYTES, bits=b"", flight={})
        if record.total != self.size or not self.path.exists():
            return _Record(total=self.size, piece=_PIECE_BYTES, bits=b"", flight={})
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """`bits` has one bit for each piece of `piece` bytes, `flight` the bits of the blocks of pieces begun."""

    total: int
    piece: int
    bits: bytes
    flight: dict[int, bytes]

    def done(self) -> int:
        full = sum(byte.bit_count() for byte in self.bits)
        bytes_there = full * self.piece
        if full and self._has(self._pieces - 1):
            bytes_there -= self._pieces * self.piece - self.total  # the last piece is shorter
        return bytes_there + sum(byte.bit_count() for bits in self.flight.values() for byte in bits) * _BLOCK_BYTES

    def beginning(self) -> int:
        """The bytes before the first gap."""
        for number in range(self._pieces):
            if not self._has(number):
                return min(number * self.piece, self.total)
        return self.total

    @property
    def _pieces(self) -> int:
        return -(-self.total // self.piece)

    def _has(self, number: int) -> bool:
        byte, bit = divmod(number, 8)
        return byte < len(self.bits) and bool(self.bits[byte] & (0x80 >> bit))


def _read(data: bytes) -> _Record:
    version, _, hash_length = _HEAD.unpack_from(data)
    if version != 1:
        raise ValueError(f"control files of version {version} are not known")
    at = _HEAD.size + hash_length
    piece, total, _, length = _SIZES.unpack_from(data, at)
    at += _SIZES.size
    bits = data[at : at + length]
    at += length
    (count,) = struct.unpack_from(">I", data, at)
    at += 4
    flight = {}
    for _ in range(count):
        index, _, length = _PIECE.unpack_from(data, at)
        at += _PIECE.size
        flight[index] = data[at : at + length]
        at += length
    if not piece:
        raise ValueError("pieces of no bytes")
    return _Record(total=total, piece=piece, bits=bits, flight=flight)


def _control(total: int, beginning: int) -> bytes:
    """A control file that says: the whole pieces of the first `beginning` bytes are there."""
    pieces = -(-total // _PIECE_BYTES)
    full = pieces if beginning == total else beginning // _PIECE_BYTES
    bits = bytearray(-(-pieces // 8))
    for number in range(full):
        bits[number // 8] |= 0x80 >> number % 8
    head = _HEAD.pack(1, 0, 0) + _SIZES.pack(_PIECE_BYTES, total, 0, len(bits))
    return head + bytes(bits) + struct.pack(">I", 0)

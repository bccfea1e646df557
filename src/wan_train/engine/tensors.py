"""LoRA and model files: headers, completeness, finiteness, metadata. Does not need torch.

The safetensors library cannot read bfloat16 without torch or other packages. The checks here need only exponent bits,
so the files are read directly (format: 8 bytes little-endian header length, JSON, data).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from wan_train.base.errors import WanTrainError

_METADATA = "__metadata__"
_MAX_HEADER = 100_000_000
"""The limit of the safetensors library itself."""
_FIRST_READ = 4096
_CHUNK = 16 * 1024 * 1024
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
# Bits that are all ones in NaN and infinity, as (byte within the element, mask), for little-endian elements.
_EXPONENT = {
    "F64": ((7, 0x7F), (6, 0xF0)),
    "F32": ((3, 0x7F), (2, 0x80)),
    "F16": ((1, 0x7C),),
    "BF16": ((1, 0x7F), (0, 0x80)),
}


class BrokenFileError(WanTrainError):
    """A file that is incomplete or not a safetensors file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor's entry in the header; `begin` and `end` count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The header of a safetensors file whose length matches it exactly.

    `size` in bytes and `mtime_ns` since 1970 belong to the file that was read. Headers of copies are equal.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    data_begins: int
    size: int = field(compare=False)
    mtime_ns: int = field(compare=False)

    def main_dtype(self) -> str | None:
        """The element type that takes the most bytes."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.end - tensor.begin
        return max(sizes, key=lambda dtype: sizes[dtype], default=None)


def read_header(path: Path | str) -> Header:
    """The header of a complete file. Raises BrokenFileError if the file is too short, too long or another format."""
    try:
        # There may be ten thousand caches, so skip the file object. One read covers most headers.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            size = found.st_size
            head = os.read(descriptor, _FIRST_READ)
            length = int.from_bytes(head[:8], "little")
            if size < 8 or not 0 < length <= min(_MAX_HEADER, size - 8):  # the length field's own size
                raise BrokenFileError(f"{path} is not a complete safetensors file ({size} bytes)")
            while len(head) < 8 + length:
                more = os.read(descriptor, 8 + length - len(head))
                if not more:
                    raise BrokenFileError(f"{path} is incomplete: its header ends early")
                head += more
        finally:
            os.close(descriptor)
        entries = json.loads(head[8 : 8 + length].decode())
        metadata = entries.pop(_METADATA, {})
        metadata = {name: str.__str__(value) for name, value in metadata.items()}  # TypeError unless a string
        tensors = {name: _tensor(name, entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise BrokenFileError(f"{path} is not a safetensors file: {error}") from error
    except OSError as error:
        raise BrokenFileError(f"{path} cannot be read: {error.strerror}") from error
    end = 8 + length + max((tensor.end for tensor in tensors.values()), default=0)
    if end != size:
        raise BrokenFileError(f"{path} is incomplete: {size} bytes instead of {end}")
    return Header(tensors=tensors, metadata=metadata, data_begins=8 + length, size=size, mtime_ns=found.st_mtime_ns)


def first_non_finite(path: Path, header: Header) -> str | None:
    """The name of the first tensor with a NaN or an infinity; None if all numbers are finite."""
    with path.open("rb") as file:
        for name, tensor in header.tensors.items():
            file.seek(header.data_begins + tensor.begin)
            if not _finite(file, tensor):
                return name
    return None


def is_sound(path: Path) -> bool:
    """Whether a file exists, is complete, and has only finite numbers."""
    try:
        return first_non_finite(path, read_header(path)) is None
    except (BrokenFileError, OSError):
        return False


def rewrite_metadata(source: Path, target: Path, changes: Mapping[str, str]) -> None:
    """Copy a file with some metadata entries replaced. Tensors are copied byte for byte and flushed to disk."""
    metadata = {**read_header(source).metadata, **changes}
    _copy(source, target, lambda entries: {**entries, _METADATA: metadata})


def rename_tensors(source: Path, target: Path, names: Mapping[str, str]) -> None:
    """Copy a file with tensors renamed by `names` (old to new), byte for byte, and flush it to disk."""
    _copy(source, target, lambda entries: {names.get(name, name): entry for name, entry in entries.items()})


def _copy(source: Path, target: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Copy a file with a changed header."""
    with source.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = change(json.loads(file.read(length)))
        encoded = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)  # the format asks for data aligned to 8 bytes
        with target.open("xb") as out:
            out.write(len(encoded).to_bytes(8, "little"))
            out.write(encoded)
            while chunk := file.read(_CHUNK):
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())


def _tensor(name: str, entry: Any) -> Tensor:  # noqa: ANN401  any JSON value
    """Parse one header entry. Raises ValueError, TypeError or KeyError if it is invalid."""
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise TypeError(f"tensor {name} has no element type or shape")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)) or begin > end:
        raise ValueError(f"tensor {name} has an invalid shape or offset")
    if dtype in _ITEM_BYTES and end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise ValueError(f"tensor {name} has {end - begin} bytes, which does not match its shape")
    return Tensor(dtype=dtype, shape=tuple(shape), begin=begin, end=end)


def _finite(file: BinaryIO, tensor: Tensor) -> bool:
    exponent = _EXPONENT.get(tensor.dtype)
    if exponent is None:  # integers, booleans and fp8 cannot be judged by exponent bits alone
        return True
    width = _ITEM_BYTES[tensor.dtype]
    left = tensor.end - tensor.begin
    tables = [bytes((byte & mask) == mask for byte in range(256)) for _, mask in exponent]
    while left > 0:
        chunk = file.read(min(_CHUNK, left))
        if not chunk:
            return False
        left -= len(chunk)
        planes = [chunk[offset::width].translate(table) for (offset, _), table in zip(exponent, tables, strict=True)]
        if _any_all_set(planes):
            return False
    return True


def _any_all_set(planes: list[bytes]) -> bool:
    """Whether some position holds a one in every plane. For real weights the first plane is nearly always all zero."""
    first, *others = planes
    position = first.find(1)
    while position >= 0:
        if all(plane[position] for plane in others):
            return True
        position = first.find(1, position + 1)
    return False

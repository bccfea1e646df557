"""Small safetensors files, good and bad, written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8}


def file_bytes(tensors: Mapping[str, tuple[str, bytes]], metadata: Mapping[str, str] | None = None) -> bytes:
    """A file of one-dimensional tensors: name to element type and raw little-endian data."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata is not None else {}
    begin = 0
    for name, (dtype, raw) in tensors.items():
        entries[name] = {
            "dtype": dtype,
            "shape": [len(raw) // WIDTHS[dtype]],
            "data_offsets": [begin, begin + len(raw)],
        }
        begin += len(raw)
    return with_header(entries, b"".join(raw for _, raw in tensors.values()))


def with_header(entries: object, data: bytes = b"") -> bytes:
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + data


def write(path: Path, tensors: Mapping[str, tuple[str, bytes]], metadata: Mapping[str, str] | None = None) -> Path:
    path.write_bytes(file_bytes(tensors, metadata))
    return path

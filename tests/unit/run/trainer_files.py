"""What musubi-tuner writes, byte by byte as far as a supervisor looks: in pieces, between which a trainer may die."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path


def options_of(argv: Sequence[str]) -> dict[str, str]:
    found = {}
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word.startswith("--"):
            name, is_joined, value = word[2:].partition("=")
            found[name] = value if is_joined else following
    return found


def write_lora(path: Path, epoch: int, steps: int, in_all: int, *, value: float = 1.0) -> Iterator[None]:
    """`in_all` counts the epochs of all attempts."""
    metadata = {"ss_epoch": str(epoch), "ss_steps": str(steps), "in_all": str(in_all), "ss_output_name": "x"}
    yield from _in_pieces(path, safetensors(metadata, value))


def write_state(folder: Path, steps: int, epochs: int) -> Iterator[None]:
    """Its scheduler.bin holds the steps and epochs of all attempts as JSON."""
    folder.mkdir(exist_ok=True)
    yield
    yield from _in_pieces(folder / "model.safetensors", safetensors({}))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data", json.dumps([steps, epochs]))
    for name in ("optimizer.bin", "scheduler.bin", "scaler.pt", "random_states_0.pkl"):
        yield from _in_pieces(folder / name, buffer.getvalue())


def safetensors(metadata: dict[str, str], value: float = 1.0) -> bytes:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"__metadata__": metadata, "weight": entry}).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<2f", value, 2.0)


def _in_pieces(path: Path, data: bytes) -> Iterator[None]:
    path.write_bytes(data[: len(data) // 2])
    yield
    path.write_bytes(data)
    yield

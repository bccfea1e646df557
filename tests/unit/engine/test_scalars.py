"""Numbers of every step, read from TensorBoard files while they grow."""

from __future__ import annotations

import math
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_train.engine.scalars import Scalar, ScalarFollower

REAL = Path(__file__).parent / "samples" / "events.out.tfevents.real"
"""Written by torch.utils.tensorboard.SummaryWriter (torch 2.13, tensorboard 2.21)."""


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def record(tag: str, step: int, value: float) -> bytes:
    """One event: wall time, step, a summary with one value. Nobody checks the checksums."""
    entry = field(1, tag.encode()) + b"\x15" + struct.pack("<f", value)
    event = b"\x09" + struct.pack("<d", 1.7e9) + b"\x10" + varint(step) + field(5, field(1, entry))
    return struct.pack("<QI", len(event), 0) + event + bytes(4)


def follow(path: Path) -> list[Scalar]:
    return list(ScalarFollower(path).new_scalars())


def test_a_real_file(tmp_path: Path) -> None:
    (tmp_path / "network_train").mkdir()
    shutil.copy(REAL, tmp_path / "network_train" / "events.out.tfevents.1700000000.box")
    found = follow(tmp_path)
    current = {scalar.step: scalar.value for scalar in found if scalar.tag == "loss/current"}
    assert [*current] == [*range(1, 13), 300]
    assert current[4] == 0.25
    assert [step for step, value in current.items() if not math.isfinite(value)] == [7, 300]
    rates = [scalar.value for scalar in found if scalar.tag == "lr/unet"]
    assert rates == pytest.approx([2e-4 * (1 - step / 12) for step in range(1, 13)])
    assert [(s.step, s.value) for s in found if s.tag == "loss/epoch"] == [(2, 0.25)]


def test_a_real_file_byte_by_byte(tmp_path: Path) -> None:
    path, follower, data = tmp_path / "events.out.tfevents.1", ScalarFollower(tmp_path), REAL.read_bytes()
    found = []
    for end in range(0, len(data) + 1, 7):
        path.write_bytes(data[:end])
        found += follower.new_scalars()
    path.write_bytes(data)
    found += follower.new_scalars()
    whole = follow(tmp_path)
    assert [repr(scalar) for scalar in found] == [repr(scalar) for scalar in whole]


@given(
    st.lists(st.tuples(st.text(max_size=200), st.integers(0, 2**40), st.floats(width=32, allow_nan=False))),
    st.data(),
)
def test_whatever_was_written_is_read_once(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, int, float]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("events")
    path, follower = folder / "events.out.tfevents.1", ScalarFollower(folder)
    whole = b"".join(record(*entry) for entry in entries)
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    found = list(follower.new_scalars())
    path.write_bytes(whole)
    found += follower.new_scalars()
    assert [(scalar.tag, scalar.step, scalar.value) for scalar in found] == entries
    assert not list(follower.new_scalars())


@given(st.binary(max_size=300))
def test_any_bytes_are_survived(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("events")
    (folder / "events.out.tfevents.1").write_bytes(struct.pack("<QI", len(data), 0) + data + bytes(4))
    follow(folder)


def test_a_new_file_beside_the_old_one_is_read_too(tmp_path: Path) -> None:
    follower = ScalarFollower(tmp_path)
    assert not list(follower.new_scalars())
    (tmp_path / "events.out.tfevents.1").write_bytes(record("loss/current", 1, 0.5))
    (tmp_path / "events.out.tfevents.1.other").write_bytes(record("loss/current", 2, math.nan))
    (tmp_path / "notes.txt").write_text("no events")
    first, second = follower.new_scalars()
    assert (first.step, second.step) == (1, 2)
    assert math.isnan(second.value)

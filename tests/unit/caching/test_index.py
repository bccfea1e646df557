"""The index on disk, and hashes that are computed only when a file was touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_train.caching.index import (
    CacheFile,
    CacheIndex,
    Entry,
    Hasher,
    Source,
    index_file,
    model_identity,
    read_index,
    stamp,
    write_index,
)

LATER = 10**12


def known_after(path: Path, *, age_ns: int = 10**10) -> dict[str, Source]:
    """What a index knows of a file that was last changed that long before it was hashed."""
    hasher = Hasher({}, now_ns=stamp(path).newest_ns + age_ns)
    return {os.fspath(path): hasher.source(path)}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    picture = tmp_path / "p\udcff.png"
    picture.write_bytes(b"pixels")
    entries = {"p_0064x0064": Entry(made_from={"a": "b"}, files={"x": CacheFile(size=1, mtime_ns=2)}, begun="boot")}
    index = CacheIndex(entries=entries, sources=known_after(picture))
    path = index_file(tmp_path, "latents")
    write_index(path, index)
    assert read_index(path) == index
    assert path.name.startswith("."), "the trainer's patterns do not see it"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "1", '{"schema": 99}', '{"entries": [1]}', '{"sources": {"a": 1}}', "\0"]
)
def test_a_damaged_one_counts_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "index.json"
    path.write_text(text)
    assert read_index(path) == CacheIndex()


@given(st.binary(max_size=60), st.integers(0, 400))
def test_no_damage_is_worse_than_no_ledger(tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int) -> None:
    path = tmp_path_factory.mktemp("index") / "index.json"
    entry = Entry(made_from={"x": "y"}, files={"f": CacheFile(size=1, mtime_ns=2)})
    write_index(path, CacheIndex(entries={"a": entry}))
    data = path.read_bytes()
    path.write_bytes(data[:at] + junk + data[at + len(junk) :])
    assert isinstance(read_index(path), CacheIndex)


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    picture.write_bytes(b"pixels")
    known = known_after(picture)
    source = known[os.fspath(picture)]
    told = {os.fspath(picture): Source(stamp=source.stamp, sha256="as recorded", hashed_ns=source.hashed_ns)}
    assert Hasher(told, now_ns=LATER).source(picture).sha256 == "as recorded"


def test_a_file_that_was_fresh_when_it_was_hashed_is_read_again(tmp_path: Path) -> None:
    """Its time stamp may not tell a second change in the same tick."""
    picture = tmp_path / "p.png"
    picture.write_bytes(b"pixels")
    known = known_after(picture, age_ns=10**8)
    source = known[os.fspath(picture)]
    told = {os.fspath(picture): Source(stamp=source.stamp, sha256="as recorded", hashed_ns=source.hashed_ns)}
    assert Hasher(told, now_ns=LATER).source(picture).sha256 == source.sha256


def test_bytes_replaced_under_the_same_size_and_time_are_seen(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    picture.write_bytes(b"pixels")
    known = known_after(picture)
    times = picture.stat()
    picture.write_bytes(b"PIXELS")
    os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert Hasher(known, now_ns=LATER).source(picture).sha256 != known[os.fspath(picture)].sha256


def test_a_model_is_known_by_its_bytes_wherever_it_lies(tmp_path: Path) -> None:
    one, other = tmp_path / "a" / "vae.safetensors", tmp_path / "b" / "renamed"
    data = os.urandom(3_000_000)
    for path in (one, other):
        path.parent.mkdir()
        path.write_bytes(data)
    assert model_identity(one) == model_identity(other)
    other.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert model_identity(one) != model_identity(other)
    assert model_identity(Path("stand-in-vae")) == "stand-in-vae"

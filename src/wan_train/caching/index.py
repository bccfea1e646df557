"""The cache index: what each cache file was made from, so that only what changed is made again.

It is in the cache directory, under a name that no trainer reads. Each kind of cache has its own file, because latents
and text may be cached at the same time. The caches are always checked too: if an index is damaged or missing, they are
verified by their contents.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wan_train.base import codec
from wan_train.base.files import write_whole
from wan_train.base.host import without_garbage_collection

SCHEMA = 1
_CHUNK = 4 * 1024 * 1024
_SAMPLES = 16
_SAMPLE_BYTES = 64 * 1024
_SETTLED_NS = 2_000_000_000
"""A file that changed less than this before its hash was taken may change again with the same time stamp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What one stat call shows about a change. Times are in nanoseconds since 1970."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @property
    def newest_ns(self) -> int:
        return max(self.mtime_ns, self.ctime_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A picture or clip as it was when its bytes were last read."""

    stamp: Stamp
    sha256: str
    hashed_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFile:
    """A cache file as the index knows it."""

    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The caches of one item: `made_from` has everything they depend on, `files` has the caches by name.

    `begun` is the boot during which the trainer was started to make them. Its files are trusted only within that boot,
    since a machine that goes down may leave files of the right length without their contents.
    """

    made_from: Mapping[str, str]
    files: Mapping[str, CacheFile] = field(default_factory=dict)
    begun: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheIndex:
    """What is known about the caches of one kind in one folder. `entries` are by item, `sources` by path."""

    schema: int = SCHEMA
    entries: Mapping[str, Entry] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)


def index_file(cache_directory: Path, kind: str) -> Path:
    return cache_directory / f".wan-train-{kind}.json"


@without_garbage_collection()
def read_index(path: Path) -> CacheIndex:
    """The index; empty if it is missing, damaged, or of another schema."""
    index: CacheIndex | None = codec.read(path, CacheIndex)
    return index if index is not None and index.schema == SCHEMA else CacheIndex()


def write_index(path: Path, index: CacheIndex) -> None:
    write_whole(path, codec.to_json(index) + "\n", mode=0o644)


def stamp(path: Path) -> Stamp:
    """The stamp of a file; raises OSError. A folder of frames has the newest times and the sum of the frames' sizes."""
    found = path.stat()
    if not stat.S_ISDIR(found.st_mode):
        return _stamp_of(found)
    frames = [_stamp_of(file.stat()) for file in _frames(path)]
    return Stamp(
        size=sum(frame.size for frame in frames),
        mtime_ns=max([found.st_mtime_ns, *(frame.mtime_ns for frame in frames)]),
        ctime_ns=max([found.st_ctime_ns, *(frame.ctime_ns for frame in frames)]),
        inode=found.st_ino,
    )


class Hasher:
    """Hashes of pictures and clips; a file is read again only if it changed since it was last read."""

    def __init__(self, known: Mapping[str, Source], *, now_ns: int) -> None:
        self._known = known
        self._now = now_ns
        self.seen: dict[str, Source] = {}
        """Every requested file with its hash, for the next index."""
        self.stamps: dict[str, Stamp] = {}
        """The first stamp of every file, hashed or not."""

    def stamp(self, path: Path) -> Stamp:
        """The file's first stamp, without reading the file; raises OSError."""
        key = os.fspath(path)
        if (known := self.stamps.get(key)) is None:
            known = self.stamps[key] = stamp(path)
        return known

    def source(self, path: Path) -> Source:
        """The file's stamp and hash; raises OSError, also if the file changes while it is read."""
        key = os.fspath(path)
        if key in self.seen:
            return self.seen[key]
        now = self.stamp(path)
        known = self._known.get(key)
        if known is None or known.stamp != now or known.hashed_ns - now.newest_ns < _SETTLED_NS:
            known = Source(stamp=now, sha256=_sha256(path), hashed_ns=self._now)
            if stamp(path) != now:
                raise OSError(f"{path} is being written to")
        self.seen[key] = known
        return known


def text_hash(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", errors="surrogatepass") + b"\0")
    return digest.hexdigest()


def model_identity(path: Path) -> str:
    """A hash of a model file's size and samples of its bytes, whatever its path; its name if it cannot be read.

    Reading the whole file would take longer than caching two hundred pictures. Two different models differ in nearly
    every byte.
    """
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with path.open("rb") as file:
            for number in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    except OSError:
        return path.name
    return digest.hexdigest()


def _stamp_of(found: os.stat_result) -> Stamp:
    return Stamp(size=found.st_size, mtime_ns=found.st_mtime_ns, ctime_ns=found.st_ctime_ns, inode=found.st_ino)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for file in _frames(path) if path.is_dir() else [path]:
        with file.open("rb", buffering=0) as opened:
            while chunk := opened.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _frames(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())

"""One lock file per cache directory: runs that train from it share the lock, a run that changes it holds it alone.

The files are beside the GPU leases. A lock ends with the last process that has its descriptor, so a crash leaves no
stale lock. The text in a file only says who holds it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from wan_train.base import locks
from wan_train.base.text import one_line

_MAX_TEXT = 64 * 1024


class Access(StrEnum):
    """What a run may do in its cache directories."""

    READ = "read"
    CHANGE = "change"


class CacheLock:
    """The locks of one run on all its cache directories, taken and released together."""

    def __init__(self, directory: Path, run_id: str, folders: Iterable[Path]) -> None:
        """`directory` is shared by all users of this machine; see `base.locks.prepare`."""
        self.access: Access | None = None
        self._directory = directory
        self._run_id = one_line(run_id)
        # Sorted and by real path, so that a folder with two names is locked once.
        digests = {hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:32] for folder in folders}
        self._files = tuple(directory / f"caches-{digest}.lock" for digest in sorted(digests))
        self._descriptors: tuple[int, ...] = ()

    def take(self, access: Access) -> bool:
        """Take the lock of every folder without waiting; False if another run holds one.

        Call it only while nothing is held: flock cannot convert a lock to the other kind without a gap.
        """
        assert self.access is None, "release it first"
        locks.prepare(self._directory)
        taken: list[int] = []
        for path in self._files:
            descriptor = _lock(path, access)
            if descriptor is None:
                for each in taken:
                    os.close(each)
                return False
            taken.append(descriptor)
        for descriptor in taken:
            _sign(descriptor, f"{os.getpid()} {self._run_id}", access)
        self._descriptors, self.access = tuple(taken), access
        return True

    def release(self) -> None:
        """Close our copies; processes that inherited the lock keep it."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors, self.access = (), None

    def inherit(self) -> tuple[int, ...]:
        """Descriptors that keep the lock for as long as a process has them open."""
        return self._descriptors

    def other_runs(self) -> tuple[str, ...]:
        """IDs of the other runs that took a lock since its last exclusive holder, if their supervisor is running."""
        found: dict[str, None] = {}
        for path in self._files:
            with suppress(OSError):
                for line in path.read_bytes()[:_MAX_TEXT].decode(errors="replace").splitlines():
                    pid, _, run_id = line.partition(" ")
                    if run_id and run_id != self._run_id and pid.isdigit() and Path("/proc", pid).exists():
                        found[one_line(run_id)] = None
        return tuple(found)


def _lock(path: Path, access: Access) -> int | None:
    while True:
        descriptor = locks.open_or_create(path)
        if not locks.try_once(descriptor, path, shared=access is Access.READ):
            os.close(descriptor)
            return None
        if locks.is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # a cleaner of temporary files removed it between our open and our lock


def _sign(descriptor: int, text: str, access: Access) -> None:
    """Write the holder: a reader adds a line, an exclusive holder replaces all lines."""
    match access:
        case Access.CHANGE:
            locks.write(descriptor, text)
        case Access.READ:
            with suppress(OSError):  # a full disk: the text only informs, so the lock is enough
                os.pwrite(descriptor, f"{text}\n".encode(), os.fstat(descriptor).st_size)

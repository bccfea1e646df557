"""Who on this box changes a cache directory, and who trains from it.

Two locks, both of the lease kind, so that they end with their holders. Whoever looks at caches in order to remove or
make some holds the writing lock of those folders. Whoever trains from them holds a reading lock of its own run from the
moment its caches were found right until the run is over; it is taken only under the writing lock, and nobody changes a
folder that another run reads.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from wan_train.base.clock import Clock
from wan_train.gpu.leases import Lease, LeaseHolder, LeaseRoom


class CacheLocks:
    """The locks of one run on cache directories."""

    def __init__(self, room: LeaseRoom, run_id: str, clock: Clock, folders: Iterable[Path]) -> None:
        self._room = room
        self._run_id = run_id
        self._mine = hashlib.sha256(run_id.encode(errors="surrogateescape")).hexdigest()[:16]
        self._clock = clock
        self._folders = tuple(folders)
        self._writing: list[Lease] | None = None
        self._reading: list[Lease] | None = None

    def write(self, step: str) -> bool:
        """Take the writing lock if it is not held yet; False when another run has it.

        Two caching processes in one folder read each other's half-written files (seen with the real one).
        """
        if self._writing is None:
            self._writing = self._take(f"{_WRITING}-{{}}", step)
        return self._writing is not None

    def done_writing(self) -> None:
        """Let others write; attempts that inherited the lock keep it until they are over."""
        for lease in self._writing or ():
            lease.release()
        self._writing = None

    def read(self, step: str) -> None:
        """Take the reading lock if it is not held yet. Call it only while the writing lock is held.

        Where a trainer of this run that outlived its supervisor holds it, nothing is taken.
        """
        if self._reading is None:
            self._reading = self._take(f"{_READING}-{{}}-{self._mine}", step)

    @property
    def is_reading(self) -> bool:
        return self._reading is not None

    def done_reading(self) -> None:
        for lease in self._reading or ():
            self._room.forget(lease)
        self._reading = None

    def inherit_writing(self) -> tuple[int, ...]:
        """Descriptors that keep the writing lock for as long as an attempt's processes live."""
        return tuple(lease.fileno() for lease in self._writing or ())

    def inherit_reading(self) -> tuple[int, ...]:
        return tuple(lease.fileno() for lease in self._reading or ())

    def other_readers(self) -> tuple[str, ...]:
        """The other runs that train from one of the folders, or are about to."""
        found = [
            holder
            for folder in self._folders
            for name, holder in self._room.holders(f"{_READING}-{_digest(folder)}-")
            if not name.endswith(f"-{self._mine}")
        ]
        return tuple(dict.fromkeys(holder.run_id or f"pid {holder.pid}" for holder in found))

    def close(self, *, is_over: bool) -> None:
        """Let go of everything. Of a run that is not over, trainers may still live that inherited a lock."""
        self.done_writing()
        if is_over:
            self.done_reading()
        for lease in self._reading or ():
            lease.release()

    def _take(self, pattern: str, step: str) -> list[Lease] | None:
        holder = LeaseHolder(pid=os.getpid(), run_id=self._run_id, step=step, since=self._clock.now())
        with ExitStack() as on_the_way_out:
            taken: list[Lease] = []
            for folder in self._folders:
                lease = self._room.try_take(pattern.format(_digest(folder)), holder)
                if lease is None:
                    return None
                on_the_way_out.callback(lease.release)
                taken.append(lease)
            on_the_way_out.pop_all()
            return taken


_WRITING = "caches-write"
_READING = "caches-read"


def _digest(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:32]

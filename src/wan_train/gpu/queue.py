"""The queue of runs that wait for GPUs. A ticket is a file that counts while its owner keeps it locked.

The queue only provides fairness. The leases ensure that no two runs hold one GPU.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from wan_train.base import locks
from wan_train.base.errors import NotReadyError

QUEUE = "queue"

_DIGITS = 20
_NAME = re.compile(rf"(\d{{{_DIGITS}}}-.+)\.ticket", re.ASCII)
_SWEEP_AFTER_SECONDS = 24 * 3600


class Ticket:
    """One run's place in the queue. It never holds a GPU."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """`descriptor`: the open, unlocked file at `path`."""
        self.path = path
        self._descriptor: int | None = descriptor

    @property
    def name(self) -> str:
        """The queue's sort key."""
        return self.path.name.removesuffix(".ticket")

    def want(self, uuids: Iterable[str]) -> None:
        """Request these GPUs instead of those requested before. Raises ValueError after close."""
        text = json.dumps(sorted(set(uuids)))
        while True:
            descriptor = self._open()
            # Write the text before locking, so that it is there when others see the lock.
            locks.write(descriptor, text)
            # False means that another process of the same run already holds this place, which is just as good.
            locks.try_exclusive(descriptor, self.path)
            if locks.is_at(descriptor, self.path):
                return
            # Removed meanwhile: no other process would see a lock on the deleted file.
            self._descriptor = None
            os.close(descriptor)
            self._descriptor = locks.open_or_create(self.path)

    def rest(self) -> None:
        """Stay in the queue but request nothing. Raises ValueError after close."""
        locks.unlock(self._open())

    def close(self) -> None:
        """Leave the queue and delete the file. May be called twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        if locks.is_at(descriptor, self.path):
            self.path.unlink(missing_ok=True)
        os.close(descriptor)

    def _open(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"the ticket {self.name} was closed")
        return self._descriptor


def open_ticket(directory: Path, order: int, run_id: str) -> Ticket:
    """The ticket of this run, created if missing. Raises ValueError and NotReadyError."""
    if not 0 <= order < 10**_DIGITS:
        raise ValueError(f"order {order} does not fit into {_DIGITS} digits")
    path = directory / f"{order:0{_DIGITS}d}-{locks.safe_name(run_id)}.ticket"
    return Ticket(path, locks.open_or_create(path))


def older_wants(directory: Path, uuid: str, ticket: Ticket) -> bool:
    """Whether a live ticket before this one requests the GPU. Deletes dead tickets older than a day."""
    for path in _before(directory, ticket):
        try:
            descriptor = locks.open_existing(path)
        except NotReadyError:
            continue  # Not one of our tickets; one odd file must not block the queue for everyone.
        if descriptor is None:
            continue
        try:
            if not locks.is_held(descriptor, path):
                _sweep(descriptor, path)
            elif _wants(descriptor, uuid):
                return True
        finally:
            os.close(descriptor)
    return False


def _before(directory: Path, ticket: Ticket) -> Iterator[Path]:
    try:
        names = [path.name for path in directory.iterdir()]
    except FileNotFoundError:
        return
    for name in sorted(names):
        match = _NAME.fullmatch(name)
        if match is not None and match[1] < ticket.name:
            yield directory / name


def _wants(descriptor: int, uuid: str) -> bool:
    try:
        wanted = json.loads(locks.read(descriptor))
    except (ValueError, RecursionError):
        return True  # Incomplete: its owner is writing. Let it go first this time.
    return isinstance(wanted, list) and uuid in wanted


def _sweep(descriptor: int, path: Path) -> None:
    def is_old() -> bool:
        return time.time() - os.fstat(descriptor).st_mtime >= _SWEEP_AFTER_SECONDS

    # Check again under the lock: an owner that wakes now renews the file first and checks that it exists last.
    if is_old() and locks.try_exclusive(descriptor, path) and is_old() and locks.is_at(descriptor, path):
        with suppress(PermissionError):  # Another user's ticket: in a sticky directory only its owner can delete it.
            path.unlink(missing_ok=True)

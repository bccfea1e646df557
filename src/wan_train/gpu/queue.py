"""The line in which runs wait for GPUs: a ticket is a file that counts while its owner keeps it locked.

This is fairness and nothing else. That no two runs hold one GPU is the leases' business.
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
    """One run's place in line. It never holds a GPU."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """`descriptor`: the open, unlocked file at `path`."""
        self.path = path
        self._descriptor: int | None = descriptor

    @property
    def name(self) -> str:
        """What the line is sorted by."""
        return self.path.name.removesuffix(".ticket")

    def want(self, uuids: Iterable[str]) -> None:
        """Ask for these GPUs, in place of those asked for before. Raises ValueError after close."""
        text = json.dumps(sorted(set(uuids)))
        while True:
            descriptor = self._open()
            # Text before lock: whoever sees the lock then sees what it is for.
            locks.write(descriptor, text)
            # False means that another process of the same run is in this place already, which is as good.
            locks.try_exclusive(descriptor, self.path)
            if locks.is_at(descriptor, self.path):
                return
            # Removed meanwhile: no other process would see a lock on the deleted file.
            self._descriptor = None
            os.close(descriptor)
            self._descriptor = locks.open_or_create(self.path)

    def rest(self) -> None:
        """Stay in line but ask for nothing. Raises ValueError after close."""
        locks.unlock(self._open())

    def close(self) -> None:
        """Leave the line and take the file away. May be called twice."""
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
    """The ticket of this run, made if need be. Raises ValueError and NotReadyError."""
    if not 0 <= order < 10**_DIGITS:
        raise ValueError(f"order {order} does not fit into {_DIGITS} digits")
    path = directory / f"{order:0{_DIGITS}d}-{locks.safe_name(run_id)}.ticket"
    return Ticket(path, locks.open_or_create(path))


def older_wants(directory: Path, uuid: str, ticket: Ticket) -> bool:
    """Whether a ticket before this one is alive and asks for the GPU; sweeps the dead ones of past days."""
    for path in _before(directory, ticket):
        try:
            descriptor = locks.open_existing(path)
        except NotReadyError:
            continue  # Not a ticket of ours; one odd file must not stop the line for everybody.
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
        return True  # Torn: its owner is writing. Let it go first this once.
    return isinstance(wanted, list) and uuid in wanted


def _sweep(descriptor: int, path: Path) -> None:
    def is_old() -> bool:
        return time.time() - os.fstat(descriptor).st_mtime >= _SWEEP_AFTER_SECONDS

    # Looked at again under the lock: an owner who wakes now renews it first and looks for its file last.
    if is_old() and locks.try_exclusive(descriptor, path) and is_old() and locks.is_at(descriptor, path):
        with suppress(PermissionError):  # Another user's; the sticky directory leaves it to them.
            path.unlink(missing_ok=True)

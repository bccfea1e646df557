"""GPU leases: one flock for each GPU, in a directory that all users share.

A lease is the lock, not the file. It ends with its last holder, so none is stale after a crash or a reboot.
The file's content only shows people who holds it. Lock files of GPUs are never deleted: one process could
still hold the lock of the deleted file while another locks a new one.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from wan_train.base import locks
from wan_train.gpu.queue import QUEUE, Ticket, older_wants, open_ticket

_ENDING = ".lease"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseHolder:
    """Who holds a lease, as the holder wrote it. None: missing or unreadable."""

    pid: int | None = None
    run_id: str | None = None
    step: str | None = None
    since: float | None = None
    """Unix seconds."""


class Lease:
    """One GPU, held until the last copy of its descriptor is closed. As a context manager, it releases itself."""

    def __init__(self, uuid: str, descriptor: int) -> None:
        """`descriptor`: an open file that holds the lock."""
        self.uuid = uuid
        self._descriptor: int | None = descriptor

    def fileno(self) -> int:
        """The descriptor that holds the lock. A child that inherits it through `pass_fds` keeps the lock.

        Raises:
            ValueError: the lease was released.
        """
        if self._descriptor is None:
            raise ValueError(f"the lease of {self.uuid} was released")
        return self._descriptor

    def rewrite(self, holder: LeaseHolder) -> None:
        """Update the holder shown to others. On a full disk the old text stays; the lock is not affected."""
        locks.write(self.fileno(), _dump(holder))

    def release(self) -> None:
        """Close our copy; an inheriting child keeps the lock. May be called twice."""
        # Not LOCK_UN: that would unlock the open file that the child shares with us.
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class LeaseRoom:
    """The leases and the queue of this box.

    Every method may raise NotReadyError if the directory is unusable or unsafe.
    """

    def __init__(self, directory: Path) -> None:
        """`directory` is created with mode 1777 at the first use. It must be on a local disk."""
        self.directory = directory

    def try_take(self, uuid: str, holder: LeaseHolder) -> Lease | None:
        """The lease of this GPU, or None if another process holds it. Does not wait."""
        locks.prepare(self.directory)
        path = self._path(uuid)
        while True:
            with ExitStack() as on_the_way_out:
                descriptor = locks.open_or_create(path)
                on_the_way_out.callback(os.close, descriptor)
                if not locks.try_exclusive(descriptor, path):
                    return None
                if locks.is_at(descriptor, path):
                    locks.write(descriptor, _dump(holder))
                    on_the_way_out.pop_all()  # the lease closes it
                    return Lease(uuid, descriptor)
            # A cleaner of temporary files deleted it between our open and our lock: lock the new one.

    def holder(self, uuid: str) -> LeaseHolder | None:
        """Who holds this GPU now; None if it is free. Unreadable text gives a LeaseHolder of Nones.

        A new holder locks first and writes then, so the text may briefly be the previous holder's.
        """
        path = self._path(uuid)
        descriptor = locks.open_existing(path)
        if descriptor is None:
            return None
        try:
            return _load(locks.read(descriptor)) if locks.is_held(descriptor, path) else None
        finally:
            os.close(descriptor)

    def holders(self, prefix: str) -> list[tuple[str, LeaseHolder]]:
        """All leases held now whose name begins with `prefix` (letters, digits and dashes), sorted by name."""
        names = sorted(path.name.removesuffix(_ENDING) for path in self.directory.glob(f"{prefix}*{_ENDING}"))
        return [(name, holder) for name in names if (holder := self.holder(name)) is not None]

    def forget(self, lease: Lease) -> None:
        """Release a lease and delete its file. Only for names that no other process takes."""
        self._path(lease.uuid).unlink(missing_ok=True)
        lease.release()

    def ticket(self, order: int, run_id: str) -> Ticket:
        """A place in the queue that requests no GPU yet.

        A lower `order` (such as the run's start in nanoseconds) goes first; ties are sorted by `run_id`. After
        a restart the same two values give the same place.

        Raises:
            ValueError: `order` is negative or has more than 20 digits.
        """
        locks.prepare(self.directory)
        locks.prepare(self.directory / QUEUE)
        return open_ticket(self.directory / QUEUE, order, run_id)

    def first_in_line(self, uuid: str, ticket: Ticket) -> bool:
        """Whether no older ticket requests this GPU. This is only fairness; the lease prevents double use."""
        return not older_wants(self.directory / QUEUE, uuid, ticket)

    def _path(self, uuid: str) -> Path:
        return self.directory / f"{locks.safe_name(uuid)}{_ENDING}"


def _dump(holder: LeaseHolder) -> str:
    since = None if holder.since is None else float(holder.since)
    return json.dumps({"pid": holder.pid, "run_id": holder.run_id, "step": holder.step, "since": since})


def _load(text: str) -> LeaseHolder:
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return LeaseHolder()
    if not isinstance(told, dict):
        return LeaseHolder()
    pid, run_id, step, since = (told.get(key) for key in ("pid", "run_id", "step", "since"))
    # Anyone on the box can write this file, so check the type of each value.
    return LeaseHolder(
        pid=pid if type(pid) is int else None,
        run_id=run_id if isinstance(run_id, str) else None,
        step=step if isinstance(step, str) else None,
        since=since if isinstance(since, float) else None,
    )

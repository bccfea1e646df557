"""GPU leases: one flock for each GPU, in a directory that all users share.

A lease is the lock, never the file: it dies with its last holder, so nothing is stale after a crash or a
reboot. The file's content only tells people who holds it. Lock files are never unlinked: whoever held the
old file and whoever creates the new one would both hold "the" lock.
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
    """Who holds a lease, by its own account. None: it has not said so, or not legibly."""

    pid: int | None = None
    run_id: str | None = None
    step: str | None = None
    since: float | None = None
    """Unix seconds."""


class Lease:
    """One GPU, held until the last copy of its descriptor is closed; a context manager that releases it."""

    def __init__(self, uuid: str, descriptor: int) -> None:
        """`descriptor`: an open file that holds the lock."""
        self.uuid = uuid
        self._descriptor: int | None = descriptor

    def fileno(self) -> int:
        """The descriptor that carries the lock; a child that gets it through `pass_fds` keeps the lock.

        Raises:
            ValueError: the lease was released.
        """
        if self._descriptor is None:
            raise ValueError(f"the lease of {self.uuid} was released")
        return self._descriptor

    def rewrite(self, holder: LeaseHolder) -> None:
        """Tell others who holds it now. On a full disk the text stays as it was, and the lock holds."""
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

    Every method may raise NotReadyError when the directory cannot be used or is not to be trusted.
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
            # A cleaner of temporary files took it away between our open and our lock: lock the new one.

    def holder(self, uuid: str) -> LeaseHolder | None:
        """Who holds this GPU now, None when it is free. Whose text is torn is a LeaseHolder of Nones.

        For the instant between a lock and the text that follows it, the text is the previous holder's.
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
        """Everything held now whose name begins with `prefix` (letters, digits and dashes), by name."""
        names = sorted(path.name.removesuffix(_ENDING) for path in self.directory.glob(f"{prefix}*{_ENDING}"))
        return [(name, holder) for name in names if (holder := self.holder(name)) is not None]

    def forget(self, lease: Lease) -> None:
        """Release a lease and remove its file; only for names that only this process takes."""
        self._path(lease.uuid).unlink(missing_ok=True)
        lease.release()

    def ticket(self, order: int, run_id: str) -> Ticket:
        """A place in line that asks for nothing yet.

        A lower `order` (say, the run's start in nanoseconds) goes first; equal ones go by `run_id`. The
        same two name the same place again after a restart.

        Raises:
            ValueError: `order` is negative or has more than 20 digits.
        """
        locks.prepare(self.directory)
        locks.prepare(self.directory / QUEUE)
        return open_ticket(self.directory / QUEUE, order, run_id)

    def first_in_line(self, uuid: str, ticket: Ticket) -> bool:
        """Whether no older ticket asks for this GPU. Fairness only: the lease keeps two from one GPU."""
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
    # Anybody on the box may write this file, so each value is taken only if it is what it should be.
    return LeaseHolder(
        pid=pid if type(pid) is int else None,
        run_id=run_id if isinstance(run_id, str) else None,
        step=step if isinstance(step, str) else None,
        since=since if isinstance(since, float) else None,
    )

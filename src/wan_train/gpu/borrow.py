"""Lease one free GPU, in queue order, for a program that is not a run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

from wan_train.base.errors import NotReadyError
from wan_train.base.text import one_line
from wan_train.gpu.free import QUIET_READINGS, why_busy
from wan_train.gpu.leases import Lease, LeaseHolder, LeaseRoom
from wan_train.gpu.model import Gpu, GpuProbe, GpuReading

_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Borrower:
    """Who wants a GPU, as shown to others: its name, such as `wan-train tune`, and its step, `tune`."""

    name: str
    step: str


@contextmanager
def leased(
    gpus: Sequence[Gpu],
    room: LeaseRoom,
    probe: Callable[[], GpuProbe],
    *,
    borrower: Borrower,
    settle_seconds: float,
    waiting: Callable[[str], None] | None = None,
) -> Iterator[tuple[Gpu, Lease]]:
    """Lease the first free GPU.

    With `waiting`, queue until a GPU is free. `waiting` gets the use of each GPU every second and may raise to end the
    wait. Without it, raise NotReadyError with the same text. Raises GpuUnavailableError.
    """
    now = time.time()
    order = f"{borrower.step}-{os.getpid()}"
    with closing(room.ticket(int(now * 1e9), order)) as ticket, closing(probe()) as reader:
        while True:
            busy: list[str] = []
            for gpu in gpus:
                lease, why = None, _holder(gpu, room)
                if why is None and not room.first_in_line(gpu.uuid, ticket):
                    why = f"GPU {gpu.number} is wanted by a waiting run"
                if why is None:
                    pause = partial(time.sleep, settle_seconds)
                    lease, why = take(gpu, room, borrower, read=reader.read, pause=pause)
                if lease is not None:
                    ticket.rest()
                    with lease:
                        yield gpu, lease
                    return
                busy.append(why or "")
            if waiting is None:
                break
            ticket.want(gpu.uuid for gpu in gpus)
            waiting("; ".join(busy))
            time.sleep(_PAUSE_SECONDS)
    raise NotReadyError(
        f"there is no free GPU: {'; '.join(busy)}",
        hint="Wait until it is free. What runs there: `wan-train runs`, and `nvidia-smi` for other programs.",
    )


def _holder(gpu: Gpu, room: LeaseRoom) -> str | None:
    """Which wan-train program holds a GPU, in words; None if none does."""
    holder = room.holder(gpu.uuid)
    return (
        None
        if holder is None
        else f"GPU {gpu.number} is in use by {one_line(holder.run_id or 'another wan-train program')}"
    )


def take(
    gpu: Gpu, room: LeaseRoom, borrower: Borrower, *, read: Callable[[], GpuReading], pause: Callable[[], None]
) -> tuple[Lease | None, str | None]:
    """The lease of a GPU that is idle in two readings with a pause between, or why there is none.

    Raises GpuUnavailableError and whatever `pause` raises.
    """
    lease = room.try_take(
        gpu.uuid, LeaseHolder(pid=os.getpid(), run_id=borrower.name, step=borrower.step, since=time.time())
    )
    if lease is None:
        return None, _holder(gpu, room) or f"GPU {gpu.number} is in use by another wan-train program"
    try:
        for number in range(QUIET_READINGS):
            if number:
                pause()
            found = next((each for each in read().gpus if each.uuid == gpu.uuid), None)
            why = why_busy(found) if found is not None else f"GPU {gpu.number} is lost"
            if why is not None:
                lease.release()
                return None, why
    except BaseException:
        lease.release()
        raise
    return lease, None

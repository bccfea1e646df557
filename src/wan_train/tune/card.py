"""The card to measure on: free, first in line, leased for as long as the candidates take."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

from wan_train.base.errors import NotReadyError
from wan_train.base.text import one_line
from wan_train.gpu.free import QUIET_READINGS, why_busy
from wan_train.gpu.leases import Lease, LeaseHolder, LeaseRoom
from wan_train.gpu.model import Gpu, GpuProbe

HOLDER = "wan-train tune"
"""How others name who has the card."""


@contextmanager
def leased(
    gpus: Sequence[Gpu], room: LeaseRoom, probe: Callable[[], GpuProbe], *, settle_seconds: float
) -> Iterator[tuple[Gpu, Lease]]:
    """The first of the cards that is free, leased. It does not wait for one.

    Raises NotReadyError that says what each card is used for, and GpuUnavailableError.
    """
    now = time.time()
    busy: list[str] = []
    with closing(room.ticket(int(now * 1e9), f"tune-{os.getpid()}")) as ticket, closing(probe()) as reader:
        for gpu in gpus:
            lease, why = None, _holder(gpu, room)
            if why is None and not room.first_in_line(gpu.uuid, ticket):
                why = f"GPU {gpu.number} is wanted by a waiting run"
            if why is None:
                lease, why = _take(gpu, room, reader, settle_seconds)
            if lease is not None:
                with lease:
                    yield gpu, lease
                return
            busy.append(why or "")
    raise NotReadyError(
        f"there is no free GPU to measure on: {'; '.join(busy)}",
        hint="Wait until it is free. What runs there: `wan-train runs`, and `nvidia-smi` for other programs.",
    )


def _holder(gpu: Gpu, room: LeaseRoom) -> str | None:
    """Who of wan-train holds a card, in words; None when nobody does."""
    holder = room.holder(gpu.uuid)
    return None if holder is None else f"GPU {gpu.number} is taken by {one_line(holder.run_id or 'another wan-train')}"


def _take(gpu: Gpu, room: LeaseRoom, probe: GpuProbe, settle_seconds: float) -> tuple[Lease | None, str | None]:
    """The lease, or why the card cannot be had."""
    lease = room.try_take(gpu.uuid, LeaseHolder(pid=os.getpid(), run_id=HOLDER, step="tune", since=time.time()))
    if lease is None:
        return None, _holder(gpu, room) or f"GPU {gpu.number} is taken by another wan-train"
    try:
        for number in range(QUIET_READINGS):
            if number:
                time.sleep(settle_seconds)
            reading = probe.read()
            found = next((each for each in reading.gpus if each.uuid == gpu.uuid), None)
            why = why_busy(found) if found is not None else f"GPU {gpu.number} is lost"
            if why is not None:
                lease.release()
                return None, why
    except BaseException:
        lease.release()
        raise
    return lease, None

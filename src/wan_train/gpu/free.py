"""When a GPU counts as free: pure functions over readings."""

from __future__ import annotations

from collections.abc import Mapping

from wan_train.base.units import GIB, MIB
from wan_train.gpu.model import Gpu, GpuReading

QUIET_BELOW_BYTES = GIB + 256 * MIB
"""A GPU with less memory in use is idle. Older drivers count their own reserve (0.3 to 0.7 GiB), and a desktop
takes about 0.3 GiB. A trainer of a 14B model holds more than 10 GiB."""

QUIET_READINGS = 2
"""One reading may fall between a job's start and its first allocation."""


def observe(previous: Mapping[str, int], reading: GpuReading) -> Mapping[str, int]:
    """Consecutive quiet readings for each UUID in `reading`. Other GPUs are dropped."""
    return {gpu.uuid: previous.get(gpu.uuid, 0) + 1 if why_busy(gpu) is None else 0 for gpu in reading.gpus}


def is_free(counts: Mapping[str, int], uuid: str) -> bool:
    """Whether `uuid` was quiet often enough in a row. Does not check leases."""
    return counts.get(uuid, 0) >= QUIET_READINGS


def why_busy(gpu: Gpu) -> str | None:
    """What occupies the GPU, for people, or None when it is quiet.

    Listed processes count whatever their pid: in a container they belong to the host and cannot be looked up.
    If `pids` is None, memory alone decides.
    """
    pids = gpu.pids or ()
    if gpu.used_bytes < QUIET_BELOW_BYTES and not pids:
        return None
    reason = f"GPU {gpu.number}: {gpu.used_bytes / GIB:.1f} of {gpu.total_bytes / GIB:.1f} GiB in use"
    if not pids:
        return reason
    noun, label = ("process", "pid") if len(pids) == 1 else ("processes", "pids")
    return f"{reason}, {len(pids)} {noun} ({label} {', '.join(map(str, pids))})"

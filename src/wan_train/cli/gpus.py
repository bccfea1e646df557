"""The GPUs as they are at this moment, for the summary before a run."""

from __future__ import annotations

from collections.abc import Sequence

from wan_train.base.settings import Settings
from wan_train.gpu.free import why_busy
from wan_train.gpu.leases import LeaseRoom
from wan_train.gpu.model import Gpu
from wan_train.run.gpu_pool import gpu_label
from wan_train.run.plan import Devices
from wan_train.views.model import GpuNow


def gpus_now(gpus: Sequence[Gpu], devices: Devices, settings: Settings) -> list[GpuNow]:
    room = LeaseRoom(settings.lease_dir)
    return [
        GpuNow(
            label=gpu_label(gpu, devices),
            name=gpu.name,
            used_bytes=gpu.used_bytes,
            total_bytes=gpu.total_bytes,
            busy_because=_busy(gpu, room),
        )
        for gpu in gpus
    ]


def _busy(gpu: Gpu, room: LeaseRoom) -> str | None:
    holder = room.holder(gpu.uuid)
    if holder is not None:
        return f"taken by run {holder.run_id}" if holder.run_id else "taken by another wan-train"
    return why_busy(gpu)

"""The GPUs of one run: the driver's readings, our leases, our place in the queue."""

from __future__ import annotations

import os
from contextlib import ExitStack

from wan_train.base.clock import Clock, backoff
from wan_train.gpu import free
from wan_train.gpu.choose import choose_again
from wan_train.gpu.leases import Lease, LeaseHolder, LeaseRoom
from wan_train.gpu.model import Gpu, GpuProbe, GpuReading, GpuUnavailableError, LostGpu
from wan_train.run.events import GpusChosen
from wan_train.run.plan import Devices, Plan
from wan_train.run.scheduler import GpuView

_FIRST_PAUSE_SECONDS = 2.0
_LONGEST_PAUSE_SECONDS = 60.0


class GpuPool:
    """Reads GPUs and holds leases for one run; decides nothing."""

    def __init__(
        self,
        plan: Plan,
        probe: GpuProbe,
        room: LeaseRoom,
        clock: Clock,
        *,
        chosen: tuple[str, ...] | None = None,
        named: bool = False,
        visible: str | None = None,
    ) -> None:
        """`chosen` GPUs replace the plan's; `named`: the user named them; `visible` is CUDA_VISIBLE_DEVICES."""
        self._plan = plan
        self._uses = chosen or plan.gpu_uuids
        self._named = named or plan.gpus_named
        self._visible = visible
        self._is_settled = False
        self._probe = probe
        self._room = room
        self._clock = clock
        self._quiet: dict[str, int] = {}
        self._leases: dict[str, Lease] = {}
        # The order is the run's creation in nanoseconds, so a run keeps its place in line when its supervisor restarts.
        self._ticket = room.ticket(int(plan.created * 1e9), plan.run_id)
        self._wanting: frozenset[str] | None = None
        self._next_read = 0.0
        self._failures = 0
        self.gpus: tuple[Gpu, ...] = ()
        self.lost: tuple[LostGpu, ...] = ()
        self.problem: str | None = None
        self.driver: str | None = None
        self._moved: GpusChosen | None = None

    def look(self, *, wanting: bool) -> tuple[GpuView, ...]:
        """Return a view of every GPU this run may use; `wanting` says whether a step waits for one now.

        While the driver does not answer, it is queried less and less often: each query may take its whole timeout.
        """
        if self._clock.monotonic() >= self._next_read:
            self._read()
        self._stand_in_line(frozenset(gpu.uuid for gpu in self.gpus) if wanting else frozenset())
        return tuple(self._view(gpu) for gpu in self.gpus)

    def _read(self) -> None:
        try:
            reading = self._probe.read()
            if not self._is_settled:
                self._settle(reading)
            self.gpus = tuple(gpu for gpu in reading.gpus if gpu.uuid in self._uses)
            self.lost = reading.lost
            self.driver = reading.driver
            self.problem = "; ".join(f"GPU {lost.index}: {lost.reason}" for lost in reading.lost) or None
            self._quiet = dict(free.observe(self._quiet, reading))
            self._failures = 0
        except GpuUnavailableError as error:
            self.gpus, self.problem = (), error.message
            self._quiet = {}
            self._failures += 1
            pause = backoff(self._failures, first=_FIRST_PAUSE_SECONDS, longest=_LONGEST_PAUSE_SECONDS)
            self._next_read = self._clock.monotonic() + pause

    def _settle(self, reading: GpuReading) -> None:
        """Replace missing GPUs, once per supervisor: GPUs only change if the box restarts, and that ends it."""
        self._is_settled = bool(reading.gpus) and not reading.lost
        again = choose_again(reading, self._uses, self._visible, keep_number=self._named)
        if again is not None:
            self._uses = tuple(gpu.uuid for gpu in again)
            self._moved = self._choice(again, asked=False)

    def choose(self, uuids: tuple[str, ...]) -> GpusChosen:
        """Use these GPUs, which the user named."""
        self._uses = uuids
        self._read()
        return self._choice(self.gpus, asked=True)

    def take_moved(self) -> GpusChosen | None:
        """Return once, after a reading showed it, the GPUs used in place of those this box lacks."""
        moved, self._moved = self._moved, None
        return moved

    def _choice(self, gpus: tuple[Gpu, ...], *, asked: bool) -> GpusChosen:
        labels = tuple(gpu_label(gpu, self._plan.devices) for gpu in gpus)
        return GpusChosen(at=self._clock.now(), gpu_uuids=self._uses, labels=labels, asked=asked)

    def claim(self, uuid: str) -> bool:
        """Take the lease; False if another process was faster. The GPU is checked again afterwards."""
        lease = self._room.try_take(uuid, self._holder(None))
        if lease is None:
            return False
        self._leases[uuid] = lease
        self._quiet[uuid] = 0
        return True

    def release(self, uuid: str) -> None:
        lease = self._leases.pop(uuid, None)
        if lease is not None:
            lease.release()

    def inherit(self, uuid: str, step: str) -> tuple[int, ...]:
        """Return the descriptors that keep the GPU leased while the step's processes are alive."""
        lease = self._leases[uuid]
        lease.rewrite(self._holder(step))
        return (lease.fileno(),)

    def _holder(self, step: str | None) -> LeaseHolder:
        return LeaseHolder(pid=os.getpid(), run_id=self._plan.run_id, step=step, since=self._clock.now())

    def label(self, uuid: str) -> str | None:
        return next((gpu_label(gpu, self._plan.devices) for gpu in self.gpus if gpu.uuid == uuid), None)

    def name(self, uuid: str) -> str | None:
        return next((gpu.name for gpu in self.gpus if gpu.uuid == uuid), None)

    def close(self) -> None:
        with ExitStack() as stack:
            stack.callback(self._probe.close)
            stack.callback(self._ticket.close)
            for uuid in list(self._leases):
                stack.callback(self.release, uuid)

    def _view(self, gpu: Gpu) -> GpuView:
        claimed = gpu.uuid in self._leases
        busy = free.why_busy(gpu)
        holder = None if claimed else self._room.holder(gpu.uuid)
        taken_by = None
        if holder is not None:
            # The name of the holding run says more than its memory use.
            taken_by = f"run {holder.run_id}" if holder.run_id else f"pid {holder.pid}"
            busy = f"{gpu_label(gpu, self._plan.devices)} is in use by {taken_by}"
        return GpuView(
            uuid=gpu.uuid,
            label=gpu_label(gpu, self._plan.devices),
            claimed=claimed,
            free=busy is None and free.is_free(self._quiet, gpu.uuid),
            first_in_line=claimed or self._room.first_in_line(gpu.uuid, self._ticket),
            busy_because=busy,
            taken_by=taken_by,
            total_bytes=gpu.total_bytes,
        )

    def _stand_in_line(self, wanted: frozenset[str]) -> None:
        if wanted == self._wanting:
            return
        self._wanting = wanted
        if wanted:
            self._ticket.want(wanted)
        else:
            self._ticket.rest()


def gpu_label(gpu: Gpu, devices: Devices) -> str:
    """`GPU 0` or `CPU slot 1`."""
    match devices:
        case Devices.NVML:
            return f"GPU {gpu.number}"
        case Devices.CPU_SLOTS:
            return f"CPU slot {gpu.index}"

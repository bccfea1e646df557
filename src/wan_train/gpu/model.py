"""The GPUs of this box at one moment, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from wan_train.base.errors import NotReadyError


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU at one moment. Memory in bytes, utilisation in percent, temperature in degrees Celsius."""

    index: int
    uuid: str
    """`GPU-…`, or `MIG-…` for an instance."""
    name: str
    total_bytes: int
    used_bytes: int
    utilization: int | None = None
    temperature: int | None = None
    power_watts: float | None = None
    compute_capability: tuple[int, int] | None = None
    pids: tuple[int, ...] | None = None
    """Compute processes as the driver lists them (in a container: host pids); None if it does not report them."""
    mig: int | None = None
    """The number of this MIG instance on GPU `index`; None for a whole GPU."""

    @property
    def number(self) -> str:
        """`0`, or `0:1` for instance 1 of GPU 0, as NVIDIA writes it."""
        return str(self.index) if self.mig is None else f"{self.index}:{self.mig}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LostGpu:
    """A GPU that the driver counts but can no longer reach."""

    index: int
    uuid: str | None
    reason: str

    @property
    def number(self) -> str:
        return str(self.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """All GPUs of the box at one moment."""

    gpus: tuple[Gpu, ...]
    lost: tuple[LostGpu, ...] = ()
    driver: str | None = None
    """Driver version; None without an NVIDIA driver."""


def short_name(name: str) -> str:
    """`RTX 5090` for `NVIDIA GeForce RTX 5090`."""
    return name.removeprefix("NVIDIA ").removeprefix("GeForce ")


class GpuUnavailableError(NotReadyError):
    """NVML cannot be used at all: no library, no driver, or a driver error. Not the same as zero GPUs."""


class GpuProbe(Protocol):
    """Reads the GPUs. Implementations raise only GpuUnavailableError and never block for long."""

    def read(self) -> GpuReading: ...

    def close(self) -> None: ...

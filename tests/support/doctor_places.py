"""Machines made of values and folders, for tests of the doctor's checks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.gpu import ScriptedProbe
from wan_train.base.settings import Settings
from wan_train.gpu.model import Gpu, GpuReading, GpuUnavailableError
from wan_train.provision.driver_checks import CudaBuild, GpuFacts, Gpus, build_of
from wan_train.provision.engine_file import load
from wan_train.provision.host_checks import HostChecks

GIB = 1024**3
NO_DRIVER = GpuUnavailableError("no NVIDIA driver found", hint="Install the NVIDIA driver.")


def gpu(index: int = 0, **changes: Any) -> Gpu:
    """An idle RTX 4090 by default."""
    values = {
        "uuid": f"GPU-{index}",
        "name": "NVIDIA GeForce RTX 4090",
        "total_bytes": 24 * GIB,
        "used_bytes": 0,
        "compute_capability": (8, 9),
        "pids": (),
    }
    return Gpu(index=index, **{**values, **changes})


def card_5090(index: int = 0, **changes: Any) -> Gpu:
    return gpu(index, name="NVIDIA GeForce RTX 5090", total_bytes=32 * GIB, compute_capability=(12, 0), **changes)


def card_h100(index: int = 0, **changes: Any) -> Gpu:
    return gpu(index, name="NVIDIA H100 80GB HBM3", total_bytes=80 * GIB, compute_capability=(9, 0), **changes)


def card_v100(index: int = 0) -> Gpu:
    return gpu(index, name="Tesla V100-SXM2-16GB", total_bytes=16 * GIB, compute_capability=(7, 0))


def guide_build() -> CudaBuild:
    build = build_of(load("guide"))
    assert build is not None
    return build


def gpus_of(*readings: GpuReading | GpuUnavailableError) -> Gpus:
    probe = ScriptedProbe(readings)
    return Gpus(lambda: probe)


def facts_of(
    *gpus: Gpu, driver: str = "575.57.08", needed: bool = True, environ: Mapping[str, str] | None = None
) -> GpuFacts:
    reading = GpuReading(gpus=gpus, driver=driver)
    return GpuFacts(gpus=gpus_of(reading), build=guide_build(), needed=needed, environ=environ or {})


def later_of(folder: Path, *gpus: Gpu, environ: Mapping[str, str] | None = None, host_cpus: int = 8) -> HostChecks:
    """Return the checks for a machine whose cgroup, /proc and /dev/shm are folders below `folder`."""
    for name in ("cgroup", "proc/self", "shm", "workspace"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return HostChecks(
        settings=Settings(workspace=folder / "workspace", runs_dir=folder / "runs", lease_dir=folder / "leases"),
        gpus=gpus_of(GpuReading(gpus=gpus)),
        environ=environ or {"HF_HOME": str(folder / "hf")},
        cgroup=folder / "cgroup",
        proc=folder / "proc",
        shm=folder / "shm",
        host_cpus=host_cpus,
    )

"""A stub of libnvidia-ml.so.1 under the real nvidia-ml-py binding, driven by a file.

    def test_something(nvml_stub: NvmlStub) -> None:
        nvml_stub.write([StubGpu(used=20 * GIB), StubGpu()])
        subprocess.run([...], env=os.environ | nvml_stub.env())

The fixtures are here. A folder's conftest.py imports them to use them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import nvml_memory

GIB = 1024**3
SOURCE = Path(__file__).parents[1] / "nvml" / "stub" / "nvml_stub.c"


@dataclass(frozen=True, slots=True, kw_only=True)
class StubGpu:
    """One GPU of the stub. Errors are NVML return codes. An empty uuid means uuid_of(index).

    Memory is in bytes, power in milliwatts, 0 without a sensor.
    """

    uuid: str = ""
    name: str = "NVIDIA GeForce RTX 5090"
    total: int = 32 * GIB
    used: int = 2 * 1024**2
    reserved: int = 512 * 1024**2
    utilization: int = 0
    utilization_error: int = 0
    temperature: int = 41
    temperature_error: int = 0
    power: int = 0
    compute_capability: tuple[int, int] = (12, 0)
    pids: tuple[int, ...] = ()
    pids_error: int = 0
    error: int = 0
    mig: tuple[StubGpu, ...] | None = None
    """Its instances if MIG is enabled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlStub:
    """A built stub library and the state file that it reads."""

    library: Path
    """The folder that contains libnvidia-ml.so.1."""
    state: Path

    @property
    def hung(self) -> Path:
        """Exists once a call hangs."""
        return Path(f"{self.state}.hung")

    def write(
        self,
        gpus: Iterable[StubGpu],
        *,
        driver: str = "575.57.08",
        init_error: int = 0,
        session: int = 1,
        hang: bool = False,
        crash: bool = False,
    ) -> None:
        """Set what every process sees from its next call on. Another `session` means the driver was reloaded."""
        head = f"driver {driver}\ninit_error {init_error}\nsession {session}\nhang {hang:d}\ncrash {crash:d}"
        whole = list(gpus)
        sections = [_section(gpu, gpu.uuid or uuid_of(index)) for index, gpu in enumerate(whole)]
        for index, gpu in enumerate(whole):
            for number, instance in enumerate(gpu.mig or ()):
                sections.append(_section(instance, instance.uuid or mig_uuid_of(index, number), mig_of=index))
        text = "\n".join([head, *sections]) + "\n"
        nvml_memory.replace(self.state, lambda _: text)

    def set_used(self, uuid: str, used: int) -> None:
        """Change only one GPU's memory in use."""
        nvml_memory.set_used(self.state, uuid, used)

    def hold(self, uuid: str, pid: int, count: int, *, listed: bool = False) -> None:
        """Let process `pid` hold `count` bytes until it dies."""
        nvml_memory.hold(self.state, uuid, pid, count, listed=listed)

    def env(self) -> dict[str, str]:
        """Return the variables that make a process find the stub in place of the driver."""
        paths = [str(self.library), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {"LD_LIBRARY_PATH": os.pathsep.join(paths), "NVML_STUB_STATE": str(self.state)}


def uuid_of(index: int) -> str:
    """Return the UUID of a stub GPU that sets none."""
    return f"GPU-{index:08x}-5090-4090-8000-00000000{index:04x}"


def mig_uuid_of(index: int, number: int) -> str:
    """Return the UUID of an instance that sets none."""
    return f"MIG-{index:08x}-{number:04x}-5090-8000-000000000000"


def build(folder: Path, *, old_driver: bool = False) -> Path:
    """Compile the library into `folder`; `old_driver` leaves out the v2 memory and v3 process calls."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the NVML stub with")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "libnvidia-ml.so.1"
    flags = ["-DOLD_DRIVER"] if old_driver else []
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", *flags, "-o", str(target), str(SOURCE)],
        check=True,
    )
    return folder


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml_stub(nvml_library: Path, tmp_path: Path) -> NvmlStub:
    """Two idle GPUs until the test changes them."""
    stub = NvmlStub(library=nvml_library, state=tmp_path / "nvml-state")
    stub.write([StubGpu(), StubGpu()])
    return stub


def _section(gpu: StubGpu, uuid: str, *, mig_of: int = -1) -> str:
    major, minor = gpu.compute_capability
    lines = [
        "gpu",
        f"uuid {uuid}",
        f"mig_mode {int(gpu.mig is not None)}",
        f"mig_of {mig_of}",
        f"name {gpu.name}",
        f"total {gpu.total}",
        f"used {gpu.used}",
        f"reserved {gpu.reserved}",
        f"utilization {gpu.utilization}",
        f"utilization_error {gpu.utilization_error}",
        f"temperature {gpu.temperature}",
        f"temperature_error {gpu.temperature_error}",
        f"power {gpu.power}",
        f"compute_capability {major} {minor}",
        f"pids_error {gpu.pids_error}",
        f"error {gpu.error}",
        *(f"pid {pid}" for pid in gpu.pids),
    ]
    return "\n".join(lines)

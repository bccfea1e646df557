"""Eyes of gpu_trainer.py: NVML, host memory, and a trainer's output as it arrives."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

WARMUP_STEPS = 3  # kernels are chosen and buffers grow in the first steps


class Gpu:
    """NVML readings of one GPU; every reading is None where there is no driver or it will not say."""

    def __init__(self, index: int) -> None:
        self.nvml = None
        self.handle = None
        try:
            import pynvml  # noqa: PLC0415 - optional: a rehearsal needs no driver binding

            pynvml.nvmlInit()
            self.nvml, self.handle = pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)
        except Exception as error:  # noqa: BLE001 - no binding, driver or GPU: no readings
            print(f"no NVML readings: {error}", flush=True)

    def ask(self, name: str, *args: object) -> object:
        if self.nvml is None:
            return None
        try:
            value = getattr(self.nvml, name)(*((self.handle, *args) if "System" not in name else args))
        except self.nvml.NVMLError as error:
            return f"error: {error}"
        return value.decode() if isinstance(value, bytes) else value

    def memory(self) -> object:
        """Version 2 of the memory reading where the driver has it.

        Version 1 counts what the driver reserves for itself as used (NVML API reference, nvmlMemory_t).
        """
        second = self.ask("nvmlDeviceGetMemoryInfo", getattr(self.nvml, "nvmlMemory_v2", None))
        return second if hasattr(second, "used") else self.ask("nvmlDeviceGetMemoryInfo")

    def used(self) -> int | None:
        return getattr(self.memory(), "used", None)

    def reading(self) -> dict[str, object]:
        """Everything wan-train reads of a GPU, as plain values."""
        memory, first = self.memory(), self.ask("nvmlDeviceGetMemoryInfo")
        busy = self.ask("nvmlDeviceGetUtilizationRates")
        processes = self.ask("nvmlDeviceGetComputeRunningProcesses")
        if isinstance(processes, list):
            processes = [{"pid": p.pid, "used_bytes": p.usedGpuMemory} for p in processes]
        return {
            "name": self.ask("nvmlDeviceGetName"),
            "uuid": self.ask("nvmlDeviceGetUUID"),
            "driver": self.ask("nvmlSystemGetDriverVersion"),
            "cuda": self.ask("nvmlSystemGetCudaDriverVersion"),
            "total_bytes": getattr(memory, "total", None),
            "used_bytes": getattr(memory, "used", None),
            "free_bytes": getattr(memory, "free", None),
            "reserved_bytes": getattr(memory, "reserved", None),
            "used_bytes_v1": getattr(first, "used", None),
            "utilization_percent": getattr(busy, "gpu", None),
            "temperature_c": self.ask("nvmlDeviceGetTemperature", 0),
            "power_mw": self.ask("nvmlDeviceGetPowerUsage"),
            "processes": processes,
        }


def status_bytes(pid: int, key: str) -> int:
    """A memory figure from /proc/<pid>/status in bytes; 0 when the process is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return 0


def available_memory() -> int:
    """MemAvailable of the machine, bytes."""
    text = Path("/proc/meminfo").read_text(encoding="utf-8")
    found = re.search(r"MemAvailable:\s+(\d+)", text)
    return int(found[1]) * 1024 if found else 0


def tree(root: int) -> list[int]:
    """`root` and its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
                parents.setdefault(int(stat.rsplit(")", 1)[1].split()[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(parents.get(pid, ()))
    return found


@dataclass(slots=True)
class Sampler:
    """Watches GPU memory and the trainers' host memory from a thread until stopped."""

    gpu: Gpu
    roots: list[int] = field(default_factory=list)
    peak_used: int = 0
    peak_rss: dict[int, int] = field(default_factory=dict)  # VmHWM by pid, pages of mapped files counted
    peak_anonymous: dict[int, int] = field(default_factory=dict)  # without mapped files
    least_available: int = 1 << 62
    busy: list[int] = field(default_factory=list)
    mid_reading: dict[str, object] | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    def loop(self) -> None:
        turn = 0
        while not self._stop.wait(0.1):
            turn += 1
            self.peak_used = max(self.peak_used, self.gpu.used() or 0)
            if turn % 5:
                continue
            self.least_available = min(self.least_available, available_memory())
            for pid in [p for root in self.roots for p in tree(root)]:
                self.peak_rss[pid] = max(self.peak_rss.get(pid, 0), status_bytes(pid, "VmHWM"))
                anonymous = status_bytes(pid, "RssAnon")
                self.peak_anonymous[pid] = max(self.peak_anonymous.get(pid, 0), anonymous)
            if self.gpu.nvml is not None:
                reading = self.gpu.reading()
                if isinstance(reading["utilization_percent"], int):
                    self.busy.append(reading["utilization_percent"])
                    if reading["utilization_percent"] > 50:
                        self.mid_reading = reading

    def stop(self) -> None:
        self._stop.set()


MARKS = {
    "python up": r"Load dataset config",
    "load begins": r"Loading DiT model from .*device=|Loading model files",
    "load ends": r"Loaded DiT model from",
    "cast begins": r"casting model to",
    "training begins": r"(?m)^epoch 1/",
    "state begins": r"saving last state",
    "lora begins": r"saving checkpoint",
    "lora ends": r"model saved\.",
}


@dataclass(slots=True)
class Run:
    """One trainer process: its output as it arrives, stamped."""

    argv: list[str]
    env: dict[str, str]
    cwd: Path
    log: Path
    started: float = 0.0
    wall: float = 0.0
    text: str = ""
    marks: dict[str, float] = field(default_factory=dict)
    steps: dict[int, float] = field(default_factory=dict)
    code: int | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> int:
        """Start the trainer in a session of its own; returns the pid."""
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            self.argv, env=self.env, cwd=self.cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        return self.process.pid

    def follow(self) -> None:
        """Read to the end; the first record that shows step N stamps step N."""
        assert self.process is not None
        assert self.process.stdout is not None
        with self.log.open("wb") as out:
            while chunk := os.read(self.process.stdout.fileno(), 65536):
                now = time.monotonic() - self.started
                out.write(chunk)
                out.flush()
                before = max(0, len(self.text) - 200)  # a record may be split between two reads
                self.text += chunk.decode("utf-8", "replace")
                new = self.text[before:]
                for mark, pattern in MARKS.items():
                    if mark not in self.marks and re.search(pattern, new):
                        self.marks[mark] = now
                for found in re.finditer(r"steps:[^\r\n]*?\|\s*(\d+)/\d+ \[", new):
                    self.steps.setdefault(int(found[1]), now)
        self.code = self.process.wait()
        self.wall = time.monotonic() - self.started

    def seconds_per_step(self) -> list[float]:
        numbers = sorted(self.steps)
        return [self.steps[n] - self.steps[n - 1] for n in numbers if n - 1 in self.steps and n > WARMUP_STEPS]

    def between(self, first: str, last: str) -> float | None:
        return self.marks[last] - self.marks[first] if first in self.marks and last in self.marks else None

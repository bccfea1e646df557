"""The share of this machine that our container may use."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def cpus(cgroup: Path = _CGROUP) -> float:
    """CPUs this process may use: the smaller of its affinity mask and its cgroup's quota (v2, then v1)."""
    affinity = float(len(os.sched_getaffinity(0)))
    quota = _quota_v2(cgroup / "cpu.max") or _quota_v1(cgroup / "cpu")
    return min(affinity, quota) if quota else affinity


def _quota_v2(path: Path) -> float | None:
    try:
        quota, period = path.read_text(encoding="ascii").split()
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(directory: Path) -> float | None:
    try:
        quota = int((directory / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period = int((directory / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def oom_kills(cgroup: Path = _CGROUP) -> int | None:
    """Processes of this container that the kernel killed for lack of memory so far (cgroup v2, then v1)."""
    for path in (cgroup / "memory.events", cgroup / "memory" / "memory.oom_control"):
        try:
            for line in path.read_text(encoding="ascii").splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
        except (OSError, ValueError):
            continue
    return None


def available_ram(cgroup: Path = _CGROUP) -> int:
    """Bytes of RAM that are free for us: what the kernel calls available, within what is left of our cgroup."""
    import psutil  # noqa: PLC0415  only a plan asks

    available = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        cache = _stat(cgroup / "memory.stat", "file")
    except (OSError, ValueError):
        return available
    return available if limit == "max" else min(available, int(limit) - used + cache)


def _stat(path: Path, wanted: str) -> int:
    for line in path.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(" ")
        if name == wanted:
            return int(value)
    return 0

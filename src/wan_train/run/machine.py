"""The share of this machine that our container may use."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_NO_LIMIT = 2**60
"""cgroup v1 writes "no limit" as the largest number of whole pages."""


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


def total_ram(cgroup: Path = _CGROUP) -> int:
    """Bytes of RAM that we may ever have: the machine's, or the limit of our cgroup (v2, then v1)."""
    import psutil  # noqa: PLC0415  only a plan or a doctor asks

    total = int(psutil.virtual_memory().total)
    return min(total, _memory(cgroup)[0] or total)


def available_ram(cgroup: Path = _CGROUP) -> int:
    """Bytes of RAM that are free for us: what the kernel calls available, within what is left of our cgroup."""
    import psutil  # noqa: PLC0415  the same

    available = int(psutil.virtual_memory().available)
    limit, used = _memory(cgroup)
    return available if limit is None else min(available, limit - used)


def process_limit(cgroup: Path = _CGROUP) -> tuple[int, int] | None:
    """How many processes and threads this container may have, and has (cgroup v2, then v1); None without a limit."""
    for directory in (cgroup, cgroup / "pids"):
        try:
            limit = (directory / "pids.max").read_text(encoding="ascii").strip()
            current = int((directory / "pids.current").read_text(encoding="ascii"))
            return None if limit == "max" else (int(limit), current)
        except (OSError, ValueError):
            continue
    return None


def _memory(cgroup: Path) -> tuple[int | None, int]:
    """Limit of our cgroup in bytes, None without one, and what of it is used; the page cache can be given back."""
    layouts = (
        (cgroup, "memory.max", "memory.current", "file"),
        (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
    )
    for directory, most, now, cache in layouts:
        try:
            limit = (directory / most).read_text(encoding="ascii").strip()
            used = int((directory / now).read_text(encoding="ascii"))
            given_back = _stat(directory / "memory.stat", cache)
        except (OSError, ValueError):
            continue
        if limit == "max" or int(limit) >= _NO_LIMIT:
            return None, 0
        return int(limit), max(0, used - given_back)
    return None, 0


def _stat(path: Path, wanted: str) -> int:
    for line in path.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(" ")
        if name == wanted:
            return int(value)
    return 0

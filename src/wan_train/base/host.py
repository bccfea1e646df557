"""This machine: the CPU, RAM and process limits of our container, and the identity of processes."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def cpus(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> float:
    """Return the CPUs this process may use: the minimum of its affinity mask and all cgroup quotas above (v2, v1)."""
    quotas = [
        *(_quota_v2(group / "cpu.max") for group in _groups(cgroup, membership, "")),
        *(_quota_v1(group) for group in _groups(cgroup / "cpu", membership, "cpu")),
    ]
    # macOS, from which users launch boxes, has no affinity mask.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([float(allowed), *(quota for quota in quotas if quota)])


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


def oom_kills(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int | None:
    """Return how many processes of our memory cgroup the OOM killer has killed (cgroup v2, then v1)."""
    for group in (*_groups_v2(cgroup, membership), *_groups_v1(cgroup, membership)):
        for name in ("memory.events", "memory.oom_control"):
            count = _value(group / name, "oom_kill")
            if count is not None:
                return count
    return None


def available_ram(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int:
    """Return the bytes of available RAM, limited by the room in every cgroup above."""
    import psutil

    rooms = [
        *(_room(group, _V2_ROOM) for group in _groups_v2(cgroup, membership)),
        *(_room(group, _V1_ROOM) for group in _groups_v1(cgroup, membership)),
    ]
    return max(0, min([int(psutil.virtual_memory().available), *(room for room in rooms if room is not None)]))


def total_ram(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int:
    """Return the bytes of RAM we can ever use: the machine's, or the smallest limit of the cgroups above."""
    import psutil

    limits = [
        *(_number(group / _V2_ROOM[0]) for group in _groups_v2(cgroup, membership)),
        *(_number(group / _V1_ROOM[0]) for group in _groups_v1(cgroup, membership)),
    ]
    return min([int(psutil.virtual_memory().total), *(limit for limit in limits if limit is not None)])


def process_limit(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> tuple[int, int] | None:
    """Return the limit and count of processes and threads in the cgroup above with the least room (v2 and v1).

    None without a limit.
    """
    limits = [
        (most, now)
        for group in (*_groups(cgroup, membership, ""), *_groups(cgroup / "pids", membership, "pids"))
        if (most := _number(group / "pids.max")) is not None and (now := _number(group / "pids.current")) is not None
    ]
    return min(limits, key=lambda limit: limit[0] - limit[1], default=None)


_V2_ROOM = ("memory.max", "memory.current", ("inactive_file", "active_file"))
_V1_ROOM = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def _room(group: Path, files: tuple[str, str, tuple[str, str]]) -> int | None:
    """Return the bytes left below a group's limit; cached files count as free, as the kernel can evict them."""
    limit, used, cached = files
    most, taken = _number(group / limit), _number(group / used)
    if most is None or taken is None:
        return None
    return most - taken + sum(_value(group / "memory.stat", name) or 0 for name in cached)


def _number(path: Path) -> int | None:
    """Return the number in a file; None if it is missing or "max" (no limit)."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _groups_v2(cgroup: Path, membership: Path) -> list[Path]:
    return _groups(cgroup, membership, "")


def _groups_v1(cgroup: Path, membership: Path) -> list[Path]:
    return _groups(cgroup / "memory", membership, "memory")


def _groups(mounted: Path, membership: Path, controller: str) -> list[Path]:
    """Return our own group and its ancestors, nearest first.

    Inside a container the mount begins at the container's own group, but without a cgroup namespace the kernel reports
    the host's path. Groups that are not below the mount are left out.
    """
    own = PurePosixPath("/")
    try:
        for line in membership.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                own = PurePosixPath(path)
    except (OSError, ValueError):
        pass
    if ".." in own.parts:
        own = PurePosixPath("/")
    found = [mounted / path.relative_to("/") for path in (own, *own.parents)]
    return [group for group in found if group.is_dir()]


def _value(path: Path, wanted: str) -> int | None:
    """Return the number after a name in a kernel table; None if missing."""
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == wanted:
                return int(value)
    except (OSError, ValueError):
        pass
    return None


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Disable Python's cycle collector inside the block, or during a decorated call.

    The values of ten thousand items contain no cycles, but searching them takes a quarter of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """A process by pid, start time (clock ticks since boot, /proc/PID/stat field 22) and boot id."""

    pid: int
    start_time: int
    boot_id: str

    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie does not count."""
        stat = _stat(self.pid)
        return stat is not None and stat.start_time == self.start_time and not stat.zombie and boot_id() == self.boot_id


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stat:
    start_time: int
    zombie: bool


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a running process, None when there is no such process."""
    stat = _stat(pid)
    if stat is None:
        return None
    return ProcessIdentity(pid=pid, start_time=stat.start_time, boot_id=boot_id())


def myself() -> ProcessIdentity:
    identity = identify(os.getpid())
    assert identity is not None, "a running process is in /proc"
    return identity


def boot_id() -> str:
    """Return the kernel's ID of this boot; pids and start times are valid within one boot only."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command name is in parentheses, and may itself contain spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return _Stat(start_time=int(fields[19]), zombie=fields[0] in {"Z", "X"})

"""Which process exactly: a recycled pid is a stranger."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


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
    assert identity is not None, "a running process is in /proc"  # noqa: S101  an invariant, not a check
    return identity


def boot_id() -> str:
    """The kernel's id of this boot: pids and start times of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command name stands in brackets and may hold spaces and brackets itself.
    fields = text.rpartition(")")[2].split()
    return _Stat(start_time=int(fields[19]), zombie=fields[0] in {"Z", "X"})

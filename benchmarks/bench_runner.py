"""What the runner itself costs while two experts train: processor time and memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from box import DEFAULT_PATIENCE, box
from figures import Figure
from support.trainers import ScriptedBox

_WINDOW_SECONDS = 120.0
_STEP_SECONDS = "0.5"
"""A step of the real trainer takes seconds; two bar redraws every half second are already more output than usual."""
_TICKS = os.sysconf("SC_CLK_TCK")


def measure(seconds: float = _WINDOW_SECONDS) -> Iterator[Figure]:
    with box(2) as machine:
        words = machine.train_words("--epochs", "10000", "--detach")
        done = machine.run_cli(*words, timeout=600, SCRIPTED_STEP_SECONDS=_STEP_SECONDS, **DEFAULT_PATIENCE)
        assert done.returncode == 0, done.stderr
        machine.wait_for_event("epoch_ended", step="train-low")
        parts = _our_processes(machine)
        before = {pid: _cpu_seconds(pid) for pid in parts}
        started = time.monotonic()
        time.sleep(seconds)
        wall = time.monotonic() - started
        used = {pid: _cpu_seconds(pid) - before[pid] for pid in parts}
        memory = {pid: _memory(pid) for pid in parts}
        machine.run_cli("stop", "--now")
        machine.wait_for_event("run_finished")
    share = 100 * sum(used.values()) / wall
    by_name = _by_name(parts, used)
    yield Figure(
        what=f"processor time of the runner over {wall:.0f} s, two trainings, a step each 0.5 s",
        measured=f"{share:.2f} % of one core",
        against=", ".join(f"{name} {100 * spent / wall:.2f} %" for name, spent in by_name.items()),
        goal="< 1 %",
        met=share < 1,
    )
    for number, name in enumerate(("PSS", "RSS")):
        total = sum(sizes[number] for sizes in memory.values())
        each = _by_name(parts, {pid: sizes[number] for pid, sizes in memory.items()})
        yield Figure(
            what=f"memory of the runner, {name} summed over {len(parts)} processes",
            measured=f"{total / 1e6:.0f} MB",
            against=", ".join(f"{part} {size / 1e6:.0f} MB" for part, size in each.items()),
            goal="< 100 MB",
            met=total < 100e6,
        )


def _our_processes(machine: ScriptedBox) -> dict[int, str]:
    """Supervisor, NVML reader and wardens by pid; what they started for the trainer is the trainer's."""
    names = {"wan_train.run.supervise": "supervisor", "nvml.py": "NVML reader", "warden.py": "wardens"}
    return {
        pid: name for pid, command in machine.processes().items() for word, name in names.items() if word in command
    }


def _by_name(parts: dict[int, str], amounts: dict[int, float]) -> dict[str, float]:
    summed: dict[str, float] = {}
    for pid, amount in amounts.items():
        summed[parts[pid]] = summed.get(parts[pid], 0) + amount
    return summed


def _cpu_seconds(pid: int) -> float:
    """User and system time, that of its ended children included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def _memory(pid: int) -> tuple[float, float]:
    """PSS and RSS in bytes."""
    lines = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:] if ":" in line
    )
    return tuple(int(lines[key].split()[0]) * 1024 for key in ("Pss", "Rss"))  # type: ignore[return-value]  # two keys

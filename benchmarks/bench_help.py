"""`wan-train --help` beside an interpreter that does nothing, and what it imports."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from figures import Figure

_ROUNDS = 10
_HEAVY = ("torch", "accelerate", "pynvml", "huggingface_hub", "av", "questionary", "PIL", "cattrs")
_PROBE = """
import sys
from wan_train.cli.main import run
sys.stdout = open("/dev/null", "w")
run(["--help"])
print(*sys.modules, file=sys.stderr)
"""


def measure() -> Iterator[Figure]:
    program = Path(sys.executable).with_name("wan-train")
    ours, nothing = [], []
    for _ in range(_ROUNDS):  # side by side, so that a busy machine disturbs both
        ours.append(_seconds([str(program), "--help"]))
        nothing.append(_seconds([sys.executable, "-c", "pass"]))
    wall, floor = (statistics.median(wall for wall, _ in times) for times in (ours, nothing))
    cpu, cpu_floor = (statistics.median(cpu for _, cpu in times) for times in (ours, nothing))
    yield Figure(
        what="`wan-train --help`, median of 10, on the clock",
        measured=f"{wall:.3f} s",
        against=f"`python -c pass` {floor:.3f} s",
        ratio=wall / floor,
        goal="< 0.3 s",
        met=wall < 0.3,
    )
    yield Figure(
        what="the same in processor time, which other programs disturb less",
        measured=f"{cpu:.3f} s",
        against=f"`python -c pass` {cpu_floor:.3f} s",
        ratio=cpu / cpu_floor,
        goal="< 0.3 s",
        met=cpu < 0.3,
    )
    loaded = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=True).stderr.split()
    heavy = [name for name in _HEAVY if name in loaded]
    yield Figure(
        what="heavy modules that it imports",
        measured=", ".join(heavy) or "none",
        against=f"{len(loaded)} modules in all",
        goal="none",
        met=not heavy,
    )


def _seconds(argv: list[str]) -> tuple[float, float]:
    """On the clock, and of the processor."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

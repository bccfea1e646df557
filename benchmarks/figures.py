"""What a benchmark reports, and how all of them are printed."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured thing beside what it is compared with; `goal` is in words, `met` None where there is none."""

    what: str
    measured: str
    against: str = ""
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None


def table(figures: Iterable[Figure]) -> str:
    """A Markdown table."""
    lines = ["| What | Measured | Beside it | Ratio | Goal | Met |", "| --- | --- | --- | --- | --- | --- |"]
    for figure in figures:
        ratio = f"{figure.ratio:.2f}" if figure.ratio is not None else ""
        met = {True: "yes", False: "NO", None: ""}[figure.met]
        lines.append(f"| {figure.what} | {figure.measured} | {figure.against} | {ratio} | {figure.goal} | {met} |")
    return "\n".join(lines)


def machine() -> str:
    """One line about this machine."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, load {load:.1f}, Linux {platform.release()}, Python {platform.python_version()}"

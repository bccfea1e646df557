"""Room for what is missing, judged before the first byte is fetched."""

from __future__ import annotations

import shutil
from pathlib import Path

from wan_train.provision.steps import Finding, State

_GB = 1e9


def room(folder: Path, needed: int) -> Finding:
    """Whether `needed` bytes fit where `folder` is or will be; BLOCKED with the numbers when not."""
    place = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    numbers = f"{needed / _GB:.1f} GB more are needed, {free / _GB:.1f} GB are free at {place}"
    if needed <= free:
        return Finding(state=State.READY, detail=numbers)
    return Finding(
        state=State.BLOCKED,
        detail=f"the disk is too small: {numbers}",
        hint="Make room, or rent the box with a larger disk; a rented box's disk cannot grow later.",
    )

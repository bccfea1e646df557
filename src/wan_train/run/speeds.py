"""Measured seconds per batch on this box, so that the next run's first states come in time."""

from __future__ import annotations

import json
from pathlib import Path

from wan_train.base.files import write_whole
from wan_train.engine import sizes
from wan_train.gpu.model import Gpu
from wan_train.recipe.terms import EngineKind

_FILE = "speeds.json"


def key(engine: EngineKind, gpu: Gpu, resolutions: list[tuple[int, int]]) -> str:
    """What the speed of a batch mainly depends on."""
    sizes_text = ",".join(f"{width}x{height}" for width, height in sorted(set(resolutions)))
    return f"{engine} {gpu.name} {sizes_text}"


def measured(runs: Path, speed_key: str) -> float | None:
    """Seconds per batch as an earlier run measured them on this box."""
    value = _read(runs).get(speed_key)
    return value if isinstance(value, float) and value > 0 else None


def recall(runs: Path, speed_key: str, engine: EngineKind) -> float:
    """The same, else a first guess."""
    return measured(runs, speed_key) or sizes.seconds_per_step(engine)


def remember(runs: Path, speed_key: str, seconds: float) -> None:
    try:
        write_whole(runs / _FILE, json.dumps({**_read(runs), speed_key: seconds}), durable=False)
    except OSError:
        return  # only a convenience


def _read(runs: Path) -> dict[str, object]:
    try:
        data = json.loads((runs / _FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}

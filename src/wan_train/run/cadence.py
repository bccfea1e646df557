"""How long a batch takes on this box, and how often states are saved."""

from __future__ import annotations

import json
import math
from pathlib import Path

from wan_train.base.files import write_whole
from wan_train.engine.trainer import Trainer
from wan_train.gpu.model import Gpu

STATE_EVERY_SECONDS = 300.0
"""A state costs about 3 s to write; every five minutes is near the optimum for machines that vanish every few hours
(Young's formula: sqrt(2 x cost x time between failures))."""


def state_every_epochs(*, missing: int, done: int, keep: int | None, epoch_seconds: float) -> int:
    """Epochs between states of an attempt that has `missing` epochs to train after `done`.

    About five minutes of training and never more than the attempt is long. The LoRAs to keep (every `keep` epochs,
    counted over all attempts) must fall on saved epochs, which the attempt counts from its own start.
    """
    wanted = max(1, min(missing, round(STATE_EVERY_SECONDS / max(epoch_seconds, 1e-3))))
    if keep is None:
        return wanted
    base = math.gcd(keep, done) if done else keep
    return max(divisor for divisor in range(1, min(wanted, base) + 1) if base % divisor == 0)


_SPEEDS_FILE = "speeds.json"


def speed_key_of(trainer: Trainer, gpu: Gpu, resolutions: list[tuple[int, int]]) -> str:
    """What the speed of a batch mainly depends on."""
    sizes_text = ",".join(f"{width}x{height}" for width, height in sorted(set(resolutions)))
    return f"{trainer.kind} {gpu.name} {sizes_text}"


def measured_speed(runs: Path, speed_key: str) -> float | None:
    """Seconds per batch as an earlier run measured them on this box."""
    value = _read_speeds(runs).get(speed_key)
    return value if isinstance(value, float) and value > 0 else None


def expected_speed(runs: Path, speed_key: str, trainer: Trainer) -> float:
    """The same, else a first guess."""
    return measured_speed(runs, speed_key) or trainer.traits.seconds_per_step


def remember_speed(runs: Path, speed_key: str, seconds: float) -> None:
    try:
        write_whole(runs / _SPEEDS_FILE, json.dumps({**_read_speeds(runs), speed_key: seconds}), durable=False)
    except OSError:
        return  # only a convenience


def _read_speeds(runs: Path) -> dict[str, object]:
    try:
        data = json.loads((runs / _SPEEDS_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}

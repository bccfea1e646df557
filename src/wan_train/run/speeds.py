"""Speeds measured on this box, by card, trainer version and the settings that matter.

A training's speed is that of its mix of bucket sizes: the trainer shuffles them, so no single bucket can be timed. The
mean cost of a batch is stored with it, and scales it to another mix.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_train.base import codec, locks
from wan_train.base.files import write_whole
from wan_train.dataset.layout import DatasetSummary
from wan_train.engine.trainer import Trainer
from wan_train.recipe.model import Training, settings_of
from wan_train.run.plan import StepKind

SPEEDS_FILE = "speeds.json"
_MOST = 200
"""Measurements kept: the newest."""
_OF_ONE_WORK = 4
"""Measurements kept of the same work, as other programs may have slowed one. A run of two experts adds two."""
SAME_COST = 0.02
"""The relative difference up to which two costs count as the same."""
_SCALED_ITEMS = 2.0
"""If caching items were too quick to time, the measurement applies to at most this many times as many items."""
_PIXELS, _FRAMES = 16, 4
"""Pixels per token in each direction, and frames per token after the first (Wan 2.2 A14B: VAE 8x8x4, patches 2x2)."""
_EQUAL_TOKENS = 34_000
"""Tokens at which attention costs as much as everything else: 2 x 14e9 operations per token against
4 x 40 blocks x 5120 per pair of tokens. Calculated, not measured."""
_DECIDES_SPEED = (
    "attention",
    "mixed_precision",
    "fp8_base",
    "optimizer_type",
    "gradient_checkpointing",
    "max_data_loader_n_workers",
    "network_module",
    "network_dim",
    "blocks_to_swap",
)
"""Settings that affect the seconds per batch; the trainer's extra options count too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What a speed depends on. `at_once` is how many programs of the run ran together: that slows small machines."""

    kind: StepKind
    trainer: str
    card: str
    settings: str = ""
    at_once: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One measurement, in seconds: per batch or cached item, of everything else in the attempt, and per sample.

    `cost` is that of a mean batch or item, and `sizes` its resolutions as text. `units` batches or items were made.
    """

    at: float
    key: Key
    sizes: str
    cost: float
    units: int
    per_unit: float
    beside: float | None = None
    """Loading, the last save and the end; None if the attempt did not succeed."""
    per_sample: float | None = None
    after: float | None = None
    """The part of `beside` after the last step; None in older files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """An expected speed. For work of another cost, `per_unit` is scaled from the sizes in `scaled_from`.

    It is based on `of` measurements; `at` is the newest one's time.
    """

    per_unit: float
    beside: float | None
    per_sample: float | None
    at: float
    scaled_from: str | None = None
    of: int = 1
    after: float | None = None


def batch_cost(dataset: DatasetSummary) -> float | None:
    """Return the mean cost of a batch, in tokens weighted for attention; None if the batches are unknown."""
    if not dataset.batches_per_epoch:
        return None
    whole = sum(
        bucket.items * subset.num_repeats * item_cost(bucket.width, bucket.height, bucket.frames)
        for subset in dataset.subsets
        for bucket in subset.buckets
    )
    return whole / dataset.batches_per_epoch


def item_cost(width: int, height: int, frames: int) -> float:
    """Return the cost of one item, in tokens weighted for attention."""
    tokens = (width // _PIXELS) * (height // _PIXELS) * ((frames - 1) // _FRAMES + 1)
    return tokens * (1 + tokens / _EQUAL_TOKENS)


def sizes_text(dataset: DatasetSummary) -> str:
    """Return all resolutions, such as `640x640, 960x960`."""
    return ", ".join(sorted({f"{subset.resolution[0]}x{subset.resolution[1]}" for subset in dataset.subsets}))


def trainer_text(trainer: Trainer) -> str:
    return f"{trainer.kind} {trainer.version}"


def settings_text(training: Training) -> str:
    every = settings_of(training)
    own = [f"{name}={every[name]}" for name in _DECIDES_SPEED]
    return " ".join([*own, *sorted(f"{name}={value}" for name, value in training.options.items())])


def key_of(trainer: Trainer, kind: StepKind, training: Training | None, *, card: str, at_once: int) -> Key:
    """Return the key of one attempt. `training` has the attempt's own settings; None for caching."""
    settings = settings_text(training) if training is not None else ""
    return Key(kind=kind, trainer=trainer_text(trainer), card=card, settings=settings, at_once=at_once)


def expected(
    speeds: Iterable[Speed],
    key: Key,
    *,
    cost: float,
    units: int,
    pick: Callable[[Sequence[float]], float] = statistics.median,
) -> Expected | None:
    """Return the expected speed of `units` batches or items of this cost, from the most similar measured work, if any.

    `pick` chooses among several measurements of the same work.
    """
    alike = [each for each in speeds if _serves(each, key, units)]
    if not alike or cost <= 0:
        return None

    def distance(each: Speed) -> tuple[bool, float, bool, float]:
        apart = abs(math.log(cost / each.cost))
        return apart > SAME_COST, round(apart, 2), each.key.at_once != key.at_once, -each.at

    nearest = min(alike, key=distance)
    same = [each for each in alike if (each.key, each.sizes, each.cost) == (nearest.key, nearest.sizes, nearest.cost)]
    ratio = cost / nearest.cost
    scaled = abs(ratio - 1) > SAME_COST
    return Expected(
        per_unit=pick([each.per_unit for each in same]) * (ratio if scaled else 1.0),
        beside=_picked(pick, [each.beside for each in same]),
        per_sample=_picked(pick, [each.per_sample for each in same]),
        at=nearest.at,
        scaled_from=nearest.sizes if scaled else None,
        of=len(same),
        after=_picked(pick, [each.after for each in same]),
    )


def _picked(pick: Callable[[Sequence[float]], float], values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return pick(known) if known else None


def _serves(each: Speed, key: Key, units: int) -> bool:
    theirs = each.key
    same = (theirs.kind, theirs.trainer, theirs.card, theirs.settings) == (
        key.kind,
        key.trainer,
        key.card,
        key.settings,
    )
    return same and each.cost > 0 and (each.per_unit > 0 or units <= _SCALED_ITEMS * each.units)


def read_speeds(runs: Path) -> tuple[Speed, ...]:
    """Return every measurement on this box; none if the file is missing, damaged, or of an older version."""
    try:
        return speeds_in((runs / SPEEDS_FILE).read_bytes())
    except OSError:
        return ()


def speeds_in(data: bytes) -> tuple[Speed, ...]:
    """Return the measurements in the bytes of such a file; none if it is damaged, or of an older version."""
    try:
        found: Mapping[str, Sequence[Speed]] = codec.from_json(data, dict[str, list[Speed]], where=SPEEDS_FILE)
    except codec.CorruptRecordError:
        return ()
    return tuple(each for each in found.get("speeds", ()) if _is_sound(each))


def _is_sound(speed: Speed) -> bool:
    numbers = (speed.at, speed.cost, speed.per_unit, speed.beside, speed.per_sample, speed.after)
    return all(number is None or (math.isfinite(number) and number >= 0) for number in numbers) and speed.cost > 0


def remember(runs: Path, speed: Speed) -> None:
    """Store a measurement, with the last ones of the same work. A full disk is ignored: speeds are a convenience.

    Stopped trainings do not time loading, so the last one that did is kept, however many follow.
    """
    try:
        with locks.held(runs / f".{SPEEDS_FILE}.lock", wait=True):
            known = sorted(read_speeds(runs), key=lambda each: each.at)
            same = [each for each in known if (each.key, each.sizes) == (speed.key, speed.sizes)]
            timed = [each for each in same if each.beside is not None]
            spare = [each for each in same if speed.beside is not None or each not in timed[-1:]]
            too_old = spare[: max(0, len(same) + 1 - _OF_ONE_WORK)]
            kept = [*(each for each in known if each not in too_old), speed][-_MOST:]
            write_whole(runs / SPEEDS_FILE, codec.to_json({"speeds": kept}), durable=False)
    except OSError:
        return

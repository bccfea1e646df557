"""The measured speeds of this box: kept under the card that did it, the trainer's version and the settings that matter.

A training's speed is that of its mix of bucket sizes: the trainer shuffles them, so no single bucket can be timed. Its
key is the mean cost of a batch, and another mix is scaled by it.
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
"""The newest are kept."""
_OF_ONE_WORK = 4
"""Measurements kept of the same work, two for each run of two experts: another program may have slowed one."""
SAME_COST = 0.02
"""How far two costs may be apart that count as the same."""
_SCALED_ITEMS = 2.0
"""A caching whose items took no time that could be measured says nothing of more than this many times as many."""
_PIXELS, _FRAMES = 16, 4
"""Pixels of one token in both directions, frames of one after the first (Wan 2.2 A14B: VAE 8x8x4, patches of 2x2)."""
_EQUAL_TOKENS = 34_000
"""Where attention costs as much as everything else: 2 x 14e9 operations a token against 4 x 40 blocks x 5120 for each
pair of tokens. Counted, not measured."""
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
"""Settings on which the seconds of a batch depend; the trainer's further options count too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What a speed depends on. `at_once` programs of the run worked at the same time: small machines slow down then."""

    kind: StepKind
    trainer: str
    card: str
    settings: str = ""
    at_once: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One measurement. Seconds: of a batch or a cached item, of everything else in the attempt, of one sample.

    `cost` is that of a mean batch or item, `sizes` says it for people; `units` were timed.
    """

    at: float
    key: Key
    sizes: str
    cost: float
    units: int
    per_unit: float
    beside: float | None = None
    """Loading, the last save and the end; None where the attempt ended in another way than usual."""
    per_sample: float | None = None
    after: float | None = None
    """What of `beside` follows the last step; None in older files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A speed for other work, `per_unit` scaled where the work is another, from `scaled_from`.

    `of` measurements are behind it; `at` is the newest one's time.
    """

    per_unit: float
    beside: float | None
    per_sample: float | None
    at: float
    scaled_from: str | None = None
    of: int = 1
    after: float | None = None


def batch_cost(dataset: DatasetSummary) -> float | None:
    """The mean cost of a batch, in tokens and more where attention weighs; None while the batches are unknown."""
    if not dataset.batches_per_epoch:
        return None
    whole = sum(
        bucket.items * subset.num_repeats * item_cost(bucket.width, bucket.height, bucket.frames)
        for subset in dataset.subsets
        for bucket in subset.buckets
    )
    return whole / dataset.batches_per_epoch


def item_cost(width: int, height: int, frames: int) -> float:
    """The cost of one item, in tokens and more where attention weighs."""
    tokens = (width // _PIXELS) * (height // _PIXELS) * ((frames - 1) // _FRAMES + 1)
    return tokens * (1 + tokens / _EQUAL_TOKENS)


def sizes_text(dataset: DatasetSummary) -> str:
    """`960x960`, and every further resolution."""
    return ", ".join(sorted({f"{subset.resolution[0]}x{subset.resolution[1]}" for subset in dataset.subsets}))


def trainer_text(trainer: Trainer) -> str:
    return f"{trainer.kind} {trainer.version}"


def settings_text(training: Training) -> str:
    every = settings_of(training)
    own = [f"{name}={every[name]}" for name in _DECIDES_SPEED]
    return " ".join([*own, *sorted(f"{name}={value}" for name, value in training.options.items())])


def key_of(trainer: Trainer, kind: StepKind, training: Training | None, *, card: str, at_once: int) -> Key:
    """Of one attempt; `training` has its own settings, None for caching."""
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
    """What `units` batches or items of this cost would take each, from the measurements of the work nearest to them.

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
    """Every measurement on this box; none where the file is missing, damaged, or of an older version."""
    try:
        return speeds_in((runs / SPEEDS_FILE).read_bytes())
    except OSError:
        return ()


def speeds_in(data: bytes) -> tuple[Speed, ...]:
    """The measurements in the bytes of such a file; none where it is damaged, or of an older version."""
    try:
        found: Mapping[str, Sequence[Speed]] = codec.from_json(data, dict[str, list[Speed]], where=SPEEDS_FILE)
    except codec.CorruptRecordError:
        return ()
    return tuple(each for each in found.get("speeds", ()) if _is_sound(each))


def _is_sound(speed: Speed) -> bool:
    numbers = (speed.at, speed.cost, speed.per_unit, speed.beside, speed.per_sample, speed.after)
    return all(number is None or (math.isfinite(number) and number >= 0) for number in numbers) and speed.cost > 0


def remember(runs: Path, speed: Speed) -> None:
    """Keep a measurement beside the last ones of the same work. A full disk keeps nothing: it is a convenience.

    Trainings that were stopped time no loading: the last that did stays, however many of them follow.
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

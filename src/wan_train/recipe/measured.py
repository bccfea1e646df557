"""Measurements on this kind of card, as values, and which of them a training should use."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from wan_train.recipe.levers import OPTIONS, OWN_SETTINGS, Settings, describe, settings_moved
from wan_train.recipe.model import ExpertSpec, Training, settings_of
from wan_train.recipe.terms import Task

MEASURED = "measured here"
"""Start of the reason for a setting that a measurement chose."""

_SAME = 0.01
"""Relative difference up to which two candidates are equally fast; two runs of the same settings differ by more."""
_LARGER = 1.03
"""How many times larger than the measured one a largest bucket may be: buckets of one resolution differ that much."""
_SPEED_ALIKE = 0.1
"""Largest relative difference in tokens between the commonest bucket and the measured one."""
_SPATIAL, _TEMPORAL = 16, 4
"""Pixels per token in both directions; frames per latent after the first (Wan 2.2 A14B)."""


class Outcome(StrEnum):
    """How the measurement of a candidate ended."""

    MEASURED = "measured"
    SLOWER = "slower"
    """Ended early: every step was slower than the best candidate's."""
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """The card and software that a measurement holds for. `torch` is its version in the trainer's environment."""

    card: str
    total_bytes: int
    driver: str
    trainer: str
    torch: str


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Shape:
    """One bucket in pixels and frames; pictures have one frame."""

    width: int
    height: int
    frames: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of one item in the DiT, on which time and memory depend."""
        return (self.width // _SPATIAL) * (self.height // _SPATIAL) * ((self.frames - 1) // _TEMPORAL + 1)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}" + (f", {self.frames} frames" if self.frames > 1 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is trained, as far as time and memory depend on it.

    `others` are settings that no lever changes: rank, optimizer, checkpointing, further options of the trainer.
    """

    task: Task
    precision: str
    commonest: Shape
    largest: Shape
    batch_size: int
    others: tuple[str, ...]

    def serves(self, wanted: Workload) -> bool:
        """Whether measurements with this workload hold for another one."""
        if replace(wanted, commonest=self.commonest, largest=self.largest) != self:
            return False
        fits = wanted.largest.tokens <= _LARGER * self.largest.tokens
        return fits and abs(wanted.commonest.tokens / self.commonest.tokens - 1) <= _SPEED_ALIKE


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One measurement of one candidate, in seconds and bytes; `lever` is empty for the guide's settings.

    `peak_bytes` is the peak memory use of the card as reported by the driver. `warmup_seconds` is the extra time of the
    first steps, `epoch_seconds` the extra time of the first step of an epoch.
    """

    at: float
    basis: Basis
    workload: Workload
    lever: str
    settings: Settings
    outcome: Outcome
    step_seconds: tuple[float, ...] = ()
    peak_bytes: int | None = None
    load_seconds: float | None = None
    warmup_seconds: float = 0.0
    epoch_seconds: float = 0.0
    wall_seconds: float = 0.0
    note: str = ""
    """Why it failed, in words."""

    @property
    def seconds_per_step(self) -> float:
        """The median of the steps after warm-up."""
        return statistics.median(self.step_seconds)

    @property
    def spread(self) -> float:
        """Half of the interquartile range of the steps, in seconds."""
        lower, _, upper = statistics.quantiles(self.step_seconds, n=4) if len(self.step_seconds) > 1 else (0.0,) * 3
        return (upper - lower) / 2

    @property
    def is_guide(self) -> bool:
        return not self.lever


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """The length of the training to choose settings for. `shapes` counts its buckets; each is compiled separately."""

    steps: int = 2_400
    epochs: int = 100
    shapes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The measurements that hold for a training, and its length."""

    measurements: tuple[Measurement, ...] = ()
    length: Length = Length()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The measured speed of the settings that a run uses; `guide_seconds` is that of the guide's settings.

    `load_seconds` includes the warm-up of each bucket; None while unknown, and in older plans. `shape` is the timed
    bucket, `epoch_seconds` the extra time at the start of an epoch.
    """

    words: str
    seconds_per_step: float
    guide_seconds: float | None
    at: float
    load_seconds: float | None = None
    epoch_seconds: float = 0.0
    shape: Shape | None = None
    batch_size: int = 1


def total_seconds(measured: Measurement, length: Length) -> float:
    """How long a training takes with measured settings: load, warm-up of each bucket, steps, starts of epochs."""
    return (
        (measured.load_seconds or 0.0)
        + measured.warmup_seconds * length.shapes
        + measured.seconds_per_step * length.steps
        + measured.epoch_seconds * length.epochs
    )


def best(measurements: Collection[Measurement], length: Length) -> Measurement | None:
    """The fastest for a training of this length; among equally fast ones, the first that was measured.

    A difference within the scatter of the steps does not count, so that no lever without effect is chosen by chance.
    """
    complete = [each for each in measurements if each.outcome is Outcome.MEASURED]
    if not complete:
        return None
    fastest = min(complete, key=lambda each: total_seconds(each, length))
    least = total_seconds(fastest, length)

    def is_as_fast(each: Measurement) -> bool:
        scatter = length.steps * math.hypot(each.spread, fastest.spread)
        return total_seconds(each, length) <= least + max(_SAME * least, scatter)

    return next(each for each in complete if each is fastest or is_as_fast(each))


def others_of(training: Training) -> tuple[str, ...]:
    """The settings that speed and memory depend on and no lever changes; measurements are matched by them."""
    own = ("network_dim", "network_module", "optimizer_type", "gradient_checkpointing", "gradient_accumulation_steps")
    every = settings_of(training)
    found = [f"{name}={every[name]}" for name in own]
    return (*found, *sorted(f"{name}={value}" for name, value in training.options.items() if name not in OPTIONS))


def serving(measurements: Sequence[Measurement], wanted: Workload) -> tuple[Measurement, ...]:
    """The measurements that hold for a workload; only the newest of those with the same settings."""
    newest: dict[str, Measurement] = {}
    for each in measurements:
        if each.workload.serves(wanted):
            newest[f"{sorted(each.settings.items())}"] = each
    return tuple(newest.values())


def choice_for(spec: ExpertSpec, tuning: Tuning) -> Measurement | None:
    """The best measured settings that agree with everything the user chose; None if nothing was measured."""
    moved = settings_moved(spec.training)
    chosen = {name for name in (*OWN_SETTINGS, *OPTIONS) if name in spec.sources}
    agreeing = [
        each
        for each in tuning.measurements
        if all(each.settings.get(name, False) == moved.get(name, False) for name in chosen)
    ]
    return best(agreeing, tuning.length)


def tuned(spec: ExpertSpec, tuning: Tuning) -> Tuned | None:
    """The measured speed of an expert's settings; None if they were not measured."""
    moved = settings_moved(spec.training)
    found = next(
        (each for each in tuning.measurements if each.outcome is Outcome.MEASURED and each.settings == moved), None
    )
    if found is None:
        return None
    guide = next((each for each in tuning.measurements if each.is_guide and each.outcome is Outcome.MEASURED), None)
    return Tuned(
        words=describe(moved),
        seconds_per_step=found.seconds_per_step,
        guide_seconds=None if guide is None or guide is found else guide.seconds_per_step,
        at=found.at,
        load_seconds=_load_seconds(found, tuning.length),
        epoch_seconds=found.epoch_seconds,
        shape=found.workload.commonest,
        batch_size=found.workload.batch_size,
    )


def _load_seconds(measured: Measurement, length: Length) -> float | None:
    loading = measured.load_seconds
    return None if loading is None else loading + measured.warmup_seconds * length.shapes


def day(at: float) -> str:
    """`28 Nov`, for seconds since 1970."""
    then = time.localtime(at)
    return f"{then.tm_mday} {time.strftime('%b', then)}"

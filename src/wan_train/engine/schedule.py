"""The learning rate that the trainer uses at every step, and its cumulative share after each epoch.

Formulas: `get_lr_scheduler` of musubi-tuner (d0a1930 and v0.3.4), the `get_*_schedule` functions of transformers 4.46
and 4.57 and of diffusers 0.32 that it calls, and `RexLR` of v0.3.4. The trainer advances the schedule once after each
optimizer step, so step k, counted from 0, uses the factor of k.
"""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from wan_train.base.text import one_line
from wan_train.engine.capabilities import Capabilities, is_schedule_free
from wan_train.recipe.model import Training

Factor = Callable[[int], float]
"""Maps a step number, counted from 0, to its share of the base learning rate."""

POLYNOMIAL = "polynomial"
_POLYNOMIAL_END = 1e-7
"""Default `lr_end` of transformers.get_polynomial_decay_schedule_with_warmup. Neither trainer version sets it."""
_REX_FLOOR = 0.01
_INVERSE_SQRT_SCALE = 10_000
_MOST_POINTS = 200_000
"""Longer schedules are sampled. Each epoch keeps at least ten points of a smooth curve."""

_OWN_STEP = ("prodigy", "dadapt", "rprop", "automagic")
"""Name fragments of optimizers that choose their own step size."""

_ARGUMENTS: Mapping[str, frozenset[str]] = {
    "polynomial": frozenset({"lr_end"}),
    "cosine": frozenset({"num_cycles"}),
    "warmup_stable_decay": frozenset({"warmup_type", "decay_type"}),
    "piecewise_constant": frozenset({"step_rules"}),
    "rex": frozenset({"rex_alpha", "rex_beta"}),
}
"""The `lr_scheduler_args` that these formulas support, by schedule."""


class UnknownScheduleError(ValueError):
    """The learning rates cannot be computed, or do not determine the step size. The message says why."""


def schedule_of(training: Training) -> str:
    """The schedule's name, resolved in the order of `get_optimizer` and `get_lr_scheduler` (both versions).

    Schedule-free optimizers have none, whatever `lr_scheduler` says. Adafactor uses its own unless its arguments
    set `relative_step=False`.
    """
    if is_schedule_free(training.optimizer_type):
        return "schedule-free"
    arguments = _arguments(training.optimizer_args)
    if training.optimizer_type.lower() == "adafactor" and (
        arguments.get("relative_step", True) or arguments.get("warmup_init", False)
    ):
        return "adafactor"
    return str(training.options.get("lr_scheduler_type") or training.lr_scheduler)


def polynomial_end(training: Training) -> float:
    """The final learning rate of a polynomial schedule. The minimum ratio does not affect it."""
    end = _arguments(_words(training)).get("lr_end", _POLYNOMIAL_END)
    return end if isinstance(end, int | float) else _POLYNOMIAL_END


def shares(training: Training, epochs: int, steps_per_epoch: int, capabilities: Capabilities) -> Sequence[float]:
    """Cumulative share of the learning-rate integral after each epoch; the last is 1.

    Raises UnknownScheduleError.
    """
    made = factor(training, epochs * steps_per_epoch, capabilities)
    stride = max(1, epochs * steps_per_epoch // _MOST_POINTS)
    stride = min(stride, max(1, steps_per_epoch // 10))
    sums = [
        math.fsum(made(step) for step in range(first, first + steps_per_epoch, stride))
        for first in range(0, epochs * steps_per_epoch, steps_per_epoch)
    ]
    behind = list(itertools.accumulate(sums))
    whole = behind[-1] if behind else 0.0
    if whole <= 0:  # all learning rates are 0, so only the last epoch counts
        return [0.0] * (epochs - 1) + [1.0]
    return [*(each / whole for each in behind[:-1]), 1.0]


def epoch_reaching(
    part: float, training: Training, epochs: int, steps_per_epoch: int, capabilities: Capabilities
) -> int:
    """The first epoch that completes this share of the learning-rate integral; raises UnknownScheduleError."""
    behind = shares(training, epochs, steps_per_epoch, capabilities)
    # A sum of a million floats is accurate to about twelve digits.
    return next((epoch for epoch, share in enumerate(behind, start=1) if share >= part - 1e-12), epochs)


def factor(training: Training, steps: int, capabilities: Capabilities) -> Factor:
    """The schedule of a training with `steps` optimizer steps; raises UnknownScheduleError."""
    schedule = schedule_of(training)
    optimizer = training.optimizer_type.lower()
    if schedule in {"schedule-free", "adafactor"} or any(name in optimizer for name in _OWN_STEP):
        raise UnknownScheduleError(
            f"the optimizer {one_line(training.optimizer_type)} chooses its own step, whatever the learning rate is"
        )
    if training.options.get("lr_scheduler_type"):
        raise UnknownScheduleError(f"the learning rates of the custom class {one_line(schedule)} are unknown")
    given = _arguments(_words(training))
    unknown = given.keys() - _ARGUMENTS.get(schedule, frozenset())
    if unknown or len(given) < len(_words(training)):
        raise UnknownScheduleError(f"the effect of lr_scheduler_args on {one_line(schedule)} is unknown")
    shape = _Shape.of(training, steps, capabilities, given)
    try:
        made = _MAKERS[schedule](shape)
        made(0)
    except KeyError:
        raise UnknownScheduleError(f"the schedule {one_line(schedule)} is unknown") from None
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise UnknownScheduleError(
            f"the schedule {one_line(schedule)} cannot be made: {one_line(str(error))}"
        ) from None
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """Parameters of a schedule. `warmup` and `decay` are parts of `steps`; `floor` is None if unset."""

    rate: float
    steps: int
    warmup: int
    decay: int
    power: float
    cycles: float
    timescale: int | None
    floor: float | None
    begins_at_floor: bool
    """warmup_stable_decay warms up from the floor (transformers 4.57), not from zero."""
    given: Mapping[str, object]

    @classmethod
    def of(cls, training: Training, steps: int, capabilities: Capabilities, given: Mapping[str, object]) -> _Shape:
        options = training.options
        timescale = options.get("lr_scheduler_timescale")
        return cls(
            rate=training.learning_rate,
            steps=steps,
            warmup=_part_of(training.lr_warmup_steps, steps),
            decay=_part_of(options.get("lr_decay_steps"), steps),
            power=training.lr_scheduler_power,
            cycles=_number(options.get("lr_scheduler_num_cycles"), 1),
            timescale=timescale if isinstance(timescale, int) else None,
            floor=training.lr_scheduler_min_lr_ratio,
            begins_at_floor=capabilities.warms_up_from_floor,
            given=given,
        )

    def warmed(self, rest: Factor) -> Factor:
        """The schedule after a warm-up that begins at zero."""
        warmup = self.warmup
        return lambda step: step / warmup if step < warmup else rest(step)

    def progress(self, step: int) -> float:
        """The share of the steps after the warm-up that is done."""
        return (step - self.warmup) / max(1, self.steps - self.warmup)


def _part_of(value: object, steps: int) -> int:
    """A number of steps as the trainer's `int_or_float` reads it: a fraction is a share of all steps."""
    number = _number(value, 0)
    return int(number) if number >= 1 and float(number).is_integer() else int(number * steps)


def _number(value: object, otherwise: float) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else otherwise


def _argument(shape: _Shape, name: str, otherwise: float) -> float:
    value = shape.given.get(name, otherwise)
    if not isinstance(value, int | float):
        raise TypeError(f"{name} is not a number")
    return value


def _constant(shape: _Shape) -> Factor:
    if shape.warmup:
        raise ValueError("it takes no warm-up")
    return lambda _: 1.0


def _constant_with_warmup(shape: _Shape) -> Factor:
    return shape.warmed(lambda _: 1.0)


def _linear(shape: _Shape) -> Factor:
    return shape.warmed(lambda step: max(0.0, 1 - shape.progress(step)))


def _cosine(shape: _Shape) -> Factor:
    cycles = _argument(shape, "num_cycles", 0.5)
    return shape.warmed(lambda step: max(0.0, _wave(cycles * shape.progress(step))))


def _cosine_with_restarts(shape: _Shape) -> Factor:
    def rest(step: int) -> float:
        progress = shape.progress(step)
        return 0.0 if progress >= 1 else max(0.0, _wave((shape.cycles * progress) % 1.0 / 2))

    return shape.warmed(rest)


def _cosine_with_min_lr(shape: _Shape) -> Factor:
    floor = shape.floor
    if floor is None:
        raise ValueError("it needs lr_scheduler_min_lr_ratio")
    return shape.warmed(lambda step: max(0.0, _wave(shape.cycles / 2 * shape.progress(step)) * (1 - floor) + floor))


def _polynomial(shape: _Shape) -> Factor:
    end = _argument(shape, "lr_end", _POLYNOMIAL_END)
    if shape.rate <= end:
        raise ValueError(f"lr_end {end:g} is not below the learning rate {shape.rate:g}")
    left, lowest, decay = shape.rate - end, end / shape.rate, shape.steps - shape.warmup
    return shape.warmed(
        lambda step: (
            lowest
            if step > shape.steps
            else (left * (1 - (step - shape.warmup) / decay) ** shape.power + end) / shape.rate
        )
    )


def _inverse_sqrt(shape: _Shape) -> Factor:
    scale = shape.timescale or shape.warmup or _INVERSE_SQRT_SCALE
    return shape.warmed(lambda step: 1 / math.sqrt((step + scale - shape.warmup) / scale))


_RAMPS: Mapping[str, Callable[[float, float], float]] = {
    "linear": lambda left, _cycles: left,
    "cosine": lambda left, cycles: _wave(cycles * (1 - left)),
    "1-sqrt": lambda left, _cycles: 1 - math.sqrt(1 - left),
}
"""Ramps of warmup_stable_decay. The decay passes the share that is left, the warm-up the share that is done."""


def _warmup_stable_decay(shape: _Shape) -> Factor:
    floor = shape.floor or 0.0
    rises, falls = (
        str(shape.given.get(name, kind)) for name, kind in (("warmup_type", "linear"), ("decay_type", "cosine"))
    )
    if rises not in _RAMPS or falls not in _RAMPS:
        raise ValueError(f"valid ramps: {', '.join(_RAMPS)}")
    falls_from = shape.steps - shape.decay
    lifted = floor if shape.begins_at_floor else 0.0

    def made(step: int) -> float:
        if step < shape.warmup:
            return max(0.0, _RAMPS[rises](step / shape.warmup, 0.5) * (1 - lifted) + lifted)
        if step < falls_from:
            return 1.0
        left = 1 - (step - falls_from) / max(1, shape.decay)
        return max(0.0, _RAMPS[falls](left, shape.cycles / 2) * (1 - floor) + floor) if left > 0 else floor

    return made


def _piecewise_constant(shape: _Shape) -> Factor:
    *rules, last = str(shape.given.get("step_rules", "")).split(",")
    limits = sorted((int(limit), float(value)) for value, _, limit in (rule.partition(":") for rule in rules))
    rest = float(last)
    return lambda step: next((value for limit, value in limits if step < limit), rest)


def _rex(shape: _Shape) -> Factor:
    lowest = shape.floor if shape.floor is not None else _REX_FLOOR
    alpha, beta = _argument(shape, "rex_alpha", 0.1), _argument(shape, "rex_beta", 0.9)
    rest = shape.steps - shape.warmup

    def made(step: int) -> float:
        if shape.warmup == 1 and step == 1:
            return lowest
        if 1 <= step <= shape.warmup - 1:
            return lowest + (1 - lowest) * (step - 1) / (shape.warmup - 1)
        after = step - shape.warmup
        if after >= rest or after == -1 or rest <= 0:
            return lowest
        # At step 0 of a warm-up `after` is negative. The trainer takes its modulo too.
        left = (rest - after % rest) / rest
        return lowest + (1 - lowest) * left / (alpha + beta * left)

    return made


_MAKERS: Mapping[str, Callable[[_Shape], Factor]] = {
    "constant": _constant,
    "constant_with_warmup": _constant_with_warmup,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "cosine_with_min_lr": _cosine_with_min_lr,
    POLYNOMIAL: _polynomial,
    "inverse_sqrt": _inverse_sqrt,
    "warmup_stable_decay": _warmup_stable_decay,
    "piecewise_constant": _piecewise_constant,
    "rex": _rex,
}


def _wave(turns: float) -> float:
    """A cosine between 1 and 0; `turns` counts full periods."""
    return 0.5 * (1 + math.cos(2 * math.pi * turns))


def _words(training: Training) -> tuple[object, ...]:
    given = training.options.get("lr_scheduler_args")
    return given if isinstance(given, tuple) else ()


def _arguments(words: tuple[object, ...]) -> dict[str, object]:
    """Parse `KEY=VALUE` words with Python literals as the trainer does; skip all others."""
    found: dict[str, object] = {}
    for word in words:
        name, _, value = str(word).partition("=")
        with suppress(ValueError, SyntaxError):
            found[name] = ast.literal_eval(value)
    return found

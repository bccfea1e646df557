"""The learning-rate schedule that a training really follows."""

from __future__ import annotations

import ast
from contextlib import suppress

from wan_train.engine.capabilities import is_schedule_free
from wan_train.recipe.model import Training

POLYNOMIAL = "polynomial"
_POLYNOMIAL_END = 1e-7
"""transformers.get_polynomial_decay_schedule_with_warmup, whose `lr_end` neither trainer version sets by itself."""


def schedule_of(training: Training) -> str:
    """The schedule by its name, in the order of `get_optimizer` and `get_lr_scheduler` (both versions).

    A schedule-free optimizer has none, whatever `lr_scheduler` says. Adafactor follows its own unless its arguments
    say `relative_step=False`.
    """
    if is_schedule_free(training.optimizer_type):
        return "schedule-free"
    arguments = _arguments(training.optimizer_args)
    if training.optimizer_type.lower() == "adafactor" and arguments.get("relative_step", True):
        return "adafactor"
    return str(training.options.get("lr_scheduler_type") or training.lr_scheduler)


def polynomial_end(training: Training) -> float:
    """Where a polynomial schedule ends. The minimum ratio has no effect on it."""
    given = training.options.get("lr_scheduler_args")
    end = _arguments(given if isinstance(given, tuple) else ()).get("lr_end", _POLYNOMIAL_END)
    return end if isinstance(end, int | float) else _POLYNOMIAL_END


def _arguments(words: tuple[object, ...]) -> dict[str, object]:
    """`KEY=VALUE` words with Python literals, as the trainer reads them; others are left out."""
    found: dict[str, object] = {}
    for word in words:
        name, _, value = str(word).partition("=")
        with suppress(ValueError, SyntaxError):
            found[name] = ast.literal_eval(value)
    return found

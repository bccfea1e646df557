"""When the training of an expert ends: all epochs, an epoch, or a share of the learning-rate integral."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import assert_never

from wan_train.base.text import one_line

ALL = "all"
_MOST_EPOCHS = 100_000
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,12})?)\s*%")
_FORMS = "all, an epoch such as 50, or a share of the learning-rate integral such as 99.8%"


@dataclass(frozen=True, slots=True, kw_only=True)
class AllEpochs:
    """The whole training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """The end of this epoch, counted from 1."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The end of the first epoch that reaches this part of the learning-rate integral; 0 < part < 1."""

    part: float


Until = AllEpochs | Epoch | Share


def parse(text: str) -> Until:
    """The meaning of a valid value, as `read` returns it; raises ValueError for any other."""
    until, problem = _meaning(text)
    if until is None:
        raise ValueError(problem)
    return until


def read(value: object) -> tuple[str | None, str | None]:
    """The canonical spelling of a value (in a recipe it may be a number), or what is wrong with it."""
    is_text = isinstance(value, str | int) and not isinstance(value, bool)
    until, problem = _meaning(str(value)) if is_text else (None, _not_one(value))
    return (spelled(until) if until is not None else None), problem


def spelled(until: Until) -> str:
    """`all`, `50` or `99.8%`."""
    match until:
        case AllEpochs():
            return ALL
        case Epoch(number=number):
            return str(number)
        case Share(part=part):
            percent = Decimal(repr(part)) * 100
            return f"{percent.normalize():f}%"
        case _:
            assert_never(until)


def _meaning(text: str) -> tuple[Until | None, str | None]:
    text = text.strip().lower()
    if text == ALL:
        return AllEpochs(), None
    if (percent := _PERCENT.fullmatch(text)) is not None:
        value = Decimal(percent[1])
        if not 0 < value <= 100:  # percent
            return None, f"must be more than 0% and at most 100%, not {one_line(text)}"
        # Every step adds to the integral, so 100% of it means all epochs.
        return (AllEpochs() if value == 100 else Share(part=float(value / 100))), None  # percent
    if text.isascii() and text.isdecimal():
        number = int(text) if len(text) <= len(str(_MOST_EPOCHS)) else _MOST_EPOCHS + 1
        if not 1 <= number <= _MOST_EPOCHS:
            return None, f"must be an epoch from 1 to {_MOST_EPOCHS}, not {one_line(text, 20)}"
        return Epoch(number=number), None
    return None, _not_one(text)


def _not_one(value: object) -> str:
    return f"must be {_FORMS}, not {one_line(repr(value))}"

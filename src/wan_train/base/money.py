"""Sums of money: dollars, as people type them."""

from __future__ import annotations

_MOST = 1e6


def parse_dollars(text: str) -> float:
    """A price or a sum: `0.93` or `$0.93`. Raises ValueError in words."""
    try:
        value = float(text.strip().removeprefix("$"))
    except ValueError:
        raise ValueError("must be a number of dollars, such as 0.93") from None
    if not 0 < value < _MOST:  # also refuses nan and inf
        raise ValueError("must be more than 0 dollars")
    return value

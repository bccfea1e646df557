"""Units of memory and storage, and dollars. GB is decimal, GiB is binary."""

from __future__ import annotations

from typing import Final

MB: Final = 10**6
GB: Final = 10**9
MIB: Final = 2**20
GIB: Final = 2**30

_MOST_DOLLARS = 1e6


def parse_dollars(text: str) -> float:
    """A price or a sum: `0.93` or `$0.93`. Raises ValueError in words."""
    try:
        value = float(text.strip().removeprefix("$"))
    except ValueError:
        raise ValueError("must be a number of dollars, such as 0.93") from None
    if not 0 < value < _MOST_DOLLARS:  # also refuses nan and inf
        raise ValueError(f"must be more than 0 and less than {_MOST_DOLLARS:,.0f} dollars")
    return value

"""Units of memory, storage, time and money; amounts and shares as text. GB is decimal, GiB is binary."""

from __future__ import annotations

from typing import Final

MB: Final = 10**6
GB: Final = 10**9
MIB: Final = 2**20
GIB: Final = 2**30

_MOST_DOLLARS = 1e6
_LEAST_PERCENT = 0.001
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_TEN_MINUTES = 600
_AGES = 1e12
"""Longest duration shown, in seconds: an ETA may be infinite."""


def parse_dollars(text: str) -> float:
    """Parse dollars, `0.93` or `$0.93`. Raises ValueError with a readable message."""
    try:
        value = float(text.strip().removeprefix("$"))
    except ValueError:
        raise ValueError("must be a number of dollars, such as 0.93") from None
    if not 0 < value < _MOST_DOLLARS:  # also refuses nan and inf
        raise ValueError(f"must be more than 0 and less than {_MOST_DOLLARS:,.0f} dollars")
    return value


def count(number: int, what: str, many: str | None = None) -> str:
    """`1 item`, `1,234 items`."""
    return f"{number:,} {what if number == 1 else many or what + 's'}"


def duration(seconds: float) -> str:
    """`48 s`, `3 min 20 s`, `48 min`, `1 h 12 min`, `2 d 3 h`."""
    whole = round(min(max(seconds, 0), _AGES))
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _TEN_MINUTES:
        return _two(whole // _MINUTE, "min", whole % _MINUTE, "s")
    if whole < _HOUR:
        return f"{whole // _MINUTE} min"
    if whole < _DAY:
        return _two(whole // _HOUR, "h", whole % _HOUR // _MINUTE, "min")
    return _two(whole // _DAY, "d", whole % _DAY // _HOUR, "h")


def _two(first: int, unit: str, second: int, smaller: str) -> str:
    return f"{first} {unit} {second} {smaller}" if second else f"{first} {unit}"


def file_size(size: int) -> str:
    """Format bytes in decimal units, as disks and downloads are sold: `307 MB`, `1.2 GB`."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:  # values that round to 1000 use the next unit
            return f"{value:.0f} {unit}" if unit != "GB" or value >= 99.5 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def dollars(value: float) -> str:
    """Format dollars: `$0.83`; positive values under half a cent are `under $0.01`."""
    if 0 < value < 0.005:  # would be rounded to $0.00
        return "under $0.01"
    return f"${value:,.2f}"


def fine_percent(share: float) -> str:
    """Format a share that may be tiny, with two digits: `12 %`, `3.4 %`, `0.34 %`, `0.002 %`, `under 0.001 %`."""
    value = 100 * share
    if 0 < value < _LEAST_PERCENT:
        return f"under {_LEAST_PERCENT} %"
    for digits in range(3):
        # Values just under a power of ten round up to it: 9.96 is 10, not 10.0.
        if round(value, digits) >= 10 ** (1 - digits):
            return f"{value:.{digits}f} %"
    return f"{value:.3f} %" if value else "0 %"

"""A rented box as values: its price, the end of its rental, its ssh address."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_NEAR = 1.1
"""A bid of at most this many times the market's lowest is easily outbid."""


class PriceSource(StrEnum):
    """The source of the hourly price."""

    GIVEN = "given"
    """The user: `--price`, its variable, or the settings file."""
    VAST = "vast"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rental:
    """A rented box. Prices are in dollars per hour for the whole box; `ends` is in seconds since 1970.

    `per_hour` includes the disk, which is also billed while the box is stopped.
    An interruptible box has a `bid`. Another renter gets the box once `lowest_bid` is above it.
    """

    per_hour: float
    ends: float | None = None
    bid: float | None = None
    lowest_bid: float | None = None

    @property
    def is_near_the_market(self) -> bool:
        """Whether a slightly higher bid takes the box away."""
        return self.bid is not None and self.lowest_bid is not None and self.bid <= self.lowest_bid * _NEAR


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Dollars per hour of this box, the source of the price, and the rental if it was requested."""

    per_hour: float
    source: PriceSource
    rental: Rental | None = None


def read_rental(answer: object) -> Rental | None:
    """The rental in Vast's answer about an instance; None if it has no price.

    Fields as in `GET /api/v0/instances/{id}/`: `dph_total` includes the disk (`storage_total_cost`). `dph_base` does
    not; it is the bid of an interruptible box.
    """
    found = answer.get("instances") if isinstance(answer, dict) else None
    if not isinstance(found, dict):
        return None
    per_hour = number_in(found, "dph_total")
    if per_hour is None or per_hour <= 0:
        return None
    base = number_in(found, "dph_base")
    return Rental(
        per_hour=per_hour,
        ends=number_in(found, "end_date"),
        bid=(per_hour if base is None else base) if found.get("is_bid") is True else None,
        lowest_bid=number_in(found, "min_bid"),
    )


def number_in(found: Mapping[str, Any], name: str) -> float | None:
    """A finite number of a JSON object that is 0 or more; None for anything else."""
    value = found.get(name)
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return float(value) if good and value is not None else None


_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]*")
_LAST_PORT = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """An ssh address."""

    host: str
    port: int


def shell_of(environ: Mapping[str, str]) -> Shell | None:
    """The ssh address in the environment of a Vast box with a public ssh port (docs.vast.ai, instance variables)."""
    host, port = environ.get("PUBLIC_IPADDR", "").strip(), environ.get("VAST_TCP_PORT_22", "").strip()
    if not _HOST.fullmatch(host) or not port.isdecimal() or not port.isascii() or not 0 < int(port) <= _LAST_PORT:
        return None
    return Shell(host=host, port=int(port))

"""Chooses the next candidate as a pure function of the rows so far, so the search can be interrupted and resumed.

The search starts from the guide's settings. It changes one setting of the best row at a time: first the number of
swapped blocks, then each lever once, the most promising first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wan_train.base.units import GIB
from wan_train.recipe.levers import DIT_PARAMETERS, Lever, Settings
from wan_train.recipe.measured import Length, Measurement, Outcome, best
from wan_train.recipe.terms import BLOCKS

SWAP = "swap"
"""The lever of candidates with another number of swapped blocks."""
GUIDE = ""

_MORE_SWAP = (10, 20, 30, 36)
"""Swapped blocks to try if even the guide's settings run out of memory."""
_FINE = 2
"""A difference in swapped blocks too small for another measurement."""
_TOLERANCE = 2 * GIB
"""The driver's peak reading includes memory that torch holds but could release."""
_WIDTHS: Mapping[str, int] = {"fp16": 2, "bf16": 2, "no": 4}
_HOPELESS_STEPS = 5
_HOPELESS = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What can be tried. `guide` holds the unmeasured settings. `may_swap` is False if the user chose the blocks."""

    guide: Settings
    levers: tuple[Lever, ...]
    may_swap: bool
    total_bytes: int
    precision: str
    length: Length


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Settings to measure, and the lever that changed the best so far into them."""

    lever: str
    settings: Settings
    warmup_seconds: float = 0.0


def next_candidate(space: Space, rows: Sequence[Measurement]) -> Candidate | None:
    """Return the most promising candidate not known to be hopeless, or None if nothing is left to try."""
    if not any(row.settings == space.guide for row in rows):
        return Candidate(lever=GUIDE, settings=space.guide)
    leader = best(rows, space.length)
    if leader is None:
        return _more_swapped(space, rows)
    tried = {row.lever for row in rows}
    # Fewer blocks come before any lever: a lever's memory need is unknown for another number of blocks.
    fewer = _fewer_swapped(space, rows, leader) if tried <= {GUIDE, SWAP} else None
    if fewer is not None:
        return fewer
    for lever in space.levers:
        settings = {**leader.settings, **lever.changes}
        if lever.id in tried or settings == leader.settings or (lever.needs_swap and not blocks_of(leader.settings)):
            continue
        if not _is_known(settings, rows) and not cannot_fit(space, settings, rows):
            return Candidate(lever=lever.id, settings=settings, warmup_seconds=lever.warmup_seconds)
    return None


def may_start(rows: Sequence[Measurement], candidate: Candidate, *, spent: float, budget: float) -> bool:
    """Whether the remaining seconds suffice for another candidate, judged by earlier ones.

    The first one may always start: without it nothing would be known.
    """
    if not rows:
        return True
    complete = [row.wall_seconds for row in rows if row.outcome is Outcome.MEASURED]
    expected = complete[-1] if complete else max(row.wall_seconds for row in rows)
    return spent + expected + candidate.warmup_seconds <= budget


def is_slower(step_seconds: Sequence[float], leader: Measurement | None) -> bool:
    """Whether a candidate can be stopped early: every step so far was slower than the best candidate."""
    if leader is None or len(step_seconds) < _HOPELESS_STEPS:
        return False
    return min(step_seconds) > _HOPELESS * leader.seconds_per_step


def cannot_fit(space: Space, settings: Settings, rows: Sequence[Measurement]) -> bool:
    """Whether a candidate must run out of memory: an earlier smaller one did, or its peak leaves no room."""
    for row in rows:
        if not _needs_at_least(settings, row.settings):
            continue
        if row.outcome is Outcome.OUT_OF_MEMORY:
            return True
        more = weight_bytes(settings, space.precision) - weight_bytes(row.settings, space.precision)
        if row.peak_bytes is not None and row.peak_bytes + more - _TOLERANCE > space.total_bytes:
            return True
    return False


def weight_bytes(settings: Settings, precision: str) -> int:
    """Bytes of the DiT that stay on the card during a step."""
    width = 1 if settings.get("fp8_base") else _WIDTHS[precision]
    return DIT_PARAMETERS * width * (BLOCKS - blocks_of(settings)) // BLOCKS


def blocks_of(settings: Settings) -> int:
    return int(str(settings.get("blocks_to_swap", 0)))


def _more_swapped(space: Space, rows: Sequence[Measurement]) -> Candidate | None:
    if not space.may_swap:
        return None
    short = [blocks_of(row.settings) for row in rows if row.outcome is Outcome.OUT_OF_MEMORY]
    level = next((level for level in _MORE_SWAP if level > max(short)), None) if short else None
    return None if level is None else _swapped(space.guide, level)


def _fewer_swapped(space: Space, rows: Sequence[Measurement], leader: Measurement) -> Candidate | None:
    """Try zero blocks first, then halfway between the fewest that fit and the most that do not."""
    now = blocks_of(leader.settings)
    if not space.may_swap or not now:
        return None
    below = [
        blocks_of(row.settings)
        for row in rows
        if blocks_of(row.settings) < now and _swapped(row.settings, now).settings == leader.settings
    ]
    floor = max(below, default=-1)
    for level in (0, *range((floor + now) // 2, now)) if floor < 0 else range((floor + now) // 2, now):
        if level <= floor or now - floor <= _FINE:
            continue
        candidate = _swapped(leader.settings, level)
        if not _is_known(candidate.settings, rows) and not cannot_fit(space, candidate.settings, rows):
            return candidate
    return None


def _swapped(settings: Settings, blocks: int) -> Candidate:
    return Candidate(lever=SWAP, settings={**settings, "blocks_to_swap": blocks})


def _is_known(settings: Settings, rows: Sequence[Measurement]) -> bool:
    return any(row.settings == settings for row in rows)


def _needs_at_least(settings: Settings, other: Settings) -> bool:
    """Whether settings take at least as much memory as others: they differ only in fewer swapped blocks or no fp8."""
    more = blocks_of(settings) <= blocks_of(other) and bool(settings.get("fp8_base")) <= bool(other.get("fp8_base"))
    moved = {"blocks_to_swap", "fp8_base"}
    return more and {k: v for k, v in settings.items() if k not in moved} == {
        k: v for k, v in other.items() if k not in moved
    }

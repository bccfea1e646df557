"""Whether a running attempt still gets anywhere: pure judgement over observations."""

from __future__ import annotations

from dataclasses import dataclass

LOAD_STALL = 4.0
"""Loading 28 GB from a cold network disk: 20 minutes with the usual base of five."""
FIRST_STEP_STALL = 6.0
"""The first step may compile for half an hour."""
STEP_STALL = 1.0
STEPS_OF_SILENCE = 20.0
"""A step that takes this many times the recent ones hangs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """What was seen of an attempt at one moment.

    `activity` is any number that grows while something happens: bytes of log and bytes read and CPU time of the tree.
    """

    step: int | None
    loading: bool
    log_bytes: int
    activity: int
    seconds_per_step: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vigil:
    """Since when an attempt has shown no sign of life, in monotonic seconds."""

    pulse: Pulse
    since: float


def watch(previous: Vigil | None, pulse: Pulse, now: float) -> Vigil:
    """The vigil after one more look."""
    if previous is None or _lives(previous.pulse, pulse):
        return Vigil(pulse=pulse, since=now)
    return Vigil(pulse=pulse, since=previous.since)


def patience(pulse: Pulse, base_seconds: float) -> float:
    """How long an attempt in this stage may be silent, in seconds; `base_seconds` is five minutes by default."""
    if pulse.step is None:
        return base_seconds * LOAD_STALL
    if pulse.step == 0 or pulse.loading:
        return base_seconds * FIRST_STEP_STALL
    return max(base_seconds * STEP_STALL, STEPS_OF_SILENCE * (pulse.seconds_per_step or 0.0))


def is_stalled(vigil: Vigil, now: float, base_seconds: float) -> bool:
    return now - vigil.since > patience(vigil.pulse, base_seconds)


def _lives(before: Pulse, after: Pulse) -> bool:
    if (after.step or 0) > 0:
        # A trainer that spins without making steps burns CPU too: once it trains, only its output counts.
        return after.step != before.step or after.log_bytes != before.log_bytes
    return after != before

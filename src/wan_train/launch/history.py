"""What this computer's launches found out: how long a set-up takes, and which machines were wrong or faulty."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wan_train.base import codec
from wan_train.launch.infra import VAST
from wan_train.launch.launch_directory import all_launches
from wan_train.launch.model import Launch
from wan_train.launch.offers import MEGABIT, models_bytes

AVOIDED_SECONDS = 30 * 86400.0
"""A wrong or faulty machine may be rented again after this long: it may have been repaired."""
_MOST_LAUNCHES = 30
"""Only the newest are read, because records of large launches have megabytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """`set_up_seconds` is the median from renting to ready, without the download of the models; None if unknown."""

    set_up_seconds: float | None = None
    avoided: frozenset[str] = frozenset()


def read_history(runs: Path, now: float) -> History:
    """Return the history of the newest launches whose record can be read."""
    found: list[Launch] = []
    for directory in all_launches(runs)[:_MOST_LAUNCHES]:
        launch: Launch | None = codec.read(directory.record, Launch)
        found += [] if launch is None else [launch]
    return history_of(found, now)


def history_of(launches: Iterable[Launch], now: float) -> History:
    set_ups, avoided = [], set()
    for launch in launches:
        for box in launch.boxes:
            line = box.offer.down_mbps
            if box.ready is not None and line:
                set_ups.append(max(0.0, box.ready - box.began - models_bytes(launch.wants.tasks) / (line * MEGABIT)))
            # A box that never answered was not checked: another user may have rented it first. Outside Vast an offer
            # is a kind of box, not a machine.
            is_machine = launch.wants.infra == VAST
            if is_machine and box.blamed and box.address is not None and now - box.began < AVOIDED_SECONDS:
                avoided.add(box.offer.machine)
    return History(set_up_seconds=statistics.median(set_ups) if set_ups else None, avoided=frozenset(avoided))

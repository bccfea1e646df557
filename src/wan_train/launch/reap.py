"""Boxes and launches left unattended. Every launch command looks for them first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wan_train.base import codec
from wan_train.launch.launch_directory import LaunchDirectory, all_launches, directory_of, launch_of
from wan_train.launch.market import Listed, Market
from wan_train.launch.model import Launch


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """A listed box that no launch records as living. `is_ours`: the record of its launch is on this computer."""

    box: Listed
    launch_id: str
    is_ours: bool


def strays(listed: Iterable[Listed], runs: Path) -> tuple[Stray, ...]:
    """Return the strays in a provider's list. A launch that is carried out now is skipped: it sweeps by itself."""
    found = []
    for box in listed:
        launch_id = launch_of(box.label)
        if launch_id is None:
            continue
        directory = directory_of(runs, launch_id)
        launch: Launch | None = codec.read(directory.record, Launch)
        if launch is None:
            # Another computer rented it and may attend to it, or its record is damaged.
            found.append(Stray(box=box, launch_id=launch_id, is_ours=False))
        elif not directory.is_held and not any(box.is_of(own.name) for own in launch.living):
            found.append(Stray(box=box, launch_id=launch_id, is_ours=True))
    return tuple(found)


def end_strays(market: Market, runs: Path) -> tuple[Stray, ...]:
    """End our strays; return all strays for display. Raises VastError."""
    found = strays(market.boxes(), runs)
    for each in found:
        if each.is_ours:
            market.destroy(each.box.label)
    return found


def is_living(directory: LaunchDirectory) -> bool:
    """Whether a launch of this computer is not over, carried out or not."""
    launch: Launch | None = codec.read(directory.record, Launch)
    return directory.is_held or (launch is not None and not launch.is_over)


def unattended(runs: Path) -> dict[LaunchDirectory, Launch]:
    """Unfinished launches that no program carries out: the laptop was switched off, or the program died."""
    found = {}
    for directory in all_launches(runs):
        launch: Launch | None = codec.read(directory.record, Launch)
        if launch is not None and not launch.is_over and not directory.is_held:
            found[directory] = launch
    return found


def infras(runs: Path) -> tuple[str, ...]:
    """Infrastructures of all launches of this computer whose record can be read, sorted."""
    launches: list[Launch | None] = [codec.read(directory.record, Launch) for directory in all_launches(runs)]
    return tuple(sorted({launch.wants.infra for launch in launches if launch is not None}))

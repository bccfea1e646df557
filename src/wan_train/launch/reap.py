"""Boxes and launches that nobody cares for: looked for by every command before it does anything else."""

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
    """A box that a launch rented and no living record has. `is_ours`: its launch is on this machine, and says gone."""

    box: Listed
    launch_id: str
    is_ours: bool


def strays(listed: Iterable[Listed], runs: Path) -> tuple[Stray, ...]:
    """Of the provider's list. A launch that is carried out now is left alone: it sweeps by itself."""
    found = []
    for box in listed:
        launch_id = launch_of(box.label)
        if launch_id is None:
            continue
        directory = directory_of(runs, launch_id)
        launch: Launch | None = codec.read(directory.record, Launch)
        if launch is None:
            # Rented from another machine, which may care for it; or its record is damaged.
            found.append(Stray(box=box, launch_id=launch_id, is_ours=False))
        elif not directory.is_held and not any(box.is_of(own.name) for own in launch.living):
            found.append(Stray(box=box, launch_id=launch_id, is_ours=True))
    return tuple(found)


def end_strays(market: Market, runs: Path) -> tuple[Stray, ...]:
    """End those that are ours; all of them are returned, for people. Raises VastError."""
    found = strays(market.boxes(), runs)
    for each in found:
        if each.is_ours:
            market.destroy(each.box.label)
    return found


def is_living(directory: LaunchDirectory) -> bool:
    """Whether a launch of this machine is not over, whoever carries it out."""
    launch: Launch | None = codec.read(directory.record, Launch)
    return directory.is_held or (launch is not None and not launch.is_over)


def unattended(runs: Path) -> tuple[LaunchDirectory, ...]:
    """Launches that are not over and that no program carries out: a laptop was switched off, or the program died."""
    found = []
    for directory in all_launches(runs):
        launch: Launch | None = codec.read(directory.record, Launch)
        if launch is not None and not launch.is_over and not directory.is_held:
            found.append(directory)
    return tuple(found)

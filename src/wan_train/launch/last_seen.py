"""Trainings as a launch's program last saw them: for display, never for decisions."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from wan_train.base import codec
from wan_train.base.files import write_whole
from wan_train.launch.launch_directory import LaunchDirectory
from wan_train.launch.remote import Training

_NAME = "seen.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One training as it was last seen. `ends_at` is in seconds since 1970."""

    epoch: int | None = None
    epochs: int | None = None
    loss: float | None = None
    ends_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LastSeen:
    """Progress of trainings by job name."""

    jobs: Mapping[str, Progress] = field(default_factory=dict)
    searching: str = ""
    """Why the last search found no offer."""


def progress_of(training: Training) -> Progress:
    return Progress(epoch=training.epoch, epochs=training.epochs, loss=training.loss, ends_at=training.ends_at)


def publish(directory: LaunchDirectory, seen: LastSeen) -> None:
    """Write it, ignoring errors: a full disk must not end a launch."""
    with suppress(OSError):
        write_whole(directory.path / _NAME, codec.to_json(seen) + "\n")


def read_last_seen(directory: LaunchDirectory) -> LastSeen:
    """Return what was last seen; empty if nothing was seen yet."""
    return codec.read(directory.path / _NAME, LastSeen) or LastSeen()

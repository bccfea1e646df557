"""Errors shown to the user; each class has an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes; a public contract (docs/exit-codes.md)."""

    DONE = 0
    BUG = 1
    BAD_INPUT = 2
    NOT_READY = 3
    TRAINING_FAILED = 4
    PARTLY_FAILED = 5
    DIVERGED = 6
    OVER_BUDGET = 7
    INTERRUPTED = 130
    TERMINATED = 143


class WanTrainError(Exception):
    """An error the user can act on: `message` says what, where and why; `hint` says what to do next."""

    exit_code: ExitCode = ExitCode.BUG

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadInputError(WanTrainError):
    """An unusable answer, option, recipe or dataset."""

    exit_code = ExitCode.BAD_INPUT


class AmbiguousRunError(BadInputError):
    """A partial run name that matches several runs; `matches` are their IDs, newest first."""

    def __init__(self, name: str, matches: Sequence[str]) -> None:
        super().__init__(f"{name!r} matches {len(matches)} runs", hint=f"Use the full run ID: {', '.join(matches)}")
        self.name = name
        self.matches = tuple(matches)


class InterruptionError(WanTrainError):
    """Ctrl-C while a command was at work."""

    exit_code = ExitCode.INTERRUPTED


class NotReadyError(WanTrainError):
    """The box lacks something: a driver, a model, the trainer, disk space."""

    exit_code = ExitCode.NOT_READY


def reason_of(error: Exception) -> str:
    """Return why something failed: the system's text without errno and path, which the message already has."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)

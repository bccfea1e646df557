"""Whether the guardian of this box is alive, and how to start it. Supervisors start it too: each restarts the other."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from wan_train.base import locks, process
from wan_train.base.errors import NotReadyError
from wan_train.base.settings import Settings

# Started again when it dies; it ends with 0 when nothing is left to do, or when another one is there.
# The shell ends at once, so that the guardian is no child of the program that starts it.
_LOOP = '(until "$@"; do sleep 5; done) &'


def lock_file(lease_dir: Path) -> Path:
    """Locked by the guardian; one for each user, whose runs it may touch."""
    return lease_dir / f"guardian-{os.geteuid()}.lock"


def log_file(lease_dir: Path) -> Path:
    return lease_dir / f"guardian-{os.geteuid()}.log"


def is_guarded(lease_dir: Path) -> bool:
    return locks.is_locked(lock_file(lease_dir))


def ensure_guardian(settings: Settings) -> None:
    """Start the guardian where none lives, in a session of its own; raises OSError and NotReadyError."""
    if is_guarded(settings.lease_dir):
        return
    locks.prepare(settings.lease_dir)
    process.start_detached(
        ["/bin/sh", "-c", _LOOP, "wan-train-guardian", sys.executable, "-m", "wan_train.guardian.program"],
        env=settings.environment(),
        log=log_file(settings.lease_dir),
    ).wait()  # for the shell


def try_ensure_guardian(settings: Settings) -> None:
    """The same for a supervisor, whose training continues without a guardian too."""
    with suppress(OSError, NotReadyError):
        ensure_guardian(settings)

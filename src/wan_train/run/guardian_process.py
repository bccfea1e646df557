"""Check whether the guardian of this box is alive, and start it. Supervisors and the guardian restart each other."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from wan_train.base import locks, process
from wan_train.base.errors import NotReadyError
from wan_train.base.settings import Settings

# Restart the guardian when it dies. It exits with 0 when nothing is left to do, or when another one is alive.
# The shell exits at once, so the guardian is not a child of the program that starts it.
_LOOP = '(until "$@"; do sleep 5; done) &'


def lock_file(lease_dir: Path) -> Path:
    """Return the file that the guardian locks. Each user has one, as a guardian may touch only its user's runs."""
    return lease_dir / f"guardian-{os.geteuid()}.lock"


def log_file(lease_dir: Path) -> Path:
    return lease_dir / f"guardian-{os.geteuid()}.log"


def is_guarded(lease_dir: Path) -> bool:
    return locks.is_locked(lock_file(lease_dir))


def ensure_guardian(settings: Settings) -> None:
    """Start the guardian in a session of its own unless one is alive; raises OSError and NotReadyError."""
    if is_guarded(settings.lease_dir):
        return
    locks.prepare(settings.lease_dir)
    process.start_detached(
        ["/bin/sh", "-c", _LOOP, "wan-train-guardian", sys.executable, "-m", "wan_train.guardian.program"],
        env=settings.environment(),
        log=log_file(settings.lease_dir),
    ).wait()  # only for the shell


def try_ensure_guardian(settings: Settings) -> None:
    """Start the guardian if possible. A supervisor's training continues without one."""
    with suppress(OSError, NotReadyError):
        ensure_guardian(settings)

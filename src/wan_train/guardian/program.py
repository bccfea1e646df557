"""The guardian as a program: `python -m wan_train.guardian.program`, detached, one for each user of a box."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from wan_train.base import locks
from wan_train.base.clock import SystemClock
from wan_train.base.errors import ExitCode
from wan_train.base.locks import held
from wan_train.base.settings import Settings, resolve
from wan_train.base.text import redact
from wan_train.guardian.effects import BoxEffects, say
from wan_train.guardian.guardian import ROUND_SECONDS, Guardian
from wan_train.notify.notifier import RunNotifier
from wan_train.run.box_ending import first_process
from wan_train.run.guardian_process import lock_file
from wan_train.upload.status import RecordedUploads, verified_at

_SETTLE_SECONDS = 10.0
REPLACED = 75
"""Exit code after an upgrade: the loop that started the guardian then starts the new version."""


def main() -> int:
    """Care for the runs of this box until their duties are done. Returns at once if another guardian lives."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings = resolve(flags={})
    locks.prepare(settings.lease_dir)
    try:
        with held(lock_file(settings.lease_dir)):
            return _care(settings)
    except BlockingIOError:
        return ExitCode.DONE


def _care(settings: Settings) -> int:
    first = first_process()
    notifier = RunNotifier(first_process=first, uploads=verified_at, say=say)
    effects = BoxEffects(settings, os.environ, before_the_end=lambda: notifier.settle(_SETTLE_SECONDS))
    guardian = Guardian(
        lease_dir=settings.lease_dir,
        clock=SystemClock(),
        effects=effects,
        uploads=RecordedUploads(),
        notifier=notifier,
        first_process=first,
    )
    guardian.take_up(settings.runs)
    began = _installed()
    return care(guardian.tick, is_replaced=lambda: not effects.is_acting and _installed() != began, pause=time.sleep)


def care(tick: Callable[[], float | None], *, is_replaced: Callable[[], bool], pause: Callable[[float], None]) -> int:
    """Run rounds until all duties are done (0) or an upgrade replaced the program (REPLACED)."""
    last = ""
    while True:
        try:
            seconds = tick()
        except Exception:  # noqa: BLE001  whatever goes wrong in one round, the box must not run on for ever
            if (trouble := redact(traceback.format_exc())) != last:
                say(last := trouble)
            seconds = ROUND_SECONDS
        if seconds is None:
            return ExitCode.DONE
        if is_replaced():
            # Modules imported from now on would be those of the new version.
            say("wan-train was replaced; the guardian starts again")
            return REPLACED
        pause(seconds)


def _installed() -> tuple[int, int] | None:
    """A value that changes when pip installs another version; None while it does."""
    try:
        status = Path(__file__).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


if __name__ == "__main__":
    sys.exit(main())

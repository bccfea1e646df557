"""The guardian as a program: `python -m wan_train.guardian.program`, detached, one for each user of a box."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback

from wan_train.base import locks
from wan_train.base.clock import SystemClock
from wan_train.base.errors import ExitCode
from wan_train.base.locks import held
from wan_train.base.settings import Settings, resolve
from wan_train.base.text import redact
from wan_train.guardian.effects import BoxEffects, say
from wan_train.guardian.guardian import ROUND_SECONDS, Guardian
from wan_train.guardian.upload_records import RecordedUploads, verified_at
from wan_train.notify.notifier import RunNotifier
from wan_train.run.box_ending import first_process
from wan_train.run.guardian_process import lock_file

_SETTLE_SECONDS = 10.0


def main() -> int:
    """Care for the runs of this box until their duties are done. Returns at once if another guardian lives."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings = resolve(flags={})
    locks.prepare(settings.lease_dir)
    try:
        with held(lock_file(settings.lease_dir)):
            _care(settings)
    except BlockingIOError:
        return ExitCode.DONE
    return ExitCode.DONE


def _care(settings: Settings) -> None:
    life = first_process()
    notifier = RunNotifier(life=life, uploads=verified_at, say=say)
    guardian = Guardian(
        lease_dir=settings.lease_dir,
        clock=SystemClock(),
        effects=BoxEffects(settings, os.environ, before_the_end=lambda: notifier.settle(_SETTLE_SECONDS)),
        uploads=RecordedUploads(),
        notifier=notifier,
        life=life,
    )
    guardian.take_up(settings.runs)
    last = ""
    while True:
        try:
            pause = guardian.tick()
        except Exception:  # noqa: BLE001  whatever goes wrong in one round, the box must not run on for ever
            if (trouble := redact(traceback.format_exc())) != last:
                say(last := trouble)
            pause = ROUND_SECONDS
        if pause is None:
            return
        time.sleep(pause)


if __name__ == "__main__":
    sys.exit(main())

"""The report at the end of a run: made by a process that can do the run no harm."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from wan_train.run.directory import RunDirectory
from wan_train.run.events import RunFinished

_LONGEST_SECONDS = 120.0
_HEAD_BYTES = 200
_MADE = re.compile(rb'"made": (\d+(?:\.\d+)?)')


def make_report(run: RunDirectory) -> None:
    """Have `wan-train report` tell a run that is over. Never raises; what it complains of is in supervisor.log.

    It decodes pictures and draws, which may hang, crash or need much memory. By then the run has its exit code, its
    files and its leases behind it, so none of that matters to anybody.
    """
    argv = [sys.executable, "-m", "wan_train", "report", "--json", str(run.path)]
    try:
        with run.supervisor_log.open("ab") as log:
            subprocess.run(
                argv,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                timeout=_LONGEST_SECONDS,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired):
        return


def report_of_end(run: RunDirectory, finished: RunFinished) -> Path | None:
    """The page that tells the end of a run, None while there is none. Its data, written last, say of when it is."""
    try:
        with run.report_data.open("rb") as file:
            made = _MADE.search(file.read(_HEAD_BYTES))
        is_there = run.report_page.is_file()
    except OSError:
        return None
    return run.report_page if is_there and made is not None and float(made[1]) >= finished.at else None

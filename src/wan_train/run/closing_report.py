"""The report at the end of a run: made by a process that can do the run no harm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from wan_train.run.directory import RunDirectory
from wan_train.run.events import RunFinished

_LONGEST_SECONDS = 120.0


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
    """The page that tells the end of a run, None while there is none."""
    try:
        return run.report_page if run.report_page.stat().st_mtime >= finished.at else None
    except OSError:
        return None

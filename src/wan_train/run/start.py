"""Starting a supervisor that nothing can hang up."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from wan_train.base.errors import ExitCode, WanTrainError
from wan_train.base.settings import Settings
from wan_train.base.text import one_line
from wan_train.run.directory import RunDirectory
from wan_train.run.events import SupervisorStarted
from wan_train.run.journal import JournalReader
from wan_train.run.progress import read_tail

_START_SECONDS = 30.0


def start_supervisor(
    run: RunDirectory,
    settings: Settings,
    *,
    resume: bool = False,
    epochs: int | None = None,
    gpus: Sequence[str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a supervisor in a session of its own and wait until it has taken the run over.

    It adopts trainers that are alive. With `resume` a run that is over goes on, `epochs` gives it a larger total;
    `gpus` are UUIDs in place of those it used.
    Raises WanTrainError with the end of its log when it does not start.
    """
    reader = JournalReader(run.events)
    for _ in reader.new_events():
        pass  # what earlier supervisors wrote
    options = ["--resume"] if resume else []
    options += [f"--epochs={epochs}"] if epochs is not None else []
    options += [f"--gpus={','.join(gpus)}"] if gpus is not None else []
    log = os.open(run.supervisor_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "wan_train.run.supervise", *options, str(run.path)],
            cwd="/",
            env={**os.environ, **settings.environment()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    finally:
        os.close(log)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if any(isinstance(event, SupervisorStarted) for event in reader.new_events()):
            return child
        if child.poll() is not None:
            if child.returncode == ExitCode.BAD_INPUT:
                return child  # somebody else started one at the same moment
            break
        time.sleep(0.02)
    said = (read_tail(run.supervisor_log).strip().splitlines() or ["nothing"])[-1]
    raise WanTrainError(
        f"the supervisor of {run.run_id} did not start: {one_line(said)}",
        hint=f"Its whole output is in {run.supervisor_log}.",
    )

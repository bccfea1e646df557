"""Making a run: its directory and records on disk, then a supervisor that nothing can hang up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from wan_train.engine.commands import ACCELERATE_CONFIG
from wan_train.errors import ExitCode, WanTrainError
from wan_train.files import write_whole
from wan_train.printable import one_line
from wan_train.recipe.load import to_toml
from wan_train.run import sampling
from wan_train.run.caching_shards import write_shares
from wan_train.run.directory import RunDirectory, create
from wan_train.run.events import SupervisorStarted
from wan_train.run.journal import JournalReader
from wan_train.run.plan import Plan
from wan_train.run.planner import Prepared, make_plan
from wan_train.run.progress import read_tail
from wan_train.settings import Settings

_START_SECONDS = 30.0


def write_run(prepared: Prepared, settings: Settings, *, created: float) -> tuple[RunDirectory, Plan]:
    """A new run directory with everything a supervisor needs. Nothing runs yet.

    `created` is the time the plan was shown with, so that the directory has the name that was shown.
    """
    run = create(settings.runs, prepared.request.answers.title, now=created)
    try:
        plan = make_plan(prepared, run, created=created)
    except WanTrainError:
        run.path.rmdir()
        raise
    if plan.samples is not None:
        try:
            sampling.write(run, plan.samples, prepared.prompts)
        except WanTrainError:
            shutil.rmtree(run.path, ignore_errors=True)
            raise
    write_whole(run.dataset_config, prepared.dataset_text)
    write_whole(run.recipe, to_toml(plan.recipe))
    write_whole(run.accelerate_config, ACCELERATE_CONFIG)
    write_shares(run, prepared.caching.shares)
    run.write_plan(plan)
    return run, plan


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

"""Start the supervisor of a run, and ask a run to stop."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wan_train.base import codec, process
from wan_train.base.errors import ExitCode, WanTrainError
from wan_train.base.files import write_whole
from wan_train.base.settings import Settings
from wan_train.base.text import one_line
from wan_train.run.directory import RunDirectory
from wan_train.run.events import JournalReader, StopMode, StopRequested, SupervisorStarted
from wan_train.run.progress import read_tail

_START_SECONDS = 30.0


def start_supervisor(
    run: RunDirectory,
    settings: Settings,
    *,
    resume: bool = False,
    epochs: int | None = None,
    ends: Mapping[str, int] | None = None,
    gpus: Sequence[str] | None = None,
    budget: float | None = None,
) -> subprocess.Popen[bytes]:
    """Start a supervisor in its own session and wait until it has taken over the run.

    It adopts trainers that are alive. `resume` resumes a run that is over, `epochs` gives it a larger total. `ends` are
    new epochs after which trainings end, by step; `gpus` are UUIDs that replace those it used; `budget` is what it may
    cost in total, in dollars.
    Raises WanTrainError with the last line of its log if it does not start.
    """
    reader = JournalReader(run.events)
    for _ in reader.new_events():
        pass  # what earlier supervisors wrote
    options = ["--resume"] if resume else []
    options += [f"--epochs={epochs}"] if epochs is not None else []
    options += [f"--end={step}={epoch}" for step, epoch in (ends or {}).items()]
    options += [f"--gpus={','.join(gpus)}"] if gpus is not None else []
    options += [f"--budget={budget}"] if budget is not None else []
    child = process.start_detached(
        [sys.executable, "-m", "wan_train.run.supervise", *options, run.path],
        env=settings.environment(),
        log=run.supervisor_log,
    )
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if any(isinstance(event, SupervisorStarted) for event in reader.new_events()):
            return child
        if child.poll() is not None:
            if child.returncode == ExitCode.BAD_INPUT:
                return child  # another process started one at the same moment
            break
        time.sleep(0.02)
    said = (read_tail(run.supervisor_log).strip().splitlines() or ["nothing"])[-1]
    raise WanTrainError(
        f"the supervisor of {run.run_id} did not start: {one_line(said)}",
        hint=f"Full output: {run.supervisor_log}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequest:
    """How soon to stop, and the signal (INT or TERM) that decides the run's exit code."""

    mode: StopMode
    signal: int


def request_stop(run: RunDirectory, request: StopRequest) -> None:
    write_whole(run.stop_request, codec.to_json(request))


def clear_stop_request(run: RunDirectory) -> None:
    run.stop_request.unlink(missing_ok=True)


def is_news(request: StopRequest, known: StopRequested | None) -> bool:
    """Whether the request goes beyond the known one: stopping now goes beyond stopping later."""
    return known is None or (request.mode is StopMode.NOW and known.mode is not StopMode.NOW)


def read_stop_request(run: RunDirectory) -> StopRequest | None:
    """Return the request, None without one. A damaged one still stops the run, in the way that loses nothing."""
    try:
        return codec.from_json(run.stop_request.read_bytes(), StopRequest, where=str(run.stop_request))
    except FileNotFoundError:
        return None
    except codec.CorruptRecordError:
        return StopRequest(mode=StopMode.AFTER_STATE, signal=signal.SIGTERM)

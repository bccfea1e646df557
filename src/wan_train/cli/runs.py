"""The verbs about runs that exist: attach, status, runs, logs, stop. They read records and work after any crash."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan_train.base.errors import BadInputError, ExitCode
from wan_train.base.settings import Settings
from wan_train.base.text import one_line, redact, visible
from wan_train.cli.output import Sink
from wan_train.cli.watch import watch
from wan_train.engine.log_parser import last_words
from wan_train.run.control import StopRequest, request_stop, start_supervisor
from wan_train.run.directory import all_runs, find
from wan_train.run.events import StopMode
from wan_train.views import formatting
from wan_train.views import run_status as facts
from wan_train.views.json_records import result_json, run_json, status_json
from wan_train.views.model import RunReader, RunView

_FOLLOW_SECONDS = 0.25
_MOST_BYTES = 10_000_000
_MOST_SECONDS = 1e8
"""Three years, which `time.sleep` and people's patience can hold."""


def attach(settings: Settings, sink: Sink, name: str | None, *, timeout: float | None = None) -> int:
    """Watch a run, finished or not, and return its exit code; TIMEOUT_EXIT after `timeout` seconds."""
    if timeout is not None and not 0 <= timeout < _MOST_SECONDS:  # also refuses nan
        raise BadInputError(
            f"--timeout {timeout:g} is not a time to wait",
            hint=f"Give seconds: 0 to look once, at most {_MOST_SECONDS:g}.",
        )
    return watch(find(settings.runs, name), settings, sink, owner=False, timeout=timeout)


def status(settings: Settings, sink: Sink, name: str | None) -> int:
    view, _ = RunReader(find(settings.runs, name), curves=True).refresh()
    if sink.as_json:
        sink.data(status_json(view, time.time()))
    else:
        from wan_train.views.dashboard import run_lines
        from wan_train.views.result import status_lines

        sink.show(run_lines(view, time.time()))
        sink.show(status_lines(view))
    return ExitCode.DONE


def runs(settings: Settings, sink: Sink) -> int:
    views = [RunReader(run).refresh()[0] for run in all_runs(settings.runs)]
    if sink.as_json:
        now = time.time()
        sink.data({"event": "runs", "runs_dir": str(settings.runs), "runs": [run_json(view, now) for view in views]})
        return ExitCode.DONE
    if not views:
        sink.note(f"There are no runs in {settings.runs}. Start one with: wan-train")
        return ExitCode.DONE
    from wan_train.views.result import runs_lines

    sink.show(runs_lines(views))
    return ExitCode.DONE


def logs(settings: Settings, sink: Sink, name: str | None, step: str | None, *, follow: bool) -> int:
    """Print the log of one step's newest attempt: with redraws of bars left out, control characters made visible."""
    run = find(settings.runs, name)
    view, _ = RunReader(run).refresh()
    shown = _log(view, step)
    path = shown.path(view)
    sink.note(f"== {path}")
    follower = _LogText(path, offset=max(0, path.stat().st_size - _MOST_BYTES))

    def show(lines: Sequence[str]) -> None:
        if lines and not sink.as_json:
            sink.text("\n".join(lines))
        for line in lines if sink.as_json else ():
            sink.data(shown.line_json(run.run_id, line))

    show(follower.new_lines())
    if follow:
        reader = RunReader(run)
        over = False
        while not over:
            time.sleep(_FOLLOW_SECONDS)
            over = reader.refresh()[0].state.is_over  # asked before the log is read: then nothing follows it
            show(follower.new_lines())
    show(follower.last_line())
    return ExitCode.DONE


def stop(settings: Settings, sink: Sink, name: str | None, *, now: bool) -> int:
    run = find(settings.runs, name)
    view, _ = RunReader(run).refresh()
    if view.state.is_over:
        sink.note(f"{run.run_id} is over already.")
        if sink.as_json:
            sink.data(result_json(view))
        return ExitCode.DONE
    mode = StopMode.NOW if now else StopMode.AFTER_STATE
    request_stop(run, StopRequest(mode=mode, signal=signal.SIGTERM))
    if not view.has_supervisor:
        start_supervisor(run, settings)  # to end the trainers that outlived theirs
    due = None if now else facts.next_states_in(view, time.time())
    waits = not now and any(job.state.has_process for job in view.state.jobs.values())
    sink.note(f"{run.run_id} stops {f'after the next checkpoint, {_due(due)}' if waits else 'now'}.")
    for job in view.state.jobs.values():
        if mode is StopMode.AFTER_STATE and (unusable := facts.unusable_state(job)) is not None:
            where = visible(unusable.path)
            sink.note(f"{job.step}: the last state does not count, {one_line(unusable.why)} in {where}")
            sink.note(f"It trains until one counts. Stop at once: wan-train stop --now {run.run_id}")
    if sink.as_json:
        about = {"run_id": run.run_id, "run_dir": str(run.path), "mode": mode.value}
        sink.data({"event": "stopping", **about, "next_checkpoint_seconds": due})
    return ExitCode.DONE


def _due(seconds: float | None) -> str:
    return "at a time not known yet" if seconds is None else f"in about {formatting.duration(seconds)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Log:
    """Which attempt's output is shown."""

    step: str
    attempt: int

    def path(self, view: RunView) -> Path:
        return view.run.attempt(self.step, self.attempt).log

    def line_json(self, run_id: str, text: str) -> dict[str, Any]:
        return {"event": "log", "run_id": run_id, "step": self.step, "attempt": self.attempt, "text": redact(text)}


def _log(view: RunView, step: str | None) -> _Log:
    started = [(job.attempt.started, job) for job in view.state.jobs.values() if job.attempt is not None]
    if step is not None:
        if step not in view.state.jobs:
            raise BadInputError(
                f"{view.run.run_id} has no step {step}", hint=f"Its steps: {', '.join(view.state.jobs)}."
            )
        started = [(at, job) for at, job in started if job.step == step]
    if not started:
        raise BadInputError(
            f"nothing of {step or view.run.run_id} has started yet, so there is no log",
            hint=f"See what it waits for: `wan-train status {view.run.run_id}`.",
        )
    # Something that runs is more interesting than what is over; then the newest.
    _, job = max(started, key=lambda pair: (pair[1].state.has_process, pair[0]))
    assert job.attempt is not None, "filtered above"  # noqa: S101  an invariant
    return _Log(step=job.step, attempt=job.attempt.number)


@dataclass(slots=True)
class _LogText:
    """The lines of a growing log for people: of redrawn bars only the last state, no empty lines."""

    path: Path
    offset: int
    _rest: str = ""

    def new_lines(self) -> list[str]:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read()
        self.offset += len(data)
        *whole, self._rest = (self._rest + data.decode("utf-8", errors="replace")).split("\n")
        return last_words("\n".join(whole), count=len(whole))

    def last_line(self) -> list[str]:
        """What no line end follows, such as a bar that is being drawn."""
        return last_words(self._rest, count=1)

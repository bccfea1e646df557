"""`wan-train explain`: the table of failure signatures, applied to a run or to any trainer log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wan_train import codec
from wan_train.cli.sink import Sink
from wan_train.engine.failures import Cause, Diagnosis, diagnose
from wan_train.errors import BadInputError, ExitCode
from wan_train.home import expand
from wan_train.printable import one_line, redact, visible
from wan_train.run.directory import find
from wan_train.run.progress import read_tail
from wan_train.settings import Settings
from wan_train.views import standing as facts
from wan_train.views.model import RunReader, RunView

_TAIL_BYTES = 1_000_000


def explain(settings: Settings, sink: Sink, name: str | None) -> int:
    """Every failure of a run, attempt by attempt; or what the end of a log file speaks of."""
    log = expand(name) if name is not None else None
    if log is not None and not log.exists() and (log.suffix or "/" in str(name)):
        raise BadInputError(
            f"there is no file {visible(str(log))}", hint="Name a log file, or a run (`wan-train runs` lists them)."
        )
    if log is not None and log.is_file():
        found: Mapping[str, Diagnosis] = {str(log): diagnose(read_tail(log, _TAIL_BYTES))}
        logs: list[str] = []
    else:
        view, _ = RunReader(find(settings.runs, name)).refresh()
        found, logs = _of_run(view), _logs(view)
    if sink.as_json:
        sink.data({"event": "explain", "failures": [_as_json(where, what) for where, what in found.items()]})
        return ExitCode.DONE
    if not found:
        sink.line("Nothing has failed.")
    for where, what in found.items():
        known = what.cause is not Cause.UNKNOWN or what.evidence is not None
        sink.line(f"{where}: {what.meaning if known else 'no error that wan-train knows'}")
        if what.evidence:
            sink.line(f"  it said: {one_line(what.evidence)}")
        sink.line(f"  what to do: {what.advice}")
    for command in logs:
        sink.line(f"The whole log: {command}")
    return ExitCode.DONE


def _as_json(where: str, what: Diagnosis) -> dict[str, Any]:
    evidence = redact(what.evidence) if what.evidence is not None else None
    return {"where": where, **codec.to_data(what), "evidence": evidence}


def _logs(view: RunView) -> list[str]:
    """Commands that show what the trainer said in the newest attempts that failed."""
    failed = [job for job in view.state.jobs.values() if job.attempt is not None and job.attempt.diagnosis is not None]
    return [f"wan-train logs {view.run.run_id} --step {job.step}" for job in failed]


def _of_run(view: RunView) -> dict[str, Diagnosis]:
    low = facts.low_disk(view)
    return {
        **({view.run.run_id: low} if low is not None else {}),
        **{job.step: job.refusal for job in view.state.jobs.values() if job.refusal is not None},
        **{
            f"{job.step}, attempt {attempt.number}": attempt.diagnosis
            for job in view.state.jobs.values()
            for attempt in job.attempts
            if attempt.diagnosis is not None
        },
    }

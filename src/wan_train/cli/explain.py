"""`wan-train explain`: the failures of a run or in a log file, with fixes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any, assert_never

from wan_train.base import codec, units
from wan_train.base.errors import BadInputError
from wan_train.base.home import expand
from wan_train.base.text import redact, visible
from wan_train.cli import options
from wan_train.cli.call import Call
from wan_train.cli.output import Result, Sink
from wan_train.engine.failures import Cause, Diagnosis
from wan_train.engine.failures.diagnosis import diagnose
from wan_train.run.directory import find
from wan_train.run.disk import disk_for_next_save
from wan_train.run.outcome import with_limits
from wan_train.run.progress import read_tail
from wan_train.run.retry import AnotherAttempt, another_attempt
from wan_train.views import formatting
from wan_train.views import run_status as facts
from wan_train.views.model import RunView, view_of

_TAIL_BYTES = 1_000_000


def explain(call: Call) -> Result:
    """Explain every failure of a run by attempt, or the failure at the end of a log file."""
    name = call.get(options.RUN_OR_LOG)
    log = expand(name) if name is not None else None
    if log is not None and not log.exists() and (log.suffix or "/" in str(name)):
        raise BadInputError(
            f"file not found: {visible(str(log))}", hint="Name a log file, or a run (`wan-train runs` lists them)."
        )
    if log is not None and log.is_file():
        found: Mapping[str, Diagnosis] = {str(log): with_limits(diagnose(read_tail(log, _TAIL_BYTES)))}
        more: list[str] = []
    else:
        view = view_of(find(call.settings.runs, name))
        found, more = _of_run(view), [*_room(view), *_logs(view)]
    return Result(
        data=lambda: {"event": "explain", "failures": [_as_json(where, what) for where, what in found.items()]},
        text=lambda sink: _show(sink, found, more),
    )


def _show(sink: Sink, found: Mapping[str, Diagnosis], more: Sequence[str]) -> None:
    if not found:
        sink.line("Nothing has failed.")
    for where, what in found.items():
        known = what.cause is not Cause.UNKNOWN or what.evidence is not None
        meaning = visible(what.meaning) if known else "no error that wan-train knows"
        _print(sink, "", [f"{visible(where)}: {meaning}"])
        _print(sink, "  error output: ", formatting.several_lines(what.evidence))
        _print(sink, "  fix: ", [visible(what.advice)])
        if known:
            _print(sink, "  retry: ", [_retry(what)])
    for line in more:
        sink.line(line)


def _print(sink: Sink, label: str, lines: Sequence[str]) -> None:
    """Print lines after a label; wrapped between words at a terminal, unwrapped for programs."""
    indent = " " * len(label)
    width = sink.console.width - len(label) if sink.is_screen else None
    pieces = [piece for line in lines for piece in (formatting.wrap(line, width) if width else [line])]
    for number, piece in enumerate(pieces):
        sink.line(f"{indent if number else label}{piece}")


def _retry(what: Diagnosis) -> str:
    match another_attempt(what):
        case AnotherAttempt.CANNOT_HELP if what.cause is Cause.SETTING:
            return "cannot help; start a new run with other settings"
        case AnotherAttempt.CANNOT_HELP:
            return "cannot help until this is fixed"
        case AnotherAttempt.MAY_HELP:
            return "may help"
        case AnotherAttempt.NEXT_MEMORY_SETTING:
            return "may help with the next memory setting; automatic in a run"
        case AnotherAttempt.EXPERTS_IN_TURN:
            return "may help with one expert after the other; automatic in a run"
        case AnotherAttempt.WITHOUT_SAMPLES:
            return "helps without samples; automatic in a run"
        case AnotherAttempt.LATER:
            return f"may help after {what.retry_after or 0:.0f} s"
        case _ as unreachable:
            assert_never(unreachable)


def _as_json(where: str, what: Diagnosis) -> dict[str, Any]:
    evidence = redact(what.evidence) if what.evidence is not None else None
    return {
        "where": where,
        **codec.to_data(what),
        "evidence": evidence,
        "another_attempt": another_attempt(what).value,
    }


def _room(view: RunView) -> list[str]:
    """Return a line about the space for the next checkpoint, if a full disk or quota ended the run."""
    if not any(found.cause is Cause.DISK_FULL for found in _of_run(view).values()):
        return []
    needed, free = disk_for_next_save(view.plan), shutil.disk_usage(view.run.path).free
    sizes = (units.file_size(needed), units.file_size(free))
    return [
        "The next checkpoint of an expert needs {}; the disk has {} free, less where a quota is used up.".format(*sizes)
    ]


def _logs(view: RunView) -> list[str]:
    """Return commands that show the logs of the newest failed attempts."""
    failed = [job for job in view.state.jobs.values() if job.attempt is not None and job.attempt.diagnosis is not None]
    return [f"wan-train logs {view.run.run_id} --step {job.step}" for job in failed]


def _of_run(view: RunView) -> dict[str, Diagnosis]:
    whole = facts.low_disk(view) or facts.dead_supervisor(view)
    return {
        **({view.run.run_id: whole} if whole is not None else {}),
        **{job.step: job.refusal for job in view.state.jobs.values() if job.refusal is not None},
        **{
            f"{job.step}, attempt {attempt.number}": attempt.diagnosis
            for job in view.state.jobs.values()
            for attempt in job.attempts
            if attempt.diagnosis is not None
        },
    }

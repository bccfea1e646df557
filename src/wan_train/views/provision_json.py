"""A provision, or a look at a box, as the one JSON document that scripts read (docs/provision.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wan_train.base.errors import ExitCode, WanTrainError
from wan_train.base.text import redact
from wan_train.provision.status_table import Row
from wan_train.provision.steps import Finding, is_ready

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that the document says. `rows` is empty and `seconds` None when nothing was to be done, only looked at."""

    task: str
    engine: str
    workspace: str
    titles: Mapping[str, str]
    found: Mapping[str, Finding]
    exit_code: ExitCode
    rows: Sequence[Row] = ()
    failures: Mapping[str, WanTrainError]
    seconds: float | None = None
    log: str | None = None
    error: WanTrainError | None = None


def report_json(report: Report) -> Json:
    rows = {row.id: row for row in report.rows}
    return {
        "event": "provision",
        "ready": is_ready(report.found),
        "exit_code": int(report.exit_code),
        "task": report.task,
        "engine": report.engine,
        "workspace": report.workspace,
        "seconds": _rounded(report.seconds),
        "fetched_bytes": sum(row.fetched for row in report.rows),
        "log": report.log,
        "error": _error(report.error),
        "steps": [
            {
                "id": name,
                "title": report.titles[name],
                "state": finding.state.value,
                "detail": redact(finding.detail),
                "bytes": finding.size,
                "hint": finding.hint,
                "phase": rows[name].phase.value if name in rows else None,
                "seconds": _rounded(rows[name].worked) if name in rows else None,
                "fetched_bytes": rows[name].fetched if name in rows else 0,
                "remarks": [redact(remark) for remark in rows[name].remarks] if name in rows else [],
                "error": _error(report.failures.get(name)),
            }
            for name, finding in report.found.items()
        ],
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _error(error: WanTrainError | None) -> Json | None:
    if error is None:
        return None
    return {"message": redact(error.message), "hint": error.hint}

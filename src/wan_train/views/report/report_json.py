"""The report as one JSON value; the keys are in docs/json-output.md."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from wan_train.base import codec
from wan_train.base.text import redact
from wan_train.run.curves import Curve
from wan_train.run.events import Exit
from wan_train.run.state import Attempt, Job
from wan_train.views import run_status
from wan_train.views.json_records import run_json
from wan_train.views.report import metrics
from wan_train.views.report.metrics import ExpertMetrics
from wan_train.views.report.report_data import ReportData
from wan_train.views.report.reproduce import rerun_command, settings_of, versions

SCHEMA = 1
Json = dict[str, Any]


def report_json(report: ReportData) -> Json:
    """`{event: "report", schema, made, is_final, status, …}`; every number in it is finite."""
    view = report.view
    finished = view.state.finished
    counted = view.plan.dataset
    return {
        "event": "report",
        "schema": SCHEMA,
        "made": report.made,
        "made_by": report.version,
        "is_final": report.is_final,
        "status": {
            **run_json(view, finished.at if finished is not None else report.made),
            "report": str(view.run.report_page) if report.is_final else None,
        },
        "dataset": {
            "source": str(counted.source),
            "items": counted.items,
            "captions": counted.captions,
            "items_with_repeats": counted.repeats,
            "batches_per_epoch": counted.batches_per_epoch,
        },
        "settings": [codec.to_data(row) for row in settings_of(view.plan)],
        "experts": [_expert(report, each) for each in metrics.experts(report)],
        "attempts": [
            _attempt(report, job, attempt) for _, job in run_status.steps_of(view) for attempt in job.attempts
        ],
        "gpus": [codec.to_data(gpu) for gpu in metrics.gpus(report.gpus)],
        "files": [_file(job) for job in view.state.jobs.values() if job.result is not None],
        "samples": [codec.to_data(sample) for sample in report.samples],
        "versions": codec.to_data(versions(report)),
        "again": rerun_command(report),
    }


def _expert(report: ReportData, each: ExpertMetrics) -> Json:
    curve = report.curves.get(each.step, Curve())
    return {
        "step": each.step,
        "expert": each.expert.value,
        "state": each.job.state.value,
        "epochs": each.epochs_done,
        "of_epochs": each.epochs,
        "steps": each.steps_done,
        "final_loss": each.final_loss,
        "last_learning_rate": each.last_rate,
        "steps_not_finite": each.not_finite,
        "seconds": each.seconds,
        "seconds_per_step": each.seconds_per_step,
        "loss_source": each.source.value if each.source is not None else None,
        "movements": [[m.since_epoch, m.epoch, m.relative] for m in each.job.movements],
        "points": [[point.step, _finite(point.loss), _finite(point.lr)] for point in curve.points],
    }


def _attempt(report: ReportData, job: Job, attempt: Attempt) -> Json:
    found = attempt.diagnosis or attempt.stop_diagnosis
    command = report.commands.get((job.step, attempt.number))
    return {
        "step": job.step,
        "attempt": attempt.number,
        "gpu": attempt.gpu_label,
        "gpu_uuid": attempt.gpu_uuid,
        "started": attempt.started,
        "ended": attempt.ended,
        "exit": codec.to_data(attempt.exit, Exit) if attempt.exit is not None else None,
        "outcome": metrics.outcome_of(job, attempt)[0],
        "cause": found.cause.value if found is not None else None,
        "evidence": redact(found.evidence) if found is not None and found.evidence is not None else None,
        "epochs_before": attempt.epochs_before,
        "epochs_done": attempt.epochs_done,
        "changes": dict(attempt.changes),
        "command": command,
    }


def _file(job: Job) -> Json:
    assert job.result is not None, "filtered by the caller"
    result = job.result
    return {
        "step": job.step,
        "name": Path(result.path).name,
        "path": result.path,
        "bytes": result.bytes,
        "sha256": result.sha256,
        "epochs": result.epochs,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

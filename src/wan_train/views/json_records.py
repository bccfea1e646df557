"""Records as JSON values for scripts; docs/json-schema.json describes every line, `cli/output.py` numbers them.

A run as it stands is
`{run_id, run_dir, title, task, engine, state, exit_code, started, elapsed_seconds, ends_at, steps, gpus,
disk_free_bytes, warnings, supervisor_alive, updated, report}` with `state` one of `Standing`, times in seconds since
1970, `updated` the moment of the newest observation (null before the first). Each of `steps` is
`{id, kind, expert, state, attempt, gpu, progress, waiting_for, failure, result, loss, curve, newest_state, kept,
caches, log}`, where
`progress` is `{stage, epoch, epochs, step, steps, loss, loss_is_finite, seconds_per_step, eta_seconds, items, cached}`,
`curve` is `{loss_source, step, loss, smoothed, trend, not_finite, learning_rate}`,
`newest_state` is `{epoch, at, path}`,
`failure` is `{cause, meaning, advice, evidence, another_attempt, retry_after, log}` and `result` is
`{path, bytes, sha256}`; each is null where there is none. Each of `gpus` is
`{label, index, uuid, name, used_bytes, total_bytes, utilization, temperature, step}`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from wan_train.base import codec
from wan_train.base.text import redact
from wan_train.gpu.model import Gpu
from wan_train.run import retry
from wan_train.run.closing_report import report_of_end
from wan_train.run.events import Event
from wan_train.run.plan import Plan, Step
from wan_train.run.progress import Progress
from wan_train.run.state import Job, Result
from wan_train.views import run_status as facts
from wan_train.views.eta import ends_at
from wan_train.views.losses import Losses
from wan_train.views.model import GpuNow, RunView

Json = dict[str, Any]


def plan_json(plan: Plan, gpus: Sequence[GpuNow]) -> Json:
    """`{event: "plan", plan, commands, gpus}`: the whole plan, each step's shell line, the GPUs as they are."""
    return {
        "event": "plan",
        "plan": codec.to_data(plan),
        "commands": {step.id: step.command.shell() for step in plan.steps},
        "gpus": [codec.to_data(gpu) for gpu in gpus],
    }


def event_json(event: Event) -> Json:
    """`{event: "journal", kind, at, …}`: a line of the journal as it is there; `kind` says which."""
    return {"event": "journal", **codec.to_data(event, Event)}


def status_json(view: RunView, now: float) -> Json:
    """One run at `now` (seconds since 1970), marked as the answer to `status`."""
    return {"event": "status", **run_json(view, now)}


def run_json(view: RunView, now: float) -> Json:
    """A run at `now` (seconds since 1970), in the shape that the module describes."""
    plan, state, live, low = view.plan, view.state, view.live, view.state.disk_low
    return {
        "run_id": plan.run_id,
        "run_dir": str(view.run.path),
        "title": plan.answers.title,
        "task": plan.recipe.task.value,
        "engine": plan.trainer.kind.value,
        "state": facts.standing(view).value,
        "exit_code": state.finished.exit_code if state.finished is not None else None,
        "started": state.started,
        "elapsed_seconds": round(facts.elapsed(view, now), 3),
        "ends_at": ends_at(view, now),
        "steps": [_step(view, step, job) for step, job in facts.steps(view)],
        "gpus": [_gpu(view, gpu) for gpu in live.gpus] if live is not None else [],
        "disk_free_bytes": live.disk_free_bytes if live is not None else None,
        "disk_low": {"free": low.free, "needed": low.needed} if low is not None else None,
        "warnings": _warnings(view),
        "supervisor_alive": view.supervisor_alive,
        "updated": live.at if live is not None else None,
        "report": _report(view),
    }


def result_json(view: RunView) -> Json:
    """A finished run: its status at its end, marked as the last thing said."""
    finished = view.state.finished
    at = finished.at if finished is not None else (view.live.at if view.live is not None else view.plan.created)
    return {"event": "result", **run_json(view, at)}


def _report(view: RunView) -> str | None:
    page = report_of_end(view.run, view.state.finished) if view.state.finished is not None else None
    return str(page) if page is not None else None


def _step(view: RunView, step: Step, job: Job) -> Json:
    attempt = job.attempt
    log = facts.log_of(view, job)
    progress, state = facts.progress(view, step.id), facts.newest_state(job)
    return {
        "id": step.id,
        "kind": step.kind.value,
        "expert": step.expert.value if step.expert is not None else None,
        "state": job.state.value,
        "attempt": attempt.number if attempt is not None else None,
        "gpu": attempt.gpu_label if attempt is not None else None,
        "progress": _progress(progress) if progress is not None else None,
        "waiting_for": facts.waits_for(view, job),
        "failure": _failure(view, job),
        "result": _result(job.result) if job.result is not None else None,
        "loss": job.loss,
        "curve": _curve(view.losses[step.id]) if step.id in view.losses else None,
        "newest_state": {"epoch": state.epoch, "at": state.at, "path": state.path} if state is not None else None,
        "kept": list(job.kept),
        "caches": codec.to_data(job.caches, Event) if job.caches is not None else None,
        "log": str(log) if log is not None else None,
    }


def _curve(losses: Losses) -> Json:
    newest = losses.newest if math.isfinite(losses.newest) else None
    return {
        "loss_source": losses.source.value,
        "step": losses.step,
        "loss": newest,
        "smoothed": losses.average,
        "trend": losses.trend.value if losses.trend is not None else None,
        "not_finite": losses.bad,
        "learning_rate": losses.rate,
    }


def _result(result: Result) -> Json:
    return {"path": result.path, "bytes": result.bytes, "sha256": result.sha256}


def _progress(progress: Progress) -> Json:
    data: Json = codec.to_data(progress)
    return data


def _failure(view: RunView, job: Job) -> Json | None:
    found, log = job.diagnosis, facts.log_of(view, job)
    if found is None:
        return None
    return {
        "cause": found.cause.value,
        "meaning": found.meaning,
        "advice": found.advice,
        "evidence": redact(found.evidence) if found.evidence is not None else None,
        "another_attempt": retry.another_attempt(found).value,
        "retry_after": found.retry_after,
        "log": str(log) if log is not None and job.refusal is None else None,
    }


def _gpu(view: RunView, gpu: Gpu) -> Json:
    return {
        "label": facts.label_of(view, gpu),
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "used_bytes": gpu.used_bytes,
        "total_bytes": gpu.total_bytes,
        "utilization": gpu.utilization,
        "temperature": gpu.temperature,
        "step": facts.user_of(view, gpu),
    }


def _warnings(view: RunView) -> list[str]:
    if view.live is None:
        return []
    return [*view.live.warnings, *([view.live.gpu_problem] if view.live.gpu_problem else [])]

"""Records as JSON values for scripts, as docs/json-output.md and docs/json-schema.json describe them."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from wan_train.base import codec
from wan_train.base.text import redact
from wan_train.dataset.layout import Layout, SubsetLayout, TrainedFile
from wan_train.dataset.model import Problem, Severity
from wan_train.dataset.scan import Check, Group
from wan_train.gpu.model import Gpu
from wan_train.run import retry
from wan_train.run.box_ending import Phase
from wan_train.run.duties import Then
from wan_train.run.events import Event, MovementMeasured
from wan_train.run.picks import Pick
from wan_train.run.plan import Plan, Step
from wan_train.run.quote import dollars_of
from wan_train.run.state import Job, Result
from wan_train.run.step_commands import command_of
from wan_train.upload.status import TargetStatus
from wan_train.views import run_status
from wan_train.views.cost import cost_of
from wan_train.views.losses import Losses
from wan_train.views.model import RunView
from wan_train.views.uploads import download_command

if TYPE_CHECKING:
    from wan_train.views.summary import AtStart

Json = dict[str, Any]


def plan_json(plan: Plan, now: AtStart) -> Json:
    """`{event: "plan", plan, commands, gpus, cost}`: the whole plan, each step's shell line, current GPUs and price."""
    commands = {step.id: command_of(plan, step) for step in plan.steps}
    steps = [{**codec.to_data(step), "command": codec.to_data(commands[step.id]), "gpu_need": 1} for step in plan.steps]
    return {
        "event": "plan",
        "plan": {**codec.to_data(plan), "steps": steps},
        "commands": {step: command.shell() for step, command in commands.items()},
        "gpus": [codec.to_data(gpu) for gpu in now.gpus],
        "cost": _quoted_cost(plan, now),
    }


def _quoted_cost(plan: Plan, now: AtStart) -> Json | None:
    price = now.price
    if price is None:
        return None
    shared, alone = (
        None if plan.quote is None else round(dollars_of(plan.quote, price.per_hour, runs=runs), 6)
        for runs in (now.runs, 1)
    )
    return {
        "total": shared,
        "total_alone": alone,
        "per_hour": price.per_hour,
        "price_source": price.source.value,
        "runs": now.runs,
        "budget": now.budget,
        "rental_ends": price.rental.ends if price.rental is not None else None,
    }


def event_json(event: Event) -> Json:
    """`{event: "journal", kind, at, …}`: a line of the journal; `kind` names the event."""
    return {"event": "journal", **codec.to_data(event, Event)}


def status_json(view: RunView, now: float) -> Json:
    """One run at `now` (seconds since 1970), marked as the answer to `status`."""
    return {"event": "status", **run_json(view, now)}


def run_json(view: RunView, now: float) -> Json:
    """A run at `now` (seconds since 1970), as docs/json-output.md describes it."""
    plan, state, live, low = view.plan, view.state, view.live, view.state.disk_low
    return {
        "run_id": plan.run_id,
        "run_dir": str(view.run.path),
        "title": plan.answers.title,
        "task": plan.recipe.task.value,
        "engine": plan.trainer.kind.value,
        "state": run_status.status_of(view).value,
        "exit_code": state.finished.exit_code if state.finished is not None else None,
        "started": state.started,
        "elapsed_seconds": round(run_status.elapsed(view, now), 3),
        "ends_at": run_status.ends_at(view, now),
        "steps": [_step(view, step, job) for step, job in run_status.steps_of(view)],
        "gpus": [_gpu(view, gpu) for gpu in live.gpus] if live is not None else [],
        "disk_free_bytes": live.disk_free_bytes if live is not None else None,
        "disk_low": {"free": low.free, "needed": low.needed} if low is not None else None,
        "cost": _cost(view, now),
        "warnings": [live.gpu_problem] if live is not None and live.gpu_problem else [],
        "supervisor_alive": view.supervisor_alive,
        "updated": live.at if live is not None else None,
        "report": str(view.report) if view.report is not None else None,
        "picked": [pick_json(each) for each in view.picks],
        "uploads": [upload_json(each) for each in view.uploads],
        "box_end": _box_end(view),
    }


def _box_end(view: RunView) -> Json | None:
    ending, duties = view.ending, view.duties
    if ending is not None:
        return {
            "then": ending.then.value,
            "phase": ending.phase.value,
            "seconds": round(view.ending_seconds, 1) if ending.phase is Phase.COUNTDOWN else None,
            "because": ending.because,
            "cancelled_by": ending.cancelled_by,
            "problem": ending.problem,
            "by_hand": ending.by_hand,
        }
    if duties is None or duties.then is Then.NOTHING or not view.awaits_ending:
        return None
    about = dict.fromkeys(("seconds", "because", "cancelled_by", "problem", "by_hand"))
    return {"then": duties.then.value, "phase": "planned", **about}


def upload_json(status: TargetStatus) -> Json:
    """One target of a run's uploads."""
    failed = status.failed
    return {
        "target": str(status.target),
        "state": status.stage.value,
        "ready": status.ready,
        "verified": status.verified,
        "bytes": status.bytes,
        "problem": redact(failed.reason) if failed is not None else None,
        "hint": redact(failed.hint) if failed is not None and failed.hint is not None else None,
        "next_try": status.next_try,
        "download": download_command(status),
    }


def pick_json(picked: Pick) -> Json:
    """A choice of epochs, with its files."""
    return {
        "at": picked.at,
        "epochs": str(picked.epochs),
        "files": [codec.to_data(each) for each in picked.files],
    }


def result_json(view: RunView) -> Json:
    """A finished run: its status at its end, marked as the last line."""
    finished = view.state.finished
    at = finished.at if finished is not None else (view.live.at if view.live is not None else view.plan.created)
    return {"event": "result", **run_json(view, at)}


def _cost(view: RunView, now: float) -> Json | None:
    cost = cost_of(view, now)
    if cost is None:
        return None
    return {
        "spent": round(cost.spent, 6),
        "total": round(cost.total, 6) if cost.total is not None else None,
        "paid_seconds": round(cost.seconds, 3),
        "per_hour": cost.per_hour,
        "price_source": cost.source.value,
        "runs": cost.runs,
        "budget": cost.budget,
        "rental_ends": cost.rental_ends,
    }


def _step(view: RunView, step: Step, job: Job) -> Json:
    attempt = job.attempt
    log = run_status.log_of(view, job)
    progress, state = run_status.progress_of(view, step.id), run_status.newest_state(job)
    return {
        "id": step.id,
        "kind": step.kind.value,
        "expert": step.expert.value if step.expert is not None else None,
        "state": job.state.value,
        "attempt": attempt.number if attempt is not None else None,
        "gpu": attempt.gpu_label if attempt is not None else None,
        "progress": codec.to_data(progress) if progress is not None else None,
        "waiting_for": run_status.waits_for(view, job),
        "failure": _failure(view, job),
        "result": _result(job.result) if job.result is not None else None,
        "loss": job.loss,
        "curve": _curve(view.losses[step.id]) if step.id in view.losses else None,
        "ends_early": _ends_early(view, step),
        "newest_state": {"epoch": state.epoch, "at": state.at, "path": state.path} if state is not None else None,
        "movement": _movement(view, step, job.movements[-1]) if job.movements else None,
        "kept": list(job.kept),
        "caches": codec.to_data(job.caches, Event) if job.caches is not None else None,
        "log": str(log) if log is not None else None,
    }


def _ends_early(view: RunView, step: Step) -> Json | None:
    if run_status.early_end(view, step) is None:
        return None
    return {
        "epoch": view.state.total_epochs(view.plan, step),
        "of_epochs": view.state.schedule_epochs(view.plan, step),
    }


def _movement(view: RunView, step: Step, movement: MovementMeasured) -> Json:
    return {
        "since_epoch": movement.since_epoch,
        "epoch": movement.epoch,
        "relative": movement.relative,
        "learning": run_status.learning_of(view, step, movement).name.lower(),
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


def _failure(view: RunView, job: Job) -> Json | None:
    found, log = job.diagnosis, run_status.log_of(view, job)
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
        "label": run_status.label_of(view, gpu),
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "used_bytes": gpu.used_bytes,
        "total_bytes": gpu.total_bytes,
        "utilization": gpu.utilization,
        "temperature": gpu.temperature,
        "step": run_status.user_of(view, gpu),
    }


def check_json(check: Check, ahead: Layout | None) -> Json:
    """`{event: "dataset_check", …}`; it has every problem, without a limit."""
    counts = Counter(problem.severity for problem in check.problems)
    return {
        "event": "dataset_check",
        "dataset": str(check.config),
        "written": check.is_written,
        "trainer": check.reading.name,
        "stops": check.stops,
        "counts": {severity.value: counts[severity] for severity in Severity},
        "left_out": list(check.left_out),
        "problems": [_group_json(each) for each in check.groups],
        "trained": _trained_json(ahead),
    }


def _group_json(group: Group) -> Json:
    return {
        "kind": group.kind.value,
        "severity": group.severity.value,
        "count": len(group.problems),
        "found": [_problem(problem) for problem in group.problems],
    }


def _problem(problem: Problem) -> Json:
    return {
        "key": problem.key or None,
        "path": str(problem.path) if problem.path is not None else None,
        "line": problem.row,
        "what": problem.what,
        "mend": problem.fix,
    }


def _trained_json(ahead: Layout | None) -> Json | None:
    if ahead is None:
        return None
    counted = ahead.summary
    return {
        "files": counted.files,
        "captions": counted.captions,
        "items_with_repeats": counted.items_with_repeats,
        "batches_per_epoch": counted.batches_per_epoch,
        "epochs": ahead.epochs,
        "steps_per_epoch": ahead.steps_per_epoch,
        "steps": ahead.steps,
        "cache_bytes": counted.cache_bytes,
        "datasets": [_dataset(each) for each in ahead.subsets],
    }


def _dataset(each: SubsetLayout) -> Json:
    return {
        "source": str(each.subset.source),
        "kind": each.subset.kind.value,
        "resolution": list(each.subset.resolution),
        "batch_size": each.subset.batch_size,
        "num_repeats": each.subset.num_repeats,
        "items": each.summary.items,
        "buckets": [
            {"width": bucket.width, "height": bucket.height, "frames": bucket.frames, "items": bucket.items}
            for bucket in each.summary.buckets
        ],
        "files": [_file(one) for one in each.files],
    }


def _file(one: TrainedFile) -> Json:
    crop = one.crop
    return {
        "path": str(one.item.path),
        "width": one.item.width,
        "height": one.item.height,
        "frames": one.item.frames,
        "trained": None
        if crop is None
        else {
            "width": crop.bucket[0],
            "height": crop.bucket[1],
            "scale": round(crop.scale, 6),
            "share_lost": round(crop.share_lost, 6),
            "cut": {"left": crop.left, "top": crop.top, "right": crop.right, "bottom": crop.bottom},
        },
        "clips": [list(cut) for cut in one.cuts],
    }

"""The plan of a launch, for the person who confirms it: offers, every cost, and what ends a forgotten box."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wan_train.base import codec
from wan_train.base.units import count, dollars, duration, file_size
from wan_train.launch.jobs import Ready
from wan_train.launch.model import Offer, Wants
from wan_train.launch.offers import Choice, Priced
from wan_train.launch.remote import GRACE_MINUTES
from wan_train.views.formatting import dollars_per_hour, safe
from wan_train.views.json_records import Json
from wan_train.views.launch import offer_lines, offer_name
from wan_train.views.lines import Line, Row, line, table

_NAMED_JOBS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """What would be rented for which jobs. `wants` has every bound; which of them were given, `given` says."""

    jobs: Sequence[Ready]
    wants: Wants
    choice: Choice
    given: frozenset[str] = frozenset()
    """Bounds by their options: `--max-price`, `--max-hours`, `--budget`."""
    credit: float | None = None
    """Dollars of the account."""
    runs: str = ""
    """Where the runs come home to."""


def plan_lines(plan: LaunchPlan, width: int) -> Iterator[Line]:
    """At most 24 lines with the offers, so that the question below them is on the same screen."""
    yield from offer_lines(plan.choice, plan.wants)
    if plan.choice.fit:
        yield line()
        yield from table(list(_rows(plan, plan.choice.fit[0])), width)


def plan_json(plan: LaunchPlan) -> Json:
    """`{event: "launch_plan", …}`: jobs, offers, bounds."""
    wants = plan.wants
    return {
        "event": "launch_plan",
        "jobs": [_job_json(ready) for ready in plan.jobs],
        "offers": [_offer_json(priced) for priced in plan.choice.fit],
        "unfit": dict(plan.choice.unfit),
        "nearest": _offer_json(plan.choice.nearest) if plan.choice.nearest is not None else None,
        "on": wants.infra,
        "boxes": wants.boxes,
        "spot": wants.spot,
        "disk_gb": wants.disk_gb,
        "max_price": wants.max_per_hour,
        "max_hours": wants.max_hours,
        "budget": wants.budget,
        "credit": plan.credit,
    }


def _job_json(ready: Ready) -> Json:
    job = ready.job
    return {
        "name": job.name,
        "title": job.title,
        "dataset": str(job.dataset),
        "files": ready.counted.files,
        "epochs": max((part.epochs for part in ready.work.parts), default=0),
        "options": list(job.options),
        "recipe": str(job.recipe) if job.recipe is not None else None,
        "send_bytes": ready.work.dataset_bytes,
        "download_bytes": ready.work.download_bytes,
        "result_bytes": ready.work.result_bytes,
    }


def _offer_json(priced: Priced) -> Json:
    return {
        **codec.to_data(priced.offer),
        "prepare_seconds": priced.prepare_seconds,
        "train_seconds": priced.train_seconds,
        "seconds": priced.seconds,
        "traffic": priced.traffic,
        "cost": priced.cost,
    }


def _rows(plan: LaunchPlan, best: Priced) -> Iterator[Row]:
    wants, offer = plan.wants, best.offer
    yield Row(label="Train", value=_jobs(plan.jobs))
    yield Row(label="Set-up", value=_setup(plan, best))
    yield Row(label="Rent", value=_rent(plan))
    yield Row(label="Traffic", value=_traffic(best))
    yield Row(label="Disk", value=_disk(wants, offer))
    yield Row(label="Limits", value=_limits(plan))
    yield Row(label="At most", value=_most(plan))
    yield Row(
        label="Protection",
        value="This computer destroys each box. If it is off: a box that trains stops by itself "
        f"{duration(GRACE_MINUTES * 60)} after its training, and after {wants.max_hours:g} hours at the latest; "
        "then its disk costs money until `wan-train launch attach`. Before its training only this computer ends it.",
    )
    yield Row(label="Results", value=plan.runs, whole=True)


def _jobs(jobs: Sequence[Ready]) -> str:
    named = [
        f"{safe(ready.job.title)} ({count(ready.counted.files, 'file')}, "
        f"{max((part.epochs for part in ready.work.parts), default=0)} epochs)"
        for ready in jobs[:_NAMED_JOBS]
    ]
    more = [f"and {len(jobs) - _NAMED_JOBS} more"] if len(jobs) > _NAMED_JOBS else []
    return ", ".join([*named, *more])


def _setup(plan: LaunchPlan, best: Priced) -> str:
    work = plan.jobs[0].work
    size = file_size(work.download_bytes)
    if best.prepare_seconds is None:
        return f"{size} of models are downloaded on each box"
    return f"{size} of models are downloaded on each box: about {duration(best.prepare_seconds)} on the first offer"


def _rent(plan: LaunchPlan) -> str:
    wants = plan.wants
    what = "1 box" if wants.boxes == 1 else f"{wants.boxes} boxes at once"
    how = "interruptible" if wants.spot else "on demand"
    price = dollars_per_hour(wants.max_per_hour) if wants.max_per_hour is not None else ""
    why = "--max-price" if "--max-price" in plan.given else "half as much again as the best offer; --max-price"
    return f"{what}, {how}, each at most {price} ({why})"


def _traffic(best: Priced) -> str:
    offer = best.offer
    if not offer.per_gb_down and not offer.per_gb_up:
        return "free on the first offer"
    return (
        f"about {dollars(best.traffic)} for the first LoRA on the first offer "
        f"(a GB down {dollars(offer.per_gb_down)}, up {dollars(offer.per_gb_up)})"
    )


def _disk(wants: Wants, offer: Offer) -> str:
    stopped = "; a stopped box still costs its disk"
    if offer.disk_per_hour:
        stopped = f"; a stopped box still costs {dollars(24 * offer.disk_per_hour)} a day"
    return f"{wants.disk_gb:.0f} GB, in the price{stopped}"


def _limits(plan: LaunchPlan) -> str:
    wants = plan.wants
    hours = "--max-hours" if "--max-hours" in plan.given else "the default of --max-hours"
    return f"{wants.max_hours:g} hours for a box ({hours}); then results come home and all boxes end"


def _most(plan: LaunchPlan) -> str:
    wants = plan.wants
    budget = dollars(wants.budget) if wants.budget is not None else ""
    credit = f"; your credit is {dollars(plan.credit)}" if plan.credit is not None else ""
    if "--budget" in plan.given:
        return f"{budget} in all (--budget){credit}"
    boxes = f"{wants.boxes} boxes x " if wants.boxes > 1 else ""
    return f"{budget} in all: {boxes}{wants.max_hours:g} hours x price (--budget sets another){credit}"


__all__ = ["LaunchPlan", "offer_name", "plan_json", "plan_lines"]

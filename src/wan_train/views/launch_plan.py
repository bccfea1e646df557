"""The plan of a launch that the user confirms: offers, every cost, and how a forgotten box ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wan_train.base import codec
from wan_train.base.units import count, dollars, duration, file_size
from wan_train.launch.box_check import UNUSED_HOURS
from wan_train.launch.infra import VAST
from wan_train.launch.jobs import Ready
from wan_train.launch.model import Offer, Wants
from wan_train.launch.offers import Choice, Priced, models_bytes
from wan_train.launch.remote import GRACE_MINUTES
from wan_train.launch.sky_home import INSTALLED_BYTES
from wan_train.views.formatting import cut_middle, dollars_per_hour, safe
from wan_train.views.json_records import Json
from wan_train.views.launch import offer_lines
from wan_train.views.lines import Line, Row, line, table

SHOWN_OFFERS = 3
_NAMED_JOBS = 3
_TITLE_COLUMNS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """What would be rented for which jobs. `wants` has every limit set."""

    jobs: Sequence[Ready]
    wants: Wants
    choice: Choice
    credit: float | None = None
    """The account's dollars."""
    runs: str = ""
    """The folder to which runs come home."""
    fetches: str | None = None
    """Where SkyPilot will be installed; None if it already is."""


def plan_lines(plan: LaunchPlan, width: int, *, offers: int = SHOWN_OFFERS) -> Iterator[Line]:
    """At most 22 lines with the default number of offers, so that the question below fits on the same screen."""
    yield from offer_lines(plan.choice, plan.wants, most=offers)
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
        "traffic": priced.all_traffic,
        "cost": priced.cost,
    }


def _rows(plan: LaunchPlan, best: Priced) -> Iterator[Row]:
    wants = plan.wants
    yield Row(label="Train", value=_jobs(plan.jobs))
    yield Row(label="Set-up", value=_setup(plan, best))
    yield Row(label="Rent", value=_rent(plan))
    yield Row(label="Traffic", value=_traffic(wants, best))
    yield Row(label="Disk", value=_disk(wants, best.offer))
    yield Row(label="Limit", value=f"{_hours(wants.max_hours)} for a box (--max-hours); then all results come home")
    yield Row(label="At most", value=_most(plan))
    yield Row(
        label="Protection",
        value=_protection(wants),
    )
    if plan.fetches is not None:
        yield Row(label="First", value=f"SkyPilot is fetched: {file_size(INSTALLED_BYTES)} in {safe(plan.fetches)}")
    yield Row(label="Results", value=safe(plan.runs), whole=True)


def _protection(wants: Wants) -> str:
    hour, unused = duration(GRACE_MINUTES * 60), _hours(min(UNUSED_HOURS, wants.max_hours))
    most = _hours(wants.max_hours)
    if wants.infra != VAST:
        return (
            f"This computer destroys each box. While it is off, SkyPilot's program on a box destroys it {hour} after "
            f"its training or its {most}, or after {unused} without one. Results that are not home are lost "
            f"then. For that your key of {wants.infra} is on the box."
        )
    return (
        f"This computer destroys each box. While it is off, a box that trains stops by itself {hour} after its "
        f"training or its {most}, and costs its disk until `wan-train launch attach`. One on "
        f"which nothing trains destroys itself after {unused}."
    )


def _hours(hours: float) -> str:
    return f"{hours:g} {'hour' if hours == 1 else 'hours'}"


def _jobs(jobs: Sequence[Ready]) -> str:
    if len(jobs) == 1:
        epochs = max((part.epochs for part in jobs[0].work.parts), default=0)
        return f"{safe(jobs[0].job.title)} ({count(jobs[0].counted.files, 'file')}, {count(epochs, 'epoch')})"
    named = [cut_middle(safe(ready.job.title), _TITLE_COLUMNS) for ready in jobs[:_NAMED_JOBS]]
    more = [f"and {len(jobs) - _NAMED_JOBS} more"] if len(jobs) > _NAMED_JOBS else []
    return f"{count(len(jobs), 'LoRA')}: {', '.join([*named, *more])}"


def _setup(plan: LaunchPlan, best: Priced) -> str:
    models = f"{file_size(models_bytes(plan.wants.tasks))} of models for each box"
    if best.prepare_seconds is None:
        return models
    return f"{models}, about {duration(best.prepare_seconds)} on the first offer"


def _rent(plan: LaunchPlan) -> str:
    wants = plan.wants
    what = "1 box" if wants.boxes == 1 else f"{wants.boxes} boxes at once"
    how = "interruptible" if wants.spot else "on demand"
    price = dollars_per_hour(wants.max_per_hour) if wants.max_per_hour is not None else ""
    return f"{what}, {how}, at most {price}{' each' if wants.boxes > 1 else ''} (--max-price)"


def _traffic(wants: Wants, best: Priced) -> str:
    offer = best.offer
    if wants.infra != VAST:
        return f"not counted: see the prices of {wants.infra}"
    if not offer.per_gb_down and not offer.per_gb_up:
        return "free on the first offer"
    prices = f"${offer.per_gb_down:.3f} a GB down, ${offer.per_gb_up:.3f} up"
    # Checkpoints come home while it trains, so their traffic is known only if the time is.
    about = "at least" if best.train_seconds is None and offer.per_gb_up else "about"
    return f"{about} {dollars(best.all_traffic)} for the first LoRA: {prices}"


def _disk(wants: Wants, offer: Offer) -> str:
    if wants.infra != VAST:
        return f"{wants.disk_gb:.0f} GB; not counted: see the prices of {wants.infra}"
    stopped = f"costs {dollars(24 * offer.disk_per_hour)} a day" if offer.disk_per_hour else "still costs its disk"
    return f"{wants.disk_gb:.0f} GB, in the price; a stopped box {stopped}"


def _most(plan: LaunchPlan) -> str:
    budget, credit = plan.wants.budget or 0.0, plan.credit
    counted = "traffic included" if plan.wants.infra == VAST else "rent only"
    most = f"{dollars(budget)} in all, {counted} (--budget)"
    if credit is None:
        return most
    return f"{most}; your credit of {dollars(credit)} {'is enough' if credit >= budget else 'ends it earlier'}"

"""A launch for people: the offers to choose from, and its jobs and boxes while it is carried out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from wan_train.base.units import count, dollars, duration
from wan_train.launch.model import Box, BoxState, Job, Launch, Wants
from wan_train.launch.offers import Choice, Priced
from wan_train.launch.remote import Training
from wan_train.recipe.measured import day
from wan_train.views.formatting import columns, pad, safe
from wan_train.views.lines import Line, Span, line

MOST_OFFERS = 8
_NOT_MEASURED = "not measured"


def offer_lines(choice: Choice, wants: Wants) -> Iterator[Line]:
    """The best offers, each with the time and cost of the first job; or why there is none, with the nearest."""
    if not choice.fit:
        yield line("No offer is what you want.")
        for why, number in choice.unfit:
            yield line(f"  {count(number, 'offer')}: {why}")
        if choice.nearest is not None:
            yield line(f"The nearest: {offer_name(choice.nearest)} at {dollars(choice.nearest.offer.per_hour)} an hour")
        return
    rows: list[tuple[str, ...]] = [("", "GPU", "$/hour", "Reliability", "Mbit/s", "Time", "Cost")]
    rows += [_offer(number, each) for number, each in enumerate(choice.fit[:MOST_OFFERS], start=1)]
    yield from _table(rows, right={2, 3, 4, 6})
    if len(choice.fit) > MOST_OFFERS:
        yield line(f"and {count(len(choice.fit) - MOST_OFFERS, 'more offer')}")
    yield from _basis(choice.fit[0], wants)


def launch_lines(launch: Launch, now: float, seen: Mapping[str, Training]) -> Iterator[Line]:
    """One row for each job, and what the launch has cost."""
    rows: list[tuple[str, ...]] = [("Job", "State", "Box", "GPU", "$/hour", "Epoch", "Loss", "Ends in")]
    rows += [_job(launch, job, now, seen.get(job.name)) for job in launch.jobs]
    yield from _table(rows, right={4, 5, 6, 7})
    alive = sum(1 for _ in launch.living)
    budget = f" of {dollars(launch.wants.budget)}" if launch.wants.budget is not None else ""
    yield line(f"Spent {dollars(launch.spent(now))}{budget}; {count(alive, 'box', 'boxes')} rented now")
    if launch.halted_because:
        yield line(Span(f"Stopping: {safe(launch.halted_because)}", "yellow"))
    for job in launch.jobs:
        if job.problem:
            yield line(Span(f"{safe(job.title)}: {safe(job.problem)}", "yellow"))


def _offer(number: int, priced: Priced) -> tuple[str, ...]:
    offer = priced.offer
    return (
        str(number),
        offer_name(priced),
        f"{offer.per_hour:.2f}",
        f"{100 * offer.reliability:.1f} %" if offer.reliability is not None else "",
        f"{offer.down_mbps:.0f}" if offer.down_mbps is not None else "",
        duration(priced.seconds) if priced.seconds is not None else _NOT_MEASURED,
        dollars(priced.cost) if priced.cost is not None else "",
    )


def _basis(best: Priced, wants: Wants) -> Iterator[Line]:
    if best.measured is not None:
        scaled = f", scaled from {best.scaled_from}" if best.scaled_from is not None else ""
        yield line(f"Time and cost are of the first job: measured {day(best.measured)}{scaled}")
        if best.without:
            yield line(f"Not included, because it was never timed: {', '.join(best.without)}")
    else:
        yield line("Not measured: no earlier training on this kind of card is known here")
    if wants.spot:
        yield line("Interruptible: whoever bids more takes the box; the job then goes on on another one")


def offer_name(priced: Priced) -> str:
    """`RTX 4090`, `2x RTX 5090`."""
    offer = priced.offer
    return safe(offer.gpu if offer.gpus == 1 else f"{offer.gpus}x {offer.gpu}")


def _job(launch: Launch, job: Job, now: float, training: Training | None) -> tuple[str, ...]:
    box = _box_of(launch, job)
    shown = (safe(job.title), _state(job, box))
    if box is None:
        return (*shown, "", "", "", "", "", "")
    gpus = f"{box.offer.gpus}x " if box.offer.gpus > 1 else ""
    return (
        *shown,
        box.name.rpartition("-")[2],
        safe(f"{gpus}{box.offer.gpu}"),
        f"{box.offer.per_hour:.2f}",
        f"{training.epoch}/{training.epochs}" if training is not None and training.epochs else "",
        f"{training.loss:.4f}" if training is not None and training.loss is not None else "",
        duration(training.ends_at - now) if training is not None and training.ends_at is not None else "",
    )


def _state(job: Job, box: Box | None) -> str:
    """A waiting job whose box is not ready yet says what that is doing."""
    return box.state.value if box is not None and box.state is BoxState.DESTROYING else job.state.value


def _box_of(launch: Launch, job: Job) -> Box | None:
    return next((box for box in launch.living if box.job == job.name), None)


def _table(rows: Sequence[tuple[str, ...]], *, right: set[int]) -> Iterator[Line]:
    widths = [max(map(columns, cells)) for cells in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = (
            " " * (width - columns(cell)) + cell if column in right else pad(cell, width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield line(Span("  ".join(cells).rstrip(), "" if number else "dim"), whole=True)

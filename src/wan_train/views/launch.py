"""Screens of a launch: the offers to choose from, and its jobs and boxes while it is carried out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wan_train.base.units import count, dollars, duration
from wan_train.launch.infra import VAST
from wan_train.launch.last_seen import LastSeen, Progress
from wan_train.launch.model import Box, BoxState, Job, JobState, Launch, Wants
from wan_train.launch.offers import Choice, Priced
from wan_train.recipe.measured import day
from wan_train.views.formatting import columns, cut_middle, loss, pad, safe
from wan_train.views.json_records import Json
from wan_train.views.lines import Line, Span, line, wrapped

MOST_OFFERS = 8
_LEAST_TITLE = 8
_NAMED_BOXES = 2
_HEADS = ("State", "Box", "GPU", "$/hour", "Spent", "Epoch", "Loss", "Ends in")
_ALWAYS = 5
"""Number of a job's columns that are always shown."""
_NOT_MEASURED = "not measured"


def offer_lines(choice: Choice, wants: Wants, *, most: int = MOST_OFFERS) -> Iterator[Line]:
    """The best offers, each with the time and cost of the first job; or why none fits, and the nearest."""
    if not choice.fit:
        yield line("No offer matches.")
        for why, number in choice.unfit:
            yield line(f"  {count(number, 'offer')}: {why}")
        if choice.nearest is not None:
            yield line(f"The nearest: {offer_name(choice.nearest)} at {dollars(choice.nearest.offer.per_hour)} an hour")
        return
    rows: list[tuple[str, ...]] = [("", "GPU", "$/hour", "Reliability", "Mbit/s", "Time", "Cost")]
    rows += [_offer(number, each) for number, each in enumerate(choice.fit[:most], start=1)]
    yield from _table(rows, right={2, 3, 4, 6})
    if len(choice.fit) > most:
        yield line(f"and {count(len(choice.fit) - most, 'more offer')}")
    yield from _basis(choice.fit[0], wants)


def launch_lines(launch: Launch, now: float, seen: LastSeen, width: int = 80) -> Iterator[Line]:
    """One row for each job, what the launch has cost, and notes on boxes and problems."""
    shown = [(job, _job(job, box, now, seen)) for job, box in _with_boxes(launch)]
    # Leave out empty columns, so that titles have more room.
    used = [column for column in range(len(_HEADS)) if column < _ALWAYS or any(row[column] for _, row in shown)]
    heads = [_HEADS[column] for column in used]
    cells = [[row[column] for column in used] for _, row in shown]
    room = width - sum(2 + max(map(columns, each)) for each in zip(heads, *cells, strict=True))
    rows: list[tuple[str, ...]] = [("Job", *heads)]
    for (job, _), row in zip(shown, cells, strict=True):
        rows.append((cut_middle(safe(job.title), max(room, _LEAST_TITLE)), *row))
    yield from _table(rows, right={4, 5, 6, 7, 8})
    budget = f" of at most {dollars(launch.wants.budget)}" if launch.wants.budget is not None else ""
    alive = sum(1 for _ in launch.living)
    yield line(f"Spent {dollars(launch.spent(now))}{budget}; {count(alive, 'box', 'boxes')} rented now")
    for box in launch.living:
        if box.state is BoxState.DESTROYING:
            yield from _noted(f"Box {box.number} is being destroyed: {box.because}", width)
    for box in [each for each in launch.boxes if each.blamed and each.state is BoxState.GONE][-_NAMED_BOXES:]:
        yield from _noted(f"Box {box.number} was given up: {box.because}", width)
    if seen.searching and not alive and not launch.is_over:
        yield from _noted(f"Searching offers every minute: {seen.searching}", width)
    if launch.halted_because:
        yield from _noted(f"{'Ended' if launch.is_over else 'Ends'} early: {launch.halted_because}", width)
    for job in launch.jobs:
        if job.problem and job.state in {JobState.WAITING, JobState.SENDING}:
            yield from _noted(f"{job.title} lost its last box: {job.problem}", width)
        elif job.problem and job.problem != launch.halted_because and job.state.is_end:
            yield from _noted(f"{job.title}: {job.problem}", width)


def launch_screen(
    launch: Launch, now: float, seen: LastSeen, size: tuple[int, int], *, asks_to_stop: bool = False
) -> list[Line]:
    """The whole screen. On a low screen the table is cut, never the foot."""
    width, height = size
    head = line(Span(f"Launch {launch.id}", "bold"), Span(f"  {duration(now - launch.created)} so far", "dim"))
    foot = line(Span("q leaves, the launch continues   s stops it, results come home first", "dim"))
    if asks_to_stop:
        foot = line(Span("Stop? y: results come home, then all boxes are destroyed. Any other key: continue", "bold"))
    rows = list(launch_lines(launch, now, seen, width))
    room = max(height - 4, 1)
    if len(rows) > room:
        rows = [*rows[: room - 1], line(Span(f"and {len(rows) - room + 1} more lines: wan-train launch status", "dim"))]
    return [head, line(), *rows, line(), foot]


def launch_json(launch: Launch, now: float, seen: LastSeen) -> Json:
    """`{event: "launch", …}`: jobs and boxes as they are now."""
    return {
        "event": "launch",
        "launch_id": launch.id,
        "created": launch.created,
        "over": launch.is_over,
        "stopped_because": launch.halted_because or None,
        "spent": round(launch.spent(now), 6),
        "budget": launch.wants.budget,
        "jobs": [_job_json(job, seen.jobs.get(job.name, Progress())) for job in launch.jobs],
        "boxes": [_box_json(box, now) for box in launch.boxes],
    }


def _job_json(job: Job, progress: Progress) -> Json:
    return {
        "name": job.name,
        "title": job.title,
        "state": job.state.value,
        "dataset": str(job.dataset),
        "run_dir": str(job.home) if job.home is not None else None,
        "exit_code": job.exit_code,
        "problem": job.problem or None,
        "boxes": job.boxes,
        "epoch": progress.epoch,
        "epochs": progress.epochs,
        "loss": progress.loss,
        "ends_at": progress.ends_at,
    }


def _box_json(box: Box, now: float) -> Json:
    return {
        "name": box.name,
        "state": box.state.value,
        "gpu": box.offer.gpu,
        "gpus": box.offer.gpus,
        "per_hour": box.offer.per_hour,
        "began": box.began,
        "ended": box.ended,
        "spent": round(box.cost(now), 6),
        "job": box.job,
        "because": box.because or None,
    }


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
        yield line(f"Time and cost of the first job, measured {day(best.measured)}{scaled}")
        if best.without:
            yield line(f"Not included, because it was never timed: {', '.join(best.without)}")
    else:
        yield line("Not measured: no earlier training on this kind of card is known here")
    if wants.spot:
        taker = "a higher bid takes" if wants.infra == VAST else f"{wants.infra} may take"
        yield line(f"Interruptible: {taker} the box away; its job goes to another box")


def offer_name(priced: Priced) -> str:
    """`RTX 4090`, `2x RTX 5090`."""
    return safe(priced.offer.card)


def _with_boxes(launch: Launch) -> Iterator[tuple[Job, Box | None]]:
    """Each job with its box, and each waiting job with a box that is being prepared, if there is one."""
    coming = [box for box in launch.living if box.job is None and box.state is not BoxState.DESTROYING]
    for job in launch.jobs:
        box = _box_of(launch, job)
        if box is None and job.state is JobState.WAITING and coming:
            box = coming.pop(0)
        yield job, box


def _job(job: Job, box: Box | None, now: float, seen: LastSeen) -> tuple[str, ...]:
    if box is None:
        return (job.state.value, *[""] * 7)
    progress = seen.jobs.get(job.name, Progress()) if job.state is JobState.TRAINING else Progress()
    return (
        job.state.value if box.state is BoxState.READY else box.state.value,
        box.number,
        safe(box.offer.card),
        f"{box.rate:.2f}",
        f"{box.cost(now):.2f}",
        f"{progress.epoch}/{progress.epochs}" if progress.epoch is not None and progress.epochs else "",
        loss(progress.loss) if progress.loss is not None else "",
        duration(progress.ends_at - now) if progress.ends_at is not None and progress.ends_at > now else "",
    )


def _box_of(launch: Launch, job: Job) -> Box | None:
    return next((box for box in launch.living if box.job == job.name), None)


def _noted(text: str, width: int) -> Iterator[Line]:
    return wrapped(safe(text), width, "yellow")


def _table(rows: Sequence[tuple[str, ...]], *, right: set[int]) -> Iterator[Line]:
    widths = [max(map(columns, cells)) for cells in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = (
            " " * (width - columns(cell)) + cell if column in right else pad(cell, width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield line(Span("  ".join(cells).rstrip(), "" if number else "dim"), whole=True)

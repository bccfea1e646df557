"""Differences between two records of a launch as plain lines, for its log and for watchers."""

from __future__ import annotations

from collections.abc import Iterator

from wan_train.base.text import redact, visible
from wan_train.base.units import dollars
from wan_train.launch.model import Box, BoxState, Job, JobState, Launch


def change_lines(before: Launch | None, after: Launch) -> Iterator[str]:
    """Yield changes, boxes first. Without an earlier record, yield every box and every job that no longer waits."""
    old_boxes = {box.name: box.state for box in before.boxes} if before is not None else {}
    old_jobs = {job.name: job.state for job in before.jobs} if before is not None else {}
    for box in after.boxes:
        if old_boxes.get(box.name) is not box.state:
            yield f"box {box.number} ({_safe(box.offer.card)}): {box.state}{_about(box)}"
    for job in after.jobs:
        if old_jobs.get(job.name, JobState.WAITING) is not job.state:
            tells = job.state.is_end or job.state is JobState.WAITING
            why = f": {_safe(job.problem)}" if job.problem and tells else ""
            yield f"{_safe(job.title)}: {job.state}{_where(after, job)}{why}"
    if after.halted_because and (before is None or not before.halted_because):
        yield f"ends early: {_safe(after.halted_because)}"


def _about(box: Box) -> str:
    match box.state:
        case BoxState.RENTING:
            return f" at {dollars(box.offer.per_hour)} an hour"
        case BoxState.DESTROYING:
            return f": {_safe(box.because)}" if box.because else ""
        case BoxState.GONE:
            return f", {dollars(box.cost(box.ended or box.began))} in all"
        case _:
            return ""


def _where(launch: Launch, job: Job) -> str:
    if job.state.is_end or job.state is JobState.WAITING:
        return ""
    return next((f" on box {box.number}" for box in launch.living if box.job == job.name), "")


def _safe(text: str) -> str:
    return visible(redact(text))

"""The message at the end of a launch: what became of its jobs, and what it cost."""

from __future__ import annotations

from collections import Counter

from wan_train.base.units import count, dollars, duration
from wan_train.launch.model import JobState, Launch
from wan_train.notify.send import Message

_MOST_JOBS = 20


def end_message(launch: Launch, now: float) -> Message:
    """Return the message for a launch that is over."""
    states = Counter(job.state for job in launch.jobs)
    ends = (JobState.DONE, JobState.FAILED, JobState.STOPPED)
    told = ", ".join(f"{states[state]} {state}" for state in ends if states[state])
    lines = [
        f"{job.title}: {job.state}{f' ({_joined(job.problem)})' if job.problem else ''}"
        for job in launch.jobs[:_MOST_JOBS]
    ]
    if len(launch.jobs) > _MOST_JOBS:
        lines.append(f"and {len(launch.jobs) - _MOST_JOBS} more")
    if launch.halted_because:
        lines.append(f"It ended before its jobs: {_joined(launch.halted_because)}.")
    boxes = count(len(launch.boxes), "box", "boxes")
    lines.append(
        f"Spent {dollars(launch.spent(now))} on {boxes} in {duration(now - launch.created)}. Nothing is rented now."
    )
    return Message(id=f"launch-{launch.id}", title=f"wan-train: launch over: {told}", body="\n".join(lines))


def _joined(text: str) -> str:
    return " ".join(text.split())

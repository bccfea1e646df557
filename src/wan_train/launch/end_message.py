"""The message at the end of a launch: what became of its jobs, and what it cost."""

from __future__ import annotations

from collections import Counter

from wan_train.base.units import count, dollars, duration
from wan_train.launch.infra import VAST
from wan_train.launch.model import JobState, Launch
from wan_train.notify.send import Message

_MOST_JOBS = 20


def end_message(launch: Launch, now: float, *, is_swept: bool) -> Message:
    """Return the message for a launch that is over. `is_swept`: at the end the provider's list had no box of it."""
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
    left = "Nothing is rented now." if is_swept else _unchecked(launch.wants.infra)
    lines.append(f"Spent {dollars(launch.spent(now))} on {boxes} in {duration(now - launch.created)}. {left}")
    return Message(id=f"launch-{launch.id}", title=f"wan-train: launch over: {told}", body="\n".join(lines))


def _unchecked(infra: str) -> str:
    if infra != VAST:
        return f"Could not check for leftover boxes: see the console of {infra}."
    return "Could not check Vast's list for leftover boxes. Check it: wan-train launch reap"


def _joined(text: str) -> str:
    return " ".join(text.split())

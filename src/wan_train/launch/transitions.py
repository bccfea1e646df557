"""What a launch does next, by its record and the time, and what its record becomes after an outcome. Pure functions.

Two boxes never train the same job: a box keeps its job until the provider's list shows that it is gone. Only then
does another box get the job. Every box ends as gone, whatever happens to it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import assert_never

from wan_train.base.errors import ExitCode
from wan_train.base.units import GB
from wan_train.launch.model import Address, Box, BoxState, Halt, Job, JobState, Launch, Offer
from wan_train.launch.offers import models_bytes

WATCH_SECONDS = 15.0
LOST_SECONDS = 600.0
"""A box that does not answer for this long while it trains is given up."""
SEARCH_SECONDS = 60.0
"""Time between two searches for an offer."""
MOST_TRIES = 5
"""Tries of a step on one box, if it fails for a passing reason."""
MOST_FAILURES = 5
"""Boxes in a row that were wrong or faulty, before the launch gives up."""
MOST_REFUSALS = 20
"""Boxes in a row that were never reached, because the offer was taken or they never ran. These cost little."""
PATIENT_TRIES = 20
"""Tries of a step on a box with results that are nowhere else; with the pauses, about an hour."""
MOST_BOXES_OF_A_JOB = 20
OWN_END_SECONDS = 5400.0
"""Time that the guardian on a box needs to end it after the limit of hours, grace included."""
RESERVE_SECONDS = 300.0
"""Time kept for bringing results home before a budget or a limit of hours is reached."""
_BACK_OFF_SECONDS = 5.0
_LONGEST_BACK_OFF_SECONDS = 300.0


class Do(StrEnum):
    SEARCH = "search"
    RENT = "rent"
    """Rent a box, or find the one already rented under its name, and wait until it answers."""
    CHECK = "check"
    PROVISION = "provision"
    SEND = "send"
    """Copy what the job needs, and start or continue its training."""
    WATCH = "watch"
    FETCH = "fetch"
    """Bring the newest complete state and the records home."""
    BRING = "bring"
    """Bring the results home and compare their checksums."""
    WAKE = "wake"
    """Start a stopped box again, and wait until it answers."""
    DESTROY = "destroy"
    """Request the end of a box, and check the provider's list."""


@dataclass(frozen=True, slots=True)
class Action:
    """One step of one box. SEARCH has no box."""

    do: Do
    box: str | None = None
    job: str | None = None


class Fault(StrEnum):
    """Whose fault a failure is."""

    PASSING = "passing"
    BOX = "box"
    """The box is given up. Its machine is avoided, unless the box has results that are not home."""
    JOB = "job"
    """Another box would fail too."""
    HERE = "here"
    """This computer's, such as a full disk. The box waits, within the limits of the launch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A step that succeeded, with what it found."""

    action: Action
    address: Address | None = None
    exit_code: int | None = None
    """Exit code of the training, if WATCH or FETCH saw its end."""
    home: Path | None = None
    received: int = 0
    """Bytes that the box downloaded or was sent."""
    sent: int = 0
    """Bytes that came home from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    action: Action
    why: str
    fault: Fault = Fault.PASSING
    answered: bool = False
    """The box itself answered or was not asked, so its silence does not begin here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The answer to a search: an offer for a box of this name, or why there is none."""

    name: str
    offer: Offer | None = None
    why: str = ""
    credit: float | None = None
    """Dollars of the account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The provider's list no longer has a box, or has it as stopped."""

    box: str
    why: str
    stopped: bool = False
    """It is still in the list, and its disk is billed."""
    can_wake: bool = False
    """It can be started again, because it was not outbid."""


Outcome = Done | Failed | Found | Lost


def settled(launch: Launch, now: float, busy: Collection[str] = ()) -> Launch:
    """The record after changes due to time alone: limits, silence, and jobs given to free boxes.

    `busy` names boxes with a step under way. They are not silent: a copy may take hours over a home line, and a dead
    connection ends its step within minutes.
    """
    launch = _limited(launch, now)
    for box in launch.living:
        if box.state is BoxState.DESTROYING:
            continue
        if launch.halt is Halt.NOW or (launch.halt is Halt.SAVE and not _has_something(launch, box)):
            launch = _given_up(launch, box, launch.halted_because or "stopped")
        elif box.name not in busy and _is_silent(launch, box, now):
            launch = _given_up(launch, box, f"it has not answered for {LOST_SECONDS / 60:.0f} minutes")
    if launch.halt is not None:
        return replace(launch, jobs=tuple(_stopped(launch, job) for job in launch.jobs))
    return _shared_out(launch)


def actions(launch: Launch, now: float, busy: Collection[str] = ()) -> Iterator[Action]:
    """What can begin now. `busy` names boxes with a step under way, and `""` for a search."""
    for box in launch.living:
        if box.name not in busy and now >= box.not_before:
            action = _of_box(launch, box, now)
            if action is not None:
                yield action
    if "" not in busy and now >= launch.next_search and _needs_box(launch):
        yield Action(Do.SEARCH)


def after(launch: Launch, outcome: Outcome, now: float) -> Launch:
    """The record after a step. An outcome too late for its box changes no state, only figures such as traffic."""
    match outcome:
        case Found(name=name, offer=offer, credit=credit):
            return _found(replace(launch, credit=credit), name, offer, now)
        case Lost(box=name, why=why, can_wake=can_wake):
            box = launch.box(name)
            if box.state in {BoxState.WAKING, BoxState.DESTROYING, BoxState.GONE}:
                return launch
            stopped = _stopped_at(launch, box, now) if outcome.stopped else None
            if can_wake and _has_something(launch, box):
                idle = box.idle + (0.0 if stopped is None else now - stopped)
                box = replace(box, state=BoxState.WAKING, because=why, tries=0, not_before=0.0, idle=idle)
                return _with(launch, box)
            return _given_up(launch, replace(box, stopped=stopped), why)
        case Done(action=action):
            return _done(launch, outcome, action, now)
        case Failed(action=action):
            return _failed(launch, outcome, action, now)
        case _:
            assert_never(outcome)


def _stopped_at(launch: Launch, box: Box, now: float) -> float:
    """When a box found stopped did stop: now, or by the latest time of its own guardian if that has passed."""
    return min(now, box.began + launch.wants.max_hours * 3600 + OWN_END_SECONDS)


def _of_box(launch: Launch, box: Box, now: float) -> Action | None:
    match box.state:
        case BoxState.RENTING:
            return Action(Do.RENT, box.name)
        case BoxState.CHECKING:
            return Action(Do.CHECK, box.name)
        case BoxState.PROVISIONING:
            return Action(Do.PROVISION, box.name)
        case BoxState.READY:
            return _of_job(launch, box, launch.job(box.job), now) if box.job is not None else None
        case BoxState.WAKING:
            return Action(Do.WAKE, box.name, box.job)
        case BoxState.DESTROYING:
            return Action(Do.DESTROY, box.name)
        case BoxState.GONE:
            return None
        case _:
            assert_never(box.state)


def _of_job(launch: Launch, box: Box, job: Job, now: float) -> Action | None:
    match job.state:
        case JobState.SENDING:
            return Action(Do.SEND, box.name, job.name)
        case JobState.TRAINING:
            due = box.fetched is None or now - box.fetched >= launch.wants.fetch_seconds
            return Action(Do.FETCH if due or launch.halt is Halt.SAVE else Do.WATCH, box.name, job.name)
        case JobState.FETCHING:
            return Action(Do.BRING, box.name, job.name)
        case JobState.WAITING | JobState.DONE | JobState.FAILED | JobState.STOPPED:
            return None
        case _:
            assert_never(job.state)


def _limited(launch: Launch, now: float) -> Launch:
    """Halt when a budget or a limit of hours would be reached before the results are home."""
    if launch.halt is not None:
        return launch
    wants = launch.wants
    owed = _owed(launch)
    if wants.budget is not None and 0 < owed >= wants.budget - launch.spent(now):
        return replace(launch, halt=Halt.SAVE, halted_because=f"the budget of ${wants.budget:.2f} is used up")
    if launch.credit is not None and 0 < owed >= launch.credit:
        return replace(launch, halt=Halt.SAVE, halted_because=f"the account has only ${launch.credit:.2f} left")
    oldest = min((box.began for box in launch.living if box.state is not BoxState.DESTROYING), default=now)
    if now - oldest + RESERVE_SECONDS >= wants.max_hours * 3600:
        limit = "1 hour" if wants.max_hours == 1 else f"{wants.max_hours:g} hours"
        return replace(launch, halt=Halt.SAVE, halted_because=f"the limit of {limit} is reached")
    return launch


def _owed(launch: Launch) -> float:
    """Dollars that living boxes cost between a decision to end them and their end: results must still come home."""
    models = models_bytes(launch.wants.tasks) / GB
    return sum(_owed_by(launch, box, models) for box in launch.living)


def _owed_by(launch: Launch, box: Box, models: float) -> float:
    rent = box.rate * RESERVE_SECONDS / 3600
    if box.state in {BoxState.RENTING, BoxState.CHECKING, BoxState.PROVISIONING}:
        return rent + models * box.offer.per_gb_down
    if _has_something(launch, box):
        work = launch.job(box.job or "").work
        return rent + (work.result_bytes if work else 0) / GB * box.offer.per_gb_up
    return rent


def _is_silent(launch: Launch, box: Box, now: float) -> bool:
    watched = box.state is BoxState.READY and _has_something(launch, box)
    return watched and now - (box.answered or now) > LOST_SECONDS


def _has_something(launch: Launch, box: Box) -> bool:
    """Whether a box has results that are still to come home."""
    if box.job is None or box.state not in {BoxState.READY, BoxState.WAKING}:
        return False
    return launch.job(box.job).state in {JobState.TRAINING, JobState.FETCHING}


def _stopped(launch: Launch, job: Job) -> Job:
    """Return a job of a halted launch as stopped, unless some of it is still to come home."""
    held = any(box.job == job.name and _has_something(launch, box) for box in launch.living)
    if job.state.is_end or (held and launch.halt is Halt.SAVE):
        return job
    return replace(job, state=JobState.STOPPED, problem=launch.halted_because)


def _shared_out(launch: Launch) -> Launch:
    held = {box.job for box in launch.living}
    waiting = [job for job in launch.jobs if job.state is JobState.WAITING]
    free = [job for job in waiting if job.name not in held]
    for box in launch.living:
        if box.state is not BoxState.READY or box.job is not None:
            continue
        if free:
            job = free.pop(0)
            launch = _with(launch, replace(box, job=job.name, fetched=None, tries=0, not_before=0.0))
            launch = _with(launch, replace(job, state=JobState.SENDING, boxes=job.boxes + 1))
        elif not waiting:
            launch = _given_up(launch, box, "no job is left for it")
    return launch


def _needs_box(launch: Launch) -> bool:
    if launch.halt is not None:
        return False
    wants = launch.wants
    held = {box.job for box in launch.living if box.state is BoxState.READY and box.job is not None}
    waiting = sum(job.state is JobState.WAITING and job.name not in held for job in launch.jobs)
    alive = [box for box in launch.living if box.state is not BoxState.DESTROYING]
    coming = sum(box.job is None for box in alive)
    return waiting > coming and len(alive) < wants.boxes


def _found(launch: Launch, name: str, offer: Offer | None, now: float) -> Launch:
    if offer is None or not _needs_box(launch):
        return replace(launch, next_search=now + SEARCH_SECONDS)
    rented = replace(launch, boxes=(*launch.boxes, Box(name=name, offer=offer, began=now)), next_search=now)
    budget = launch.wants.budget
    if budget is None or rented.spent(now) + _owed(rented) < budget:
        return rented
    if any(launch.living):
        return replace(launch, next_search=now + SEARCH_SECONDS)
    left = f"${max(0.0, budget - launch.spent(now)):.2f} is left of the budget"
    return replace(launch, halt=Halt.SAVE, halted_because=f"{left}, too little for a box and its downloads")


def _done(launch: Launch, done: Done, action: Action, now: float) -> Launch:
    if action.box is None:
        return launch
    box = launch.box(action.box)
    traffic = done.received / GB * box.offer.per_gb_down + done.sent / GB * box.offer.per_gb_up
    box = replace(box, answered=now, tries=0, not_before=0.0, traffic=box.traffic + traffic)
    if action.do is Do.DESTROY:
        return _gone(launch, box, now)
    if box.state in {BoxState.DESTROYING, BoxState.GONE}:
        return _with(launch, replace(launch.box(box.name), traffic=box.traffic))
    match action.do:
        case Do.RENT:
            return _with(launch, replace(box, state=BoxState.CHECKING, address=done.address))
        case Do.CHECK:
            return _with(launch, replace(box, state=BoxState.PROVISIONING))
        case Do.PROVISION:
            return _with(launch, replace(box, state=BoxState.READY, ready=now))
        case Do.WAKE:
            return _with(launch, replace(box, state=BoxState.READY, address=done.address, because=""))
        case Do.SEND | Do.WATCH | Do.FETCH | Do.BRING:
            return _of_training(launch, box, done, now)
        case Do.SEARCH:
            return launch
        case _:
            assert_never(action.do)


def _of_training(launch: Launch, box: Box, done: Done, now: float) -> Launch:
    if box.job is None or box.job != done.action.job:
        return _with(launch, box)
    job = launch.job(box.job)
    job = replace(job, home=done.home or job.home)
    launch = _with(launch, job)
    match done.action.do:
        case Do.SEND:
            launch = _with(launch, replace(job, state=JobState.TRAINING))
            return _with(launch, replace(box, fetched=now, not_before=now + WATCH_SECONDS))
        case Do.WATCH | Do.FETCH if done.exit_code is not None:
            launch = _with(launch, replace(job, state=JobState.FETCHING, exit_code=done.exit_code))
            return _with(launch, box)
        case Do.WATCH:
            return _with(launch, replace(box, not_before=now + WATCH_SECONDS))
        case Do.FETCH:
            box = replace(box, fetched=now)
            if launch.halt is Halt.SAVE:
                launch = _with(launch, replace(job, state=JobState.STOPPED, problem=launch.halted_because))
                return _given_up(launch, box, launch.halted_because)
            return _with(launch, box)
        case _:
            return _with(_with(launch, _ended(job)), replace(box, job=None))


def _ended(job: Job) -> Job:
    """A job whose training is over, once everything of it is home."""
    match job.exit_code:
        case ExitCode.DONE | None:
            return replace(job, state=JobState.DONE, problem="")
        case ExitCode.INTERRUPTED | ExitCode.TERMINATED:
            return replace(job, state=JobState.STOPPED, problem="it was stopped on the box")
        case code:
            return replace(job, state=JobState.FAILED, problem=f"the training ended with exit code {code}")


def _failed(launch: Launch, failed: Failed, action: Action, now: float) -> Launch:
    if action.box is None:
        return replace(launch, next_search=now + SEARCH_SECONDS)
    box = launch.box(action.box)
    if box.state is BoxState.GONE or (box.state is BoxState.DESTROYING and action.do is not Do.DESTROY):
        return launch  # a step from before the box was given up must not delay its end
    pause = min(_BACK_OFF_SECONDS * 2**box.tries, _LONGEST_BACK_OFF_SECONDS)
    answered = now if failed.answered else box.answered
    box = replace(box, tries=box.tries + 1, not_before=now + pause, answered=answered)
    if box.state is BoxState.DESTROYING:
        # Never give up: a box that is not destroyed costs money.
        return _with(launch, box)
    valuable = _has_something(launch, box)
    if failed.fault is Fault.JOB and box.job is not None:
        launch = _with(launch, replace(launch.job(box.job), state=JobState.FAILED, problem=failed.why))
        return _with(launch, replace(box, job=None, tries=0, not_before=0.0))
    if failed.fault is Fault.HERE and not valuable and box.tries >= PATIENT_TRIES:
        # Another box would not help: the disk here is the same.
        return replace(
            _with(launch, box), halt=launch.halt or Halt.SAVE, halted_because=failed.why, gave_up=launch.halt is None
        )
    if failed.fault is Fault.BOX or box.tries >= _most_tries(launch, failed, valuable=valuable):
        return _given_up(launch, box, failed.why, blamed=not valuable and failed.fault is not Fault.HERE)
    return _with(launch, box)


def _most_tries(launch: Launch, failed: Failed, *, valuable: bool) -> float:
    """How often a step may fail on one box. An unreachable training is given up for its silence instead."""
    if launch.halt is not None or not (valuable or failed.fault is Fault.HERE):
        return MOST_TRIES
    watching = failed.action.do in {Do.WATCH, Do.FETCH} and not failed.answered
    return math.inf if watching or failed.fault is Fault.HERE else PATIENT_TRIES


def _given_up(launch: Launch, box: Box, why: str, *, blamed: bool = False) -> Launch:
    """Destroy a box. Its job waits until that is done, and then goes to another box."""
    ended = replace(box, state=BoxState.DESTROYING, because=why, tries=0, not_before=0.0, blamed=blamed)
    if box.state is BoxState.PROVISIONING:
        # How much of the models was downloaded is unknown, so count all of it.
        ended = replace(ended, traffic=box.traffic + models_bytes(launch.wants.tasks) / GB * box.offer.per_gb_down)
    launch = _with(launch, ended)
    if box.job is not None and not launch.job(box.job).state.is_end:
        job = launch.job(box.job)
        if job.boxes >= MOST_BOXES_OF_A_JOB:
            job = replace(
                job, state=JobState.FAILED, problem=f"{job.boxes} boxes were lost while training it, the last: {why}"
            )
        elif job.state is JobState.FETCHING or job.state in {JobState.SENDING, JobState.TRAINING}:
            job = replace(job, state=JobState.WAITING, exit_code=None, problem=why)
        launch = _with(launch, job)
    if not blamed:
        return launch
    because = _why_enough(launch)
    if because is not None and launch.halt is None:
        launch = replace(launch, halt=Halt.SAVE, halted_because=f"{because}, the last: {why}", gave_up=True)
    return launch


def _why_enough(launch: Launch) -> str | None:
    """Why no more boxes are tried, by the last ones; None to continue."""
    judged = (box for box in reversed(launch.boxes) if box.blamed or box.ready is not None)
    bad = list(itertools.takewhile(lambda box: box.blamed, judged))
    wrong = sum(box.address is not None for box in bad)
    if wrong >= MOST_FAILURES:
        return f"{wrong} boxes in a row were not usable"
    return f"{len(bad)} offers in a row could not be rented" if len(bad) >= MOST_REFUSALS else None


def _gone(launch: Launch, box: Box, now: float) -> Launch:
    return _with(launch, replace(box, state=BoxState.GONE, ended=now))


def _with(launch: Launch, changed: Box | Job) -> Launch:
    if isinstance(changed, Box):
        return replace(launch, boxes=tuple(changed if box.name == changed.name else box for box in launch.boxes))
    return replace(launch, jobs=tuple(changed if job.name == changed.name else job for job in launch.jobs))

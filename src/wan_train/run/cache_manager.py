"""The caches of one run, for its supervisor: looked at before a GPU is taken, and cleared under a lock."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wan_train.base.clock import Clock
from wan_train.base.errors import WanTrainError
from wan_train.caching.decide import WORDS, Reason
from wan_train.caching.locks import CacheLocks
from wan_train.dataset.model import Inventory
from wan_train.engine.failures import Cause, Diagnosis
from wan_train.gpu.leases import LeaseRoom
from wan_train.run import caching
from wan_train.run.caching import Survey
from wan_train.run.directory import RunDirectory
from wan_train.run.events import CachesCleared, CachesDisturbed, CachesUpToDate, Event, StepRefused
from wan_train.run.plan import CACHE_KINDS, Plan, Step, StepKind

_AT_ONCE_SECONDS = 0.25
"""A look is waited for this long: at a few hundred pictures it is over before."""
_INVENTORY_SECONDS = 2.0
_KEPT_SECONDS = 10.0
"""How long the folders stay locked for a step that gets no GPU."""
_BLOCKED_SECONDS = 5.0
_CHECKED_SECONDS = 60.0
_MOST_DISTURBANCES = 3


class _Inventory:
    """The dataset's items for looks that begin at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: tuple[float, Inventory] | None = None

    def now(self, plan: Plan) -> Inventory:
        with self._lock:
            if self._taken is None or time.monotonic() - self._taken[0] > _INVENTORY_SECONDS:
                self._taken = time.monotonic(), caching.inventory_of(plan)
            return self._taken[1]


class _Look:
    """One look at the caches of a kind, in a thread: hashing ten thousand new pictures takes seconds."""

    def __init__(self, plan: Plan, step: Step, inventory: _Inventory) -> None:
        self.survey: Survey | None = None
        self.trouble: Diagnosis | None = None
        self.bug: BaseException | None = None
        self.thread = threading.Thread(
            target=self._run, args=(plan, step, inventory), name=f"look-{step.id}", daemon=True
        )
        self.thread.start()

    def _run(self, plan: Plan, step: Step, inventory: _Inventory) -> None:
        try:
            self.survey = caching.survey_step(plan, step, inventory.now(plan))
        except WanTrainError as error:
            self.trouble = _refusal("the dataset cannot be trained now", error.message)
        except (OSError, UnicodeDecodeError) as error:
            self.trouble = _refusal("the dataset or its caches cannot be read now", str(error))
        except BaseException as error:  # noqa: BLE001  a thread's bug must end the supervisor, not vanish with the thread
            self.bug = error


@dataclass(slots=True)
class _Armed:
    """Looked at, and the folders are still locked: what was decided is true."""

    survey: Survey
    until: float


@dataclass(slots=True)
class _Known:
    """There is something to make; the folders are locked again once there is a GPU for it."""


@dataclass(slots=True)
class _Blocked:
    words: str
    until: float


@dataclass(slots=True)
class _Caching:
    """An attempt of ours is making caches."""

    survey: Survey


_Work = _Look | _Armed | _Known | _Blocked | _Caching


@dataclass(slots=True, kw_only=True)
class CachingDesk:
    """Tells of a caching step whether it needs a process, and of a training whether its caches are right."""

    run: RunDirectory
    plan: Plan
    clock: Clock
    locks: CacheLocks
    held: dict[str, str] = field(default_factory=dict)
    """Steps that may not start yet, with the reason in words; as of the last look."""
    _work: dict[str, _Work] = field(default_factory=dict)
    _checked: dict[str, float] = field(default_factory=dict)
    _disturbances: int = 0
    _inventory: _Inventory = field(default_factory=_Inventory)
    _writer: str | None = None
    """The step of this run that makes caches now."""

    @classmethod
    def of(cls, run: RunDirectory, plan: Plan, clock: Clock, room: LeaseRoom) -> CachingDesk:
        folders = [Path(directory) for directory in plan.dataset.cached_items]
        return cls(run=run, plan=plan, clock=clock, locks=CacheLocks(room, plan.run_id, clock, folders))

    @property
    def is_looking(self) -> bool:
        return any(isinstance(work, _Look) for work in self._work.values())

    def look(self, due: Sequence[Step], running: Sequence[Step]) -> Iterator[Event]:
        """What follows from one look at the caches of the steps that lack nothing else, and who has to wait.

        `running` are this run's steps that are under way: a training among them reads its caches now.
        """
        trains = any(step.kind is StepKind.TRAIN for step in running)
        self._writer = next((step.id for step in running if step.kind in CACHE_KINDS), None)
        self.held = {}
        if not self.plan.dataset.cached_items:
            return
        for step in due:
            if step.kind is StepKind.TRAIN:
                yield from self._before_training(step, trains=trains)
            else:
                yield from self._before_caching(step, trains=trains)
        self._forget_but({step.id for step in due})

    def may_launch(self, step: Step) -> bool:
        """Whether a caching step may start this moment. If not, the next looks prepare it."""
        if not self.plan.dataset.cached_items or isinstance(self._work.get(step.id), _Armed):
            return True
        self._drop(step.id)
        return False

    def clear(self, step: Step) -> CachesCleared | None:
        """Remove what is stale, and note what the attempt that is about to start will make; raises OSError."""
        work = self._work.get(step.id)
        if not isinstance(work, _Armed):
            return None
        removed = caching.clear(work.survey)
        self._work[step.id] = _Caching(work.survey)
        need = work.survey.need
        return CachesCleared(
            at=self.clock.now(),
            step=step.id,
            items=need.items,
            keep=need.items - need.make,
            make=need.make,
            made=work.survey.make,
            removed=removed,
        )

    def conclude(self, step: Step) -> Diagnosis | None:
        """After an attempt that ended without an error: why its caches are not right, None when they are on record."""
        if not self.plan.dataset.cached_items:
            return None
        work = self._work.get(step.id)
        try:
            if isinstance(work, _Caching):
                found = caching.again(work.survey)
            else:  # a supervisor that took over knows only what is on disk
                found = caching.survey_step(self.plan, step, caching.inventory_of(self.plan), finished=True)
            trouble = _after_caching(found)
            if trouble is None:
                caching.settle(self.run, step, found)
        except WanTrainError as error:
            return _refusal("the dataset cannot be trained now", error.message)
        except (OSError, UnicodeDecodeError) as error:
            return _refusal("the dataset or its caches cannot be read now", str(error))
        return trouble

    def over(self, step: Step) -> None:
        """An attempt at caching is over, whatever came of it."""
        self._drop(step.id)

    def close(self, *, is_over: bool) -> None:
        self._work.clear()
        self.locks.close(is_over=is_over)

    def _before_caching(self, step: Step, *, trains: bool) -> Iterator[Event]:
        now = self.clock.monotonic()
        work = self._work.get(step.id)
        if isinstance(work, _Blocked) and now >= work.until:
            work = None
        if work is None:
            if not self.locks.write(step.id):
                self.held[step.id] = self._who_writes()
                self._work.pop(step.id, None)
                return
            work = self._work[step.id] = _Look(self.plan, step, self._inventory)
            work.thread.join(_AT_ONCE_SECONDS)
        match work:
            case _Look() if work.thread.is_alive():
                self.held[step.id] = "looking at the dataset and its caches"
            case _Look():
                yield from self._judge(step, work, now, trains=trains)
            case _Blocked():
                self.held[step.id] = work.words
            case _Armed() if now >= work.until:
                self._set(step.id, _Known())
            case _Armed() | _Known() | _Caching():
                pass

    def _judge(self, step: Step, look: _Look, now: float, *, trains: bool) -> Iterator[Event]:
        if look.bug is not None:
            raise look.bug
        survey = look.survey
        if survey is None or survey.strangers:
            self._drop(step.id)
            refusal = look.trouble or _strangers(survey.strangers if survey is not None else ())
            yield StepRefused(at=self.clock.now(), step=step.id, diagnosis=refusal)
            return
        others = () if survey.is_settled else self.locks.other_readers()
        if others:
            if not trains:
                # Two runs that wait for each other's reading to end would wait for ever.
                self.locks.done_reading()
            words = (
                f"waiting for run {others[0]}, which trains from these caches: {grouped(survey.need.reasons)}. "
                "With a cache_directory of its own this run would not have to wait"
            )
            self.held[step.id] = words
            self._set(step.id, _Blocked(words, now + _BLOCKED_SECONDS))
        elif survey.make:
            self._work[step.id] = _Armed(survey, now + _KEPT_SECONDS)
        else:
            removed = caching.settle(self.run, step, survey)
            self._drop(step.id)
            yield CachesUpToDate(at=self.clock.now(), step=step.id, items=survey.total, removed=removed)

    def _before_training(self, step: Step, *, trains: bool) -> Iterator[Event]:
        now = self.clock.monotonic()
        if self.locks.is_reading and now - self._checked.get(step.id, -_CHECKED_SECONDS) < _CHECKED_SECONDS:
            return
        if not self.locks.is_reading and not self.locks.write(step.id):
            self.held[step.id] = self._who_writes()
            return
        what = caching.trouble_with_pairs(self.run, self.plan)
        if what is None:
            self._checked[step.id], self._disturbances = now, 0
            self.locks.read(step.id)
        elif trains:
            self.held[step.id] = f"waiting for the other expert, since its caches have changed: {what}"
        elif self._disturbances >= _MOST_DISTURBANCES:
            yield StepRefused(at=self.clock.now(), step=step.id, diagnosis=_never_quiet(what))
        else:
            self._disturbances += 1
            self.held[step.id] = f"its caches have changed: {what}"
            for other in self.plan.steps:
                if other.kind in CACHE_KINDS:
                    yield CachesDisturbed(at=self.clock.now(), step=other.id, what=what)
        self._release_if_idle()

    def _who_writes(self) -> str:
        """Whose work holds the lock; a step of an earlier supervisor of this run holds it until it ends."""
        if self._writer is not None:
            return f"waiting for {self._writer}, which another supervisor of this run began"
        return "waiting for another run that caches the same dataset"

    def _forget_but(self, due: set[str]) -> None:
        """Give up what was prepared for steps that are not to start any more, as in a run that is being stopped."""
        for step in [step for step, work in self._work.items() if step not in due and not isinstance(work, _Caching)]:
            self._drop(step)

    def _drop(self, step: str) -> None:
        self._work.pop(step, None)
        self._release_if_idle()

    def _set(self, step: str, work: _Work) -> None:
        self._work[step] = work
        self._release_if_idle()

    def _release_if_idle(self) -> None:
        if not any(isinstance(work, _Look | _Armed | _Caching) for work in self._work.values()):
            self.locks.done_writing()


def grouped(reasons: Mapping[str, int]) -> str:
    """`3 picture changed, 1 not cached yet`."""
    return ", ".join(f"{number} {WORDS[Reason(reason)]}" for reason, number in reasons.items())


def _after_caching(found: Survey) -> Diagnosis | None:
    if found.strangers:
        return _strangers(found.strangers)
    make = found.make
    if not make:
        return None
    total = sum(make.values())
    if set(make) <= {Reason.PICTURE, Reason.CAPTION}:
        return Diagnosis(
            cause=Cause.UNKNOWN,
            meaning=f"{total} of {found.total} items were changed while they were cached",
            advice="Leave the dataset alone until caching is over.",
            evidence=grouped(make),
        )
    missing = make.get(Reason.NEW, 0)
    return Diagnosis(
        cause=Cause.MISSING_FILE if missing else Cause.UNKNOWN,
        meaning=f"{missing or total} of {found.total} {found.kind} caches are {'missing' if missing else 'not right'} "
        f"in {found.folders[0].folder.path}",
        advice="Read the caching log; the pictures without a cache would not be trained.",
        evidence=grouped(make),
    )


def _strangers(paths: Iterable[Path]) -> Diagnosis:
    first = next(iter(paths), None)
    return Diagnosis(
        cause=Cause.BAD_INPUT,
        meaning="the cache directory holds files that the trainer would take for caches and stumble over",
        advice=f"Move {first} somewhere else; wan-train removes only what is named like a cache.",
        evidence=str(first),
    )


def _never_quiet(what: str) -> Diagnosis:
    return Diagnosis(
        cause=Cause.BAD_INPUT,
        meaning=f"its caches change as soon as they are made: {what}",
        advice="Something else writes into the cache directory. End it, or set another cache_directory; then resume.",
        evidence=what,
    )


def _refusal(meaning: str, evidence: str) -> Diagnosis:
    return Diagnosis(
        cause=Cause.BAD_INPUT,
        meaning=meaning,
        advice="Nothing was removed. Put the dataset back in order, then resume the run.",
        evidence=evidence,
    )

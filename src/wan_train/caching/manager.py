"""The caches of one run: inspected before a GPU is taken, changed under a lock, checked before each training."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wan_train.base.clock import Clock
from wan_train.base.errors import WanTrainError
from wan_train.caching.decide import WORDS, Reason
from wan_train.caching.locks import Access, CacheLock
from wan_train.caching.survey import CacheInputs, Survey, clear, difference_from_records, recheck, record, survey
from wan_train.dataset.model import Inventory
from wan_train.engine.caches import CacheKind
from wan_train.engine.failures import Cause, Diagnosis

_AT_ONCE_SECONDS = 0.25
"""A look at a few hundred pictures ends within this time."""
_INVENTORY_SECONDS = 2.0
_ARMED_SECONDS = 10.0
"""How long the folders stay locked for a step that gets no GPU."""
_BLOCKED_SECONDS = 5.0
_CHECKED_SECONDS = 60.0
_MOST_DISTURBANCES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class UpToDate:
    """A caching step has nothing to make. `removed` counts files by reason."""

    step: str
    items: int
    removed: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleared:
    """Stale files are gone and the step's program may start. `made` and `removed` count by reason."""

    step: str
    items: int
    make: int
    made: Mapping[str, int]
    removed: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbed:
    """Caches changed after they were recorded, so this caching step must look at them again."""

    step: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A step cannot run with these caches or this dataset."""

    step: str
    diagnosis: Diagnosis


Finding = UpToDate | Cleared | Disturbed | Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class CachingStep:
    """One caching step; `record` is the file that lists the caches that the run trains from."""

    id: str
    kind: CacheKind
    record: Path


class _Look:
    """One look at the caches of a kind, in a thread: hashing ten thousand new pictures takes seconds."""

    def __init__(self, manager: CacheManager, step: CachingStep) -> None:
        self.began = manager.clock.monotonic()
        self.survey: Survey | None = None
        self.trouble: Diagnosis | None = None
        self.bug: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(manager, step), name=f"look-{step.id}", daemon=True)
        self.thread.start()

    def _run(self, manager: CacheManager, step: CachingStep) -> None:
        try:
            self.survey = survey(manager.inventory(), manager.inputs.maker(step.kind))
        except (WanTrainError, OSError, UnicodeDecodeError) as error:
            self.trouble = _unreadable(error)
        except BaseException as error:  # noqa: BLE001  a thread's bug must end the supervisor, not vanish with the thread
            self.bug = error


@dataclass(slots=True)
class _Armed:
    """A look whose folders are still locked exclusively, so its decision is valid."""

    survey: Survey
    until: float


@dataclass(slots=True)
class _Known:
    """There are caches to make; the folders are locked again once a GPU is free."""


@dataclass(slots=True)
class _Blocked:
    words: str
    until: float


@dataclass(slots=True)
class _Caching:
    """An attempt of this run is making caches."""

    survey: Survey


_Work = _Look | _Armed | _Known | _Blocked | _Caching


@dataclass(slots=True, kw_only=True)
class CacheManager:
    """Decides whether a caching step must start a program, and whether the caches of a training are valid.

    Runs that only read the same caches share the lock. A look prefers to hold it alone, since it may find something to
    change. If other runs read, it shares the lock, which is enough for valid caches.
    """

    inputs: CacheInputs
    steps: Sequence[CachingStep]
    """In the plan's order. Without any, no caches are inspected."""
    clock: Clock
    lock: CacheLock
    blocked: dict[str, str] = field(default_factory=dict)
    """Steps that may not start yet, with the reason in words, as of the last look."""
    _work: dict[str, _Work] = field(default_factory=dict)
    _is_reading: bool = False
    """The caches are valid for training; the lock stays shared until the run ends or they change."""
    _checked: dict[str, float] = field(default_factory=dict)
    _disturbances: int = 0
    _inventory: tuple[float, Inventory] | None = None
    _inventory_lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_looking(self) -> bool:
        return any(isinstance(work, _Look) for work in self._work.values())

    def inventory(self) -> Inventory:
        """The dataset's items; looks that begin at the same time share one scan."""
        with self._inventory_lock:
            now = self.clock.monotonic()
            if self._inventory is None or now - self._inventory[0] > _INVENTORY_SECONDS:
                self._inventory = now, self.inputs.inventory()
            return self._inventory[1]

    def look(self, due: Sequence[str], running: Sequence[str]) -> Iterator[Finding]:
        """Look at the caches of the steps that are otherwise ready; sets `blocked`.

        `due` and `running` are IDs of this run's steps. A step that is not a caching step is a training.
        """
        self.blocked = {}
        if not self.steps:
            return
        caching = {step.id: step for step in self.steps}
        trains = any(step not in caching for step in running)
        caches_now = next((step for step in running if step in caching), None)
        self._forget_all_but(due)
        for step in due:
            if step in caching:
                yield from self._before_caching(caching[step], caches_now)
            else:
                yield from self._before_training(step, trains=trains, caches_now=caches_now)

    def may_launch(self, step: str) -> bool:
        """Whether a caching step may start now. If not, the next looks prepare it."""
        if not self.steps or isinstance(self._work.get(step), _Armed):
            return True
        self._drop(step)
        return False

    def clear(self, step: str) -> Cleared | None:
        """Remove stale caches and record what the next attempt will make; raises OSError."""
        work = self._work.get(step)
        if not isinstance(work, _Armed):
            return None
        removed = clear(work.survey)
        self._work[step] = _Caching(work.survey)
        made = work.survey.make
        return Cleared(step=step, items=work.survey.total, make=sum(made.values()), made=made, removed=removed)

    def conclude(self, step: str) -> Diagnosis | None:
        """Record the caches of an attempt that ended without an error; returns why they are invalid, or None."""
        caching = next((each for each in self.steps if each.id == step), None)
        if caching is None:
            return None
        work = self._work.get(step)
        try:
            if isinstance(work, _Caching):
                found = recheck(work.survey)
            else:  # a supervisor that took over knows only what is on disk
                found = survey(self.inputs.inventory(), self.inputs.maker(caching.kind), finished=True)
            trouble = _after_caching(found)
            if trouble is None:
                record(caching.record, found)
        except (WanTrainError, OSError, UnicodeDecodeError) as error:
            return _unreadable(error)
        return trouble

    def over(self, step: str) -> None:
        """Forget a caching attempt that has ended, with any result."""
        self._drop(step)

    def close(self) -> None:
        """Release everything. Programs of this run that are still running keep the lock that they inherited."""
        self._work.clear()
        self.lock.release()

    def _before_caching(self, step: CachingStep, caches_now: str | None) -> Iterator[Finding]:
        now = self.clock.monotonic()
        work = self._work.get(step.id)
        if isinstance(work, _Blocked) and now >= work.until:
            work = None
        if work is None:
            if not self._lock_for_look():
                self.blocked[step.id] = _who_makes(caches_now)
                self._work.pop(step.id, None)
                return
            work = self._work[step.id] = _Look(self, step)
            work.thread.join(_AT_ONCE_SECONDS)
        match work:
            case _Look() if work.thread.is_alive():
                self.blocked[step.id] = "checking the dataset and its caches"
            case _Look():
                yield from self._judge(step, work)
            case _Blocked():
                self.blocked[step.id] = work.words
            case _Armed() if now >= work.until:
                self._set(step.id, _Known())
            case _Armed() | _Known() | _Caching():
                pass

    def _lock_for_look(self) -> bool:
        return self.lock.access is not None or self.lock.take(Access.CHANGE) or self.lock.take(Access.READ)

    def _judge(self, step: CachingStep, look: _Look) -> Iterator[Finding]:
        if look.bug is not None:
            raise look.bug
        found, now = look.survey, self.clock.monotonic()
        if found is None or found.foreign:
            self._drop(step.id)
            refusal = look.trouble or _foreign(found.foreign if found is not None else ())
            yield Refused(step=step.id, diagnosis=refusal)
        elif not found.is_settled and self.lock.access is Access.READ:
            others = self.lock.other_runs()
            words = (
                f"waiting for {f'run {others[0]}' if others else 'another run'}, which uses these caches: "
                f"{grouped(found.need.reasons)}. A separate cache_directory avoids the wait"
            )
            self.blocked[step.id] = words
            # Wait at least as long as the look took. Otherwise two runs that look in turn would keep each other out.
            self._set(step.id, _Blocked(words, now + max(_BLOCKED_SECONDS, now - look.began)))
        elif found.make:
            self._work[step.id] = _Armed(found, now + _ARMED_SECONDS)
        else:
            removed = record(step.record, found)
            self._drop(step.id)
            yield UpToDate(step=step.id, items=found.total, removed=removed)

    def _before_training(self, step: str, *, trains: bool, caches_now: str | None) -> Iterator[Finding]:
        now = self.clock.monotonic()
        if self._is_reading and now - self._checked.get(step, -_CHECKED_SECONDS) < _CHECKED_SECONDS:
            return
        if not self._is_reading and (self.lock.access is not None or not self.lock.take(Access.READ)):
            self.blocked[step] = _who_makes(caches_now)
            return
        what = difference_from_records((each.kind, each.record) for each in self.steps)
        if what is None:
            self._checked[step], self._disturbances, self._is_reading = now, 0, True
            return
        if trains:
            self.blocked[step] = f"waiting for the other expert, because its caches have changed: {what}"
        elif self._disturbances >= _MOST_DISTURBANCES:
            self._is_reading = False
            yield Refused(step=step, diagnosis=_never_quiet(what))
        else:
            self._disturbances += 1
            self._is_reading = False  # two runs that both kept their shared locks would deadlock
            self.blocked[step] = f"its caches have changed: {what}"
            for each in self.steps:
                yield Disturbed(step=each.id, what=what)
        self._release_if_idle()

    def _forget_all_but(self, due: Iterable[str]) -> None:
        """Release what was prepared for steps that will not start, as when a run stops."""
        for step in [step for step, work in self._work.items() if step not in due and not isinstance(work, _Caching)]:
            self._drop(step)

    def _drop(self, step: str) -> None:
        self._work.pop(step, None)
        self._release_if_idle()

    def _set(self, step: str, work: _Work) -> None:
        self._work[step] = work
        self._release_if_idle()

    def _release_if_idle(self) -> None:
        busy = any(isinstance(work, _Look | _Armed | _Caching) for work in self._work.values())
        if not busy and not self._is_reading:
            self.lock.release()


def grouped(reasons: Mapping[str, int]) -> str:
    """`3 picture changed, 1 not cached yet`."""
    return ", ".join(f"{number} {WORDS[Reason(reason)]}" for reason, number in reasons.items())


def _who_makes(caches_now: str | None) -> str:
    """`caches_now` is this run's own running caching step: it can lock us out only if it outlived its supervisor."""
    if caches_now is not None:
        return f"waiting for {caches_now}, started by another supervisor of this run"
    return "waiting for another run that caches the same dataset"


def _after_caching(found: Survey) -> Diagnosis | None:
    if found.foreign:
        return _foreign(found.foreign)
    make = found.make
    if not make:
        return None
    total = sum(make.values())
    if set(make) <= {Reason.PICTURE, Reason.CAPTION}:
        return Diagnosis(
            cause=Cause.UNKNOWN,
            meaning=f"{total} of {found.total} items changed while they were cached",
            advice="Leave the dataset alone until caching is over.",
            evidence=grouped(make),
        )
    missing = make.get(Reason.NEW, 0)
    return Diagnosis(
        cause=Cause.MISSING_FILE if missing else Cause.UNKNOWN,
        meaning=f"{missing or total} of {found.total} {found.kind} caches are {'missing' if missing else 'invalid'} "
        f"in {found.folders[0].folder.path}",
        advice="Read the caching log; the pictures without a cache would not be trained.",
        evidence=grouped(make),
    )


def _foreign(paths: Sequence[Path]) -> Diagnosis:
    first = next(iter(paths), None)
    return Diagnosis(
        cause=Cause.BAD_INPUT,
        meaning="the cache directory contains files that the trainer would read as caches and fail on",
        advice=f"Move {first} somewhere else; wan-train removes only files that are named like caches.",
        evidence=str(first),
    )


def _never_quiet(what: str) -> Diagnosis:
    return Diagnosis(
        cause=Cause.BAD_INPUT,
        meaning=f"its caches change as soon as they are made: {what}",
        advice="Another program writes into the cache directory. End it, or set another cache_directory; then resume.",
        evidence=what,
    )


def _unreadable(error: WanTrainError | OSError | UnicodeDecodeError) -> Diagnosis:
    is_ours = isinstance(error, WanTrainError)
    return Diagnosis(
        cause=Cause.BAD_INPUT,
        meaning=f"the dataset {'cannot be trained' if is_ours else 'or its caches cannot be read'} now",
        advice="Nothing was removed. Repair the dataset, then resume the run.",
        evidence=error.message if isinstance(error, WanTrainError) else str(error),
    )

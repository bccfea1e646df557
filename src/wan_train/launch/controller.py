"""Carries out a launch: decides, records, acts. Whenever it is killed, the next one continues from the record.

The record is on disk before a step begins, so nothing is rented, started or ended that it does not name.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from wan_train.base import locks
from wan_train.base.clock import Clock
from wan_train.box.vast import VastError
from wan_train.launch.action_runner import ActionRunner
from wan_train.launch.infra import VAST
from wan_train.launch.launch_directory import LaunchDirectory, launch_of
from wan_train.launch.market import Listed, Power
from wan_train.launch.model import BY_HAND, Box, BoxState, Halt, Launch
from wan_train.launch.transitions import Action, Do, Done, Failed, Lost, Outcome, actions, after, settled
from wan_train.run.directory import RunDirectory

MORE_AT_ONCE = 8
"""Threads besides one for each box: to search, to list, and to end a box while another of its steps waits."""
ROUND_SECONDS = 1.0
LIST_SECONDS = 60.0
"""Between two requests for the provider's list."""
SOON_SECONDS = 5.0
"""Until the next request for it, once a box did not answer."""
ASLEEP_SECONDS = 120.0
"""A round this late means that the computer slept, so a box's silence meanwhile proves nothing."""
_UNRECORDED = frozenset({Do.WATCH, Do.DESTROY})
ALIVE_SECONDS = 300.0
"""A step that fails after this long had an answering box: a dead connection ends a step sooner."""
_RUNS = frozenset({BoxState.CHECKING, BoxState.PROVISIONING, BoxState.READY})

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """The provider's answer. `of` names the boxes that ran when it was asked; `boxes` is None without an answer."""

    of: frozenset[str]
    boxes: tuple[Listed, ...] | None
    credit: float | None


@dataclass(slots=True, kw_only=True)
class Controller:
    """One launch, carried out by this program alone: the caller holds the launch's lock."""

    directory: LaunchDirectory
    runner: ActionRunner
    clock: Clock
    start: Callable[[Callable[[], None]], None]
    """Begins a step in the background."""
    changed: Callable[[Launch], None] = lambda _: None
    """Called with every new record once it is on disk."""
    launch: Launch = field(init=False)
    _written: Launch | None = None
    _under_way: dict[Action, float] = field(default_factory=dict)
    """Steps under way, and when they began."""
    _outcomes: queue.SimpleQueue[tuple[Action, Outcome]] = field(default_factory=queue.SimpleQueue)
    _runs: dict[str, ExitStack] = field(default_factory=dict)
    _round: float | None = None
    _listed: float = float("-inf")
    _lists: queue.SimpleQueue[_Listing] = field(default_factory=queue.SimpleQueue)
    _is_looking: bool = False
    _missing: set[str] = field(default_factory=set)
    """Boxes that the last list did not have."""

    def __post_init__(self) -> None:
        self.launch = self._written = self.directory.read()
        self.runner.is_given_up = self._is_given_up

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do, nothing is under way and nothing costs money."""
        return self.launch.is_over and not self._under_way

    def turn(self) -> None:
        """One round: take what ended, look around, record, begin what is due."""
        now = self.clock.now()
        self._wake(now)
        while True:
            try:
                action, outcome = self._outcomes.get_nowait()
            except queue.Empty:
                break
            self._take(action, outcome, now)
        self._halt()
        self._look(now)
        self.launch = settled(self.launch, now, {action.box for action in self._under_way if action.box is not None})
        self._hold_runs()
        is_recorded = self._record()
        for action in list(actions(self.launch, now, self._busy())):
            if is_recorded or action.do in _UNRECORDED:
                self._begin(action)

    def _hold_runs(self) -> None:
        """Hold the runs here as a supervisor does, so that no command resumes on this computer what a box trains."""
        for job in self.launch.jobs:
            if job.state.is_end:
                self._runs.pop(job.name, ExitStack()).close()
            elif job.name not in self._runs and job.home is not None and job.home.is_dir():
                with ExitStack() as stack:
                    try:
                        stack.enter_context(locks.held(RunDirectory(job.home).lock))
                    except OSError as error:
                        log.warning("%s cannot be held: %s", job.home, error)
                    self._runs[job.name] = stack.pop_all()

    def release(self) -> None:
        """Release the runs here."""
        for stack in self._runs.values():
            stack.close()

    def wait(self) -> None:
        """Wait until a step ends or the next round is due."""
        try:
            self._outcomes.put(self._outcomes.get(timeout=ROUND_SECONDS))
        except queue.Empty:
            return

    def sweep(self) -> None:
        """End boxes of this launch that are still listed but not recorded as living. Raises VastError."""
        for box in self.runner.market.boxes():
            if launch_of(box.label) == self.launch.id and not any(box.is_of(own.name) for own in self.launch.living):
                log.warning("%s (%s) was still there and is ended", box.label, box.id)
                self.runner.market.destroy(box.label)

    def _wake(self, now: float) -> None:
        """Count silence from now after a sleep and at the start, because nothing asked the boxes meanwhile.

        After the clock is set back, recorded times would otherwise delay everything until the old time.
        """
        if self._round is None or not 0 <= now - self._round <= ASLEEP_SECONDS:
            boxes = tuple(
                replace(
                    box,
                    answered=now if box.answered is not None else None,
                    fetched=min(box.fetched, now) if box.fetched is not None else None,
                    not_before=min(box.not_before, now),
                )
                for box in self.launch.boxes
            )
            self.launch = replace(self.launch, boxes=boxes, next_search=min(self.launch.next_search, now))
            self._listed = float("-inf")
        self._round = now

    def _take(self, action: Action, outcome: Outcome, now: float) -> None:
        began = self._under_way.pop(action, now)
        if isinstance(outcome, Failed):
            if now - began > ALIVE_SECONDS:
                outcome = replace(outcome, answered=True)
            log.info("%s %s failed: %s", action.do, action.box or "", outcome.why)
            if not outcome.answered:
                self._listed = min(self._listed, now - LIST_SECONDS + SOON_SECONDS)
        if isinstance(outcome, Done) and action.do is Do.DESTROY and self._is_busy(action.box):
            # A rental still under way could bring the box back after the list was read.
            outcome = Failed(action=action, why="another step of the box is not over")
        if isinstance(outcome, Done) and action.do is Do.RENT:
            # Read the list now for when billing began: SkyPilot may take minutes before and after it orders the box.
            self._listed = float("-inf")
        self.launch = after(self.launch, outcome, now)

    def _halt(self) -> None:
        asked = self.directory.requested()
        if asked is None or self.launch.halt in {asked, Halt.NOW}:
            return
        self.launch = replace(self.launch, halt=asked, halted_because=BY_HAND)

    def _look(self, now: float) -> None:
        """Notice boxes that the provider took away. If it does not answer, the box's silence decides.

        The list is requested in the background, so a provider that hangs delays nothing.
        """
        while not self._lists.empty():
            self._take_list(self._lists.get_nowait(), now)
        running = frozenset(box.name for box in self.launch.living if box.state in _RUNS)
        if not running or self._is_looking or now - self._listed < LIST_SECONDS:
            return
        self._listed = now
        self._is_looking = True

        def step() -> None:
            listed = credit = None
            try:
                listed = self.runner.market.boxes()
                credit = self.runner.market.credit()
            except VastError as error:
                log.info("the list of boxes: %s", error)
            self._lists.put(_Listing(of=running, boxes=listed, credit=credit))

        self.start(step)

    def _take_list(self, listing: _Listing, now: float) -> None:
        """Judge only boxes that ran when the list was requested: it says nothing about boxes rented meanwhile."""
        self._is_looking = False
        if listing.boxes is None:
            return
        if listing.credit is not None:
            self.launch = replace(self.launch, credit=listing.credit)
        for box in list(self.launch.living):
            if box.state not in _RUNS or box.name not in listing.of:
                continue
            same = [each for each in listing.boxes if each.is_of(box.name)]
            if same:
                self._missing.discard(box.name)
            if box.state in {BoxState.CHECKING, BoxState.PROVISIONING}:
                self.launch = _began(self.launch, box, same, now)
            if not same and box.name not in self._missing:
                # One incomplete list must not end a training.
                self._missing.add(box.name)
                self._listed = min(self._listed, now - LIST_SECONDS + SOON_SECONDS)
            elif not same:
                self.launch = after(self.launch, Lost(box=box.name, why="it is gone from the provider's list"), now)
            elif all(each.power is Power.DOWN for each in same):
                spot = box.offer.is_spot
                why = "outbid" if spot else f"the provider has it as {same[0].said}"
                can_wake = not spot and self.launch.wants.infra == VAST
                lost = Lost(box=box.name, why=why, stopped=True, can_wake=can_wake)
                self.launch = after(self.launch, lost, now)

    def _record(self) -> bool:
        """Write the record before any step begins; return whether it is on disk.

        Steps that ended since the last record are only repeated after a crash. On a full disk, only steps that may be
        repeated begin.
        """
        if self.launch == self._written:
            return True
        try:
            self.directory.write(self.launch)
        except OSError as error:
            log.warning("%s cannot be written: %s", self.directory.record, error.strerror)
            return False
        self._written = self.launch
        self.changed(self.launch)
        return True

    def _begin(self, action: Action) -> None:
        self._under_way[action] = self.clock.now()
        launch = self.launch

        def step() -> None:
            try:
                outcome = self.runner.do(launch, action)
            except Exception as error:
                log.exception("%s %s", action.do, action.box or "")
                outcome = Failed(action=action, why=f"a bug in wan-train: {type(error).__name__}")
            self._outcomes.put((action, outcome))

        self.start(step)

    def _busy(self) -> set[str]:
        """Boxes that cannot begin a step. A given-up box can be destroyed while its other steps are under way."""
        busy = set()
        for action in self._under_way:
            name = action.box or ""
            ends = bool(name) and self._is_given_up(name)
            if not ends or action.do is Do.DESTROY:
                busy.add(name)
        return busy

    def _is_busy(self, box: str | None) -> bool:
        return any(action.box == box for action in self._under_way)

    def _is_given_up(self, name: str) -> bool:
        return self.launch.box(name).state in {BoxState.DESTROYING, BoxState.GONE}


def _began(launch: Launch, box: Box, listed: Sequence[Listed], now: float) -> Launch:
    """Set a box's start to when the provider began billing, which is after SkyPilot's own start-up; never earlier."""
    since = min((each.since for each in listed if each.since is not None), default=box.began)
    began = max(box.began, min(since, now))
    return replace(
        launch, boxes=tuple(replace(each, began=began) if each.name == box.name else each for each in launch.boxes)
    )


def carry_out(
    directory: LaunchDirectory, runner: ActionRunner, clock: Clock, changed: Callable[[Launch], None]
) -> tuple[Launch, bool]:
    """Carry out a launch to its end. Return its record, and whether the provider's list then had no box of it.

    Raises BlockingIOError when another program carries it out.
    """
    # Renting or provisioning may occupy a thread for hours. The spare threads keep other boxes watched.
    threads = directory.read().wants.boxes + MORE_AT_ONCE
    with directory.held(), ThreadPoolExecutor(threads, thread_name_prefix="step") as pool:
        controller = Controller(
            directory=directory, runner=runner, clock=clock, start=lambda step: _submit(pool, step), changed=changed
        )
        try:
            while not controller.is_over:
                controller.turn()
                if not controller.is_over:
                    controller.wait()
        finally:
            controller.release()
        try:
            controller.sweep()
        except VastError as error:
            log.warning("the last look at the list of boxes: %s", error)
            return controller.launch, False
        return controller.launch, True


def _submit(pool: ThreadPoolExecutor, step: Callable[[], None]) -> None:
    pool.submit(step)

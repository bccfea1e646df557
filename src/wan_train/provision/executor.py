"""Steps done as a graph: each begins as soon as what it needs is ready, everything else at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wan_train.base.errors import NotReadyError, WanTrainError
from wan_train.provision.status_table import Board, Phase
from wan_train.provision.steps import Finding, State, Step, check, has_work, words
from wan_train.provision.work import EndedError, Work

_LOOK_SECONDS = 0.2
_GOOD = frozenset({Phase.READY, Phase.DONE})
_OVER = _GOOD | {Phase.FAILED, Phase.SKIPPED, Phase.ENDED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a pass: how each step stands now, and why some failed."""

    found: Mapping[str, Finding]
    failures: Mapping[str, WanTrainError]
    is_complete: bool
    """False when the user ended it before every step was over."""


@dataclass(slots=True, kw_only=True)
class Graph:
    """One pass over the steps.

    `logs` is the folder of the steps' logs, `lock` what programs inherit. Setting `ended` ends all steps; `tick` is
    called a few times a second by the thread that performs, and may raise.
    """

    steps: Sequence[Step]
    board: Board
    logs: Path
    lock: int
    tick: Callable[[], None] = lambda: None
    ended: threading.Event = field(default_factory=threading.Event)
    _found: dict[str, Finding] = field(default_factory=dict)
    _failures: dict[str, WanTrainError] = field(default_factory=dict)
    _bugs: list[BaseException] = field(default_factory=list)
    _phases: dict[str, Phase] = field(default_factory=dict)
    _over: set[str] = field(default_factory=set)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def perform(self, findings: Mapping[str, Finding]) -> Outcome:
        """Do what is not ready; what was done is looked at again, and only believed then.

        A failed step holds up only those that need it. KeyboardInterrupt and whatever else comes up in this thread ends
        the steps' programs first.
        """
        self._found.update(findings)
        todo = [step for step in self.steps if has_work(step, findings[step.id])]
        for step in self.steps:
            self._enter(step, findings[step.id], waiting=step in todo)
        threads = [threading.Thread(target=self._run, args=(step,), name=step.id) for step in todo]
        try:
            self.tick()
            for thread in threads:
                thread.start()
            while not self._are_over(threads):
                with self._changed:  # a wait without a limit would hold back signals
                    self._changed.wait(_LOOK_SECONDS)
                self.tick()
        finally:
            self.ended.set()
            with self._changed:
                while not self._are_over([thread for thread in threads if thread.ident is not None]):
                    self._changed.wait(_LOOK_SECONDS)
        for bug in self._bugs:
            raise bug
        is_complete = Phase.ENDED not in self._phases.values()
        return Outcome(found=self._found, failures=self._failures, is_complete=is_complete)

    def _enter(self, step: Step, finding: Finding, *, waiting: bool) -> None:
        phase = Phase.WAITING if waiting else Phase.READY
        self._phases[step.id] = phase
        # Only what comes through the lane tells how many bytes of it are there.
        total = finding.size if waiting and step.lane is not None else 0
        warns = not waiting and finding.state is State.WARNING
        self.board.enter(step.id, step.title, phase, detail=finding.detail, total=total, warns=warns)
        if step.lane is not None:
            step.lane.listen(self._line_moved)
            if not waiting:
                step.lane.leave(step.id)

    def _line_moved(self, step: str, before: str | None) -> None:
        if before is None:
            self.board.begin(step)
        else:
            self.board.wait(step, turn_after=before)

    def _are_over(self, threads: Sequence[threading.Thread]) -> bool:
        """Not by join: up to Python 3.12 one that a signal's exception interrupts takes the thread for ended."""
        return {thread.name for thread in threads} <= self._over

    def _run(self, step: Step) -> None:
        try:
            phase, line = self._wait_and_do(step)
        except BaseException as error:  # noqa: BLE001  a bug in a thread must end the program, not hang it
            self._bugs.append(error)
            phase, line = Phase.FAILED, "failed: a bug in wan-train"
        if step.lane is not None:
            step.lane.leave(step.id)
        self.board.end(step.id, phase, line)
        with self._changed:
            self._phases[step.id] = phase
            self._over.add(step.id)
            self._changed.notify_all()

    def _wait_and_do(self, step: Step) -> tuple[Phase, str]:
        missing = self._wait(step)
        if self.ended.is_set():
            return Phase.ENDED, "not begun"
        if missing:
            titles = {each.id: each.title for each in self.steps}
            reason = "failed" if self._phases[missing] is Phase.FAILED else "was not done"
            return Phase.SKIPPED, f"not done, since {titles[missing]} {reason}"
        work = Work(step=step.id, board=self.board, log=self.logs / f"{step.id}.log", lock=self.lock, ended=self.ended)
        self.board.begin(step.id)
        try:
            if step.apply is not None:
                step.apply(work)
            found = self._found[step.id] = check(step)
            if found.state not in {State.READY, State.WARNING, State.UNTESTED}:
                raise NotReadyError(found.detail, hint=found.hint or f"The log is {work.log}.")
        except EndedError as error:
            return Phase.ENDED, error.message
        except OSError as error:
            hint = "Look at the disk and at permissions there, then run it again."
            self._failures[step.id] = NotReadyError(words(error), hint=hint)
        except WanTrainError as error:
            self._failures[step.id] = error
        if step.id in self._failures:
            return Phase.FAILED, f"failed: {self._failures[step.id].message}"
        return Phase.DONE, f"done: {found.detail}"

    def _wait(self, step: Step) -> str | None:
        """Wait for what comes before; the id of a needed step that will never be ready, if any."""
        told: tuple[str, ...] = ()
        with self._changed:
            while not self.ended.is_set():
                phases = {name: self._phases[name] for name in (*step.needs, *step.after) if name in self._phases}
                bad = next((n for n in step.needs if phases.get(n, Phase.READY) in _OVER - _GOOD), None)
                needs = tuple(name for name, phase in phases.items() if phase not in _OVER)
                if bad is not None or not needs:
                    return bad
                if needs != told:
                    told = needs
                    self.board.wait(step.id, needs=needs)
                self._changed.wait(_LOOK_SECONDS)
        return None


def failure(steps: Sequence[Step], failures: Mapping[str, WanTrainError]) -> NotReadyError | None:
    """All that failed as one error, each step named with its reason; None when nothing did."""
    failed = [(step.title, failures[step.id]) for step in steps if step.id in failures]
    if not failed:
        return None
    hints = " ".join(dict.fromkeys(error.hint for _, error in failed if error.hint)) or None
    if len(failed) == 1:
        return NotReadyError(f"{failed[0][0]}: {failed[0][1].message}", hint=hints)
    listing = "".join(f"\n{title}: {error.message}" for title, error in failed)
    return NotReadyError(f"{len(failed)} steps failed:{listing}", hint=hints)

"""Steps done as a graph: each begins as soon as what it needs is ready, everything else at the same time."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wan_train.box.board import Board, Phase
from wan_train.box.steps import TO_DO, Finding, State, Step, check, words
from wan_train.box.work import EndedError, Work
from wan_train.errors import NotReadyError, WanTrainError

_LOOK_SECONDS = 0.2
_GOOD = frozenset({Phase.READY, Phase.DONE})
_OVER = _GOOD | {Phase.FAILED, Phase.SKIPPED, Phase.ENDED}


@dataclass(slots=True, kw_only=True)
class Graph:
    """One pass over the steps. `logs` is the folder of the steps' logs, `lock` what programs inherit."""

    steps: Sequence[Step]
    board: Board
    logs: Path
    lock: int
    failures: dict[str, WanTrainError] = field(default_factory=dict)
    bugs: list[BaseException] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    _phases: dict[str, Phase] = field(default_factory=dict)
    _over: set[str] = field(default_factory=set)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def perform(self, findings: Mapping[str, Finding]) -> None:
        """Do what is not ready; what was done is looked at again, and only believed then.

        A failed step holds up only those that need it. KeyboardInterrupt and whatever else comes up in this thread ends
        the steps' programs first.

        Raises:
            NotReadyError: one or more steps failed; each is named with its reason.
        """
        todo = [step for step in self.steps if step.apply is not None and findings[step.id].state in TO_DO]
        for step in self.steps:
            waiting = step in todo
            phase = Phase.WAITING if waiting else Phase.READY
            finding = findings[step.id]
            self._phases[step.id] = phase
            self.board.enter(step.id, step.title, phase, detail=finding.detail, total=finding.size if waiting else 0)
            if not waiting and step.lane is not None:
                step.lane.leave(step.id)
        threads = [threading.Thread(target=self._run, args=(step,), name=step.id) for step in todo]
        try:
            for thread in threads:
                thread.start()
            self._wait_for(threads)
        finally:
            self.ended.set()
            self._wait_for([thread for thread in threads if thread.ident is not None])
        for bug in self.bugs:
            raise bug
        self._refuse_failures()

    def _wait_for(self, threads: Sequence[threading.Thread]) -> None:
        """Not by join: up to Python 3.12 one that a signal's exception interrupts takes the thread for ended."""
        with self._changed:
            while not {thread.name for thread in threads} <= self._over:
                self._changed.wait(_LOOK_SECONDS)  # without a limit it would hold back signals

    def _run(self, step: Step) -> None:
        try:
            phase, line = self._wait_and_do(step)
        except BaseException as error:  # noqa: BLE001  a bug in a thread must end the program, not hang it
            self.bugs.append(error)
            phase, line = Phase.FAILED, "a bug in wan-train"
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
            return Phase.SKIPPED, f"not done, since {titles[missing]} failed"
        work = Work(step=step.id, board=self.board, log=self.logs / f"{step.id}.log", lock=self.lock, ended=self.ended)
        self.board.begin(step.id)
        try:
            if step.apply is not None:
                step.apply(work)
            found = check(step)
            if found.state not in {State.READY, State.WARNING}:
                raise NotReadyError(found.detail, hint=found.hint or f"The log is {work.log}.")
        except EndedError as error:
            return Phase.ENDED, error.message
        except OSError as error:
            hint = "Look at the disk and at permissions there, then run it again."
            self.failures[step.id] = NotReadyError(words(error), hint=hint)
        except WanTrainError as error:
            self.failures[step.id] = error
        if step.id in self.failures:
            return Phase.FAILED, f"failed: {self.failures[step.id].message}"
        return Phase.DONE, f"done: {found.detail}"

    def _wait(self, step: Step) -> str | None:
        """Wait for what comes before; the id of a needed step that will never be ready, if any."""
        with self._changed:
            while not self.ended.is_set():
                phases = {name: self._phases[name] for name in (*step.needs, *step.after) if name in self._phases}
                bad = next((n for n in step.needs if phases.get(n, Phase.READY) in _OVER - _GOOD), None)
                if bad is not None or all(phase in _OVER for phase in phases.values()):
                    return bad
                self._changed.wait(_LOOK_SECONDS)
        return None

    def _refuse_failures(self) -> None:
        titles = {step.id: step.title for step in self.steps}
        failed = [(titles[step.id], self.failures[step.id]) for step in self.steps if step.id in self.failures]
        if not failed:
            return
        hints = " ".join(dict.fromkeys(error.hint for _, error in failed if error.hint)) or None
        if len(failed) == 1:
            raise NotReadyError(f"{failed[0][0]}: {failed[0][1].message}", hint=hints)
        listing = "".join(f"\n{title}: {error.message}" for title, error in failed)
        raise NotReadyError(f"{len(failed)} steps failed:{listing}", hint=hints)

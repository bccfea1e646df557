"""Runs steps as a graph: each starts as soon as the steps it needs are ready, in parallel with the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

from wan_train.base.errors import NotReadyError, WanTrainError
from wan_train.provision.status_table import Phase, Row, StatusTable
from wan_train.provision.steps import READY_STATES, Finding, State, Step, check, has_work, words
from wan_train.provision.work import EndedError, Work

_LOOK_SECONDS: Final = 0.2
_GOOD: Final = frozenset({Phase.READY, Phase.DONE})
_OPEN: Final = frozenset({Phase.WAITING, Phase.RUNNING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a pass: the finding of each step, and why some failed."""

    found: Mapping[str, Finding]
    failures: Mapping[str, WanTrainError]
    is_complete: bool
    """False when the user ended it before every step was over."""


@dataclass(slots=True, kw_only=True)
class Graph:
    """One pass over the steps.

    `logs` is the folder of the steps' logs; `lock` is a descriptor that programs inherit. Setting `ended` ends all
    steps. The thread that performs calls `tick` a few times a second; it may raise.
    """

    steps: Sequence[Step]
    table: StatusTable
    logs: Path
    lock: int
    tick: Callable[[], None] = lambda: None
    ended: threading.Event = field(default_factory=threading.Event)
    _found: dict[str, Finding] = field(default_factory=dict)
    _failures: dict[str, WanTrainError] = field(default_factory=dict)
    _bugs: list[BaseException] = field(default_factory=list)

    def perform(self, findings: Mapping[str, Finding]) -> Outcome:
        """Run the steps that have work. Each is checked again afterwards, and only that counts.

        A failed step blocks only those that need it. An exception in this thread ends the steps' programs first.
        """
        self._found.update(findings)
        todo = {step.id: step for step in self.steps if has_work(step, findings[step.id])}
        for step in self.steps:
            self._add(step, findings[step.id], waiting=step.id in todo)
        sorter = TopologicalSorter({name: todo.keys() & {*step.needs, *step.after} for name, step in todo.items()})
        sorter.prepare()
        running: dict[Future[None], str] = {}
        with ThreadPoolExecutor(max_workers=max(1, len(todo))) as pool:
            try:
                self.tick()
                while sorter.is_active():
                    for name in sorter.get_ready():
                        if self._may_begin(todo[name]):
                            running[pool.submit(self._run, todo[name])] = name
                        else:
                            sorter.done(name)
                    self._show_waits(todo)
                    for future in wait(running, _LOOK_SECONDS, FIRST_COMPLETED).done:
                        sorter.done(running.pop(future))
                    self.tick()
            finally:
                # Wait before leaving the pool: up to Python 3.12, an interrupted join marks a live thread as ended.
                self.ended.set()
                while wait(running, _LOOK_SECONDS).not_done:
                    pass
                for name, step in todo.items():
                    if self._phases()[name] is Phase.WAITING:
                        self._may_begin(step)
        for bug in self._bugs:
            raise bug
        is_complete = Phase.ENDED not in self._phases().values()
        return Outcome(found=self._found, failures=self._failures, is_complete=is_complete)

    def _add(self, step: Step, finding: Finding, *, waiting: bool) -> None:
        row = Row(
            id=step.id,
            title=step.title,
            phase=Phase.WAITING if waiting else Phase.READY,
            detail=finding.detail,
            total=finding.size if waiting and step.downloads else 0,
            warns=not waiting and finding.state is State.WARNING,
        )
        self.table.add(row)

    def _phases(self) -> dict[str, Phase]:
        return {row.id: row.phase for row in self.table.rows()}

    def _may_begin(self, step: Step) -> bool:
        """False for a step that will never begin: the user ended everything, or what it needs failed."""
        phases = self._phases()
        failed = next((name for name in step.needs if phases.get(name, Phase.READY) not in _GOOD), None)
        if self.ended.is_set():
            self.table.end(step.id, Phase.ENDED, "not started")
        elif failed is not None:
            titles = {each.id: each.title for each in self.steps}
            reason = "failed" if phases[failed] is Phase.FAILED else "was not done"
            self.table.end(step.id, Phase.SKIPPED, f"skipped, because {titles[failed]} {reason}")
        else:
            return True
        return False

    def _show_waits(self, todo: Mapping[str, Step]) -> None:
        phases = self._phases()
        for name, step in todo.items():
            if phases[name] is Phase.WAITING:
                needs = tuple(each for each in (*step.needs, *step.after) if phases.get(each) in _OPEN)
                self.table.change(name, partial(replace, needs=needs))

    def _run(self, step: Step) -> None:
        try:
            phase, line = self._do(step)
        except BaseException as error:  # noqa: BLE001  a bug in a thread must end the program, not hang it
            self._bugs.append(error)
            phase, line = Phase.FAILED, "failed: a bug in wan-train"
        self.table.end(step.id, phase, line)

    def _do(self, step: Step) -> tuple[Phase, str]:
        work = Work(step=step.id, table=self.table, log=self.logs / f"{step.id}.log", lock=self.lock, ended=self.ended)
        self.table.begin(step.id)
        try:
            if step.apply is not None:
                step.apply(work)
            found = self._found[step.id] = check(step)
            if found.state not in READY_STATES:
                raise NotReadyError(found.detail, hint=found.hint or f"The log is {work.log}.")
        except EndedError as error:
            return Phase.ENDED, error.message
        except OSError as error:
            hint = "Check the disk and its permissions, then run it again."
            self._failures[step.id] = NotReadyError(words(error), hint=hint)
        except WanTrainError as error:
            self._failures[step.id] = error
        if step.id in self._failures:
            return Phase.FAILED, f"failed: {self._failures[step.id].message}"
        return Phase.DONE, f"done: {found.detail}"


def failure(steps: Sequence[Step], failures: Mapping[str, WanTrainError]) -> NotReadyError | None:
    """All failures as one error that names each step with its reason; None if there are none."""
    failed = [(step.title, failures[step.id]) for step in steps if step.id in failures]
    if not failed:
        return None
    hints = " ".join(dict.fromkeys(error.hint for _, error in failed if error.hint)) or None
    if len(failed) == 1:
        return NotReadyError(f"{failed[0][0]}: {failed[0][1].message}", hint=hints)
    listing = "".join(f"\n{title}: {error.message}" for title, error in failed)
    return NotReadyError(f"{len(failed)} steps failed:{listing}", hint=hints)

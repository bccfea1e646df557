"""How far each expert's LoRA moved between its states, measured while it trains."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from wan_train.engine.lora_distance import LoraFile, distance, load_numpy
from wan_train.engine.tensors import BrokenFileError
from wan_train.run.attempts import SavedState, saved_states
from wan_train.run.directory import RunDirectory
from wan_train.run.events import MovementMeasured
from wan_train.run.plan import Plan, Step
from wan_train.run.state import Job

SETTLED, SETTLING = 0.005, 0.05
"""Movement over a tenth of the training. The guide's schedule falls below these after epochs 60 and 40 of 100."""
_LAST_SECONDS = 60.0
_LOWEST_PRIORITY = 19


class Learning(StrEnum):
    """What the movement of a LoRA says about its training."""

    LEARNING = "still learning"
    SETTLING = "settling"
    SETTLED = "settled"


def learning(movement: MovementMeasured, total_epochs: int) -> Learning:
    """Classify a movement. Intervals between states vary, so it is scaled to a tenth of the training's epochs."""
    pace = movement.relative * (total_epochs / 10) / (movement.epoch - movement.since_epoch)
    if pace <= SETTLED:
        return Learning.SETTLED
    return Learning.SETTLING if pace <= SETTLING else Learning.LEARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    step: str
    since_epoch: int
    epoch: int
    earlier: LoraFile
    later: LoraFile
    files: ExitStack


class MovementMeter:
    """Compares the two newest states of a training, in a thread of the lowest priority."""

    def __init__(self, run: RunDirectory, plan: Plan, now: Callable[[], float]) -> None:
        self._run = run
        self._plan = plan
        self._now = now
        self._seen: set[tuple[str, int, int]] = set()
        self._wanted: queue.SimpleQueue[_Pair] = queue.SimpleQueue()
        self._measured: queue.SimpleQueue[MovementMeasured | None] = queue.SimpleQueue()
        self._waiting = 0
        self._thread: threading.Thread | None = None

    def look(self, step: Step, job: Job) -> None:
        """Compare the newest state with the one before, once. Both files may be removed afterwards."""
        attempt = job.attempt
        if attempt is None:
            return
        # When an attempt resumes from an older state, later states are still on disk. They are not part of its past.
        states = {
            state.epochs_done: state
            for state in saved_states(self._run, self._plan, step, job)
            if state.epochs_done <= attempt.epochs_done
        }
        newest = sorted(states)[-2:]
        if len(newest) < 2:  # two are compared
            return
        key = (step.id, attempt.number, newest[-1])
        if key in self._seen or any(movement.epoch == newest[-1] for movement in job.movements):
            return
        self._seen.add(key)
        with ExitStack() as opened:
            try:
                earlier, later = (opened.enter_context(_weights(states[epoch])) for epoch in newest)
            except BrokenFileError as error:
                _log(f"the movement of {step.id} is not measured: {error.message}")
                return
            files = opened.pop_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._measure, name="movement", daemon=True)
            self._thread.start()
        self._waiting += 1
        since, epoch = newest
        self._wanted.put(_Pair(step=step.id, since_epoch=since, epoch=epoch, earlier=earlier, later=later, files=files))

    def take(self, *, wait: bool = False) -> Iterator[MovementMeasured]:
        """Yield what was measured since the last call. `wait` is for the end of a run, when all else is done."""
        while self._waiting:
            try:
                found = self._measured.get(block=wait, timeout=_LAST_SECONDS)
            except queue.Empty:
                return
            self._waiting -= 1
            if found is not None:
                yield found

    def _measure(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        load_numpy()
        while True:
            pair = self._wanted.get()
            found = None
            with pair.files:
                try:
                    found = MovementMeasured(
                        at=self._now(),
                        step=pair.step,
                        since_epoch=pair.since_epoch,
                        epoch=pair.epoch,
                        relative=distance(pair.earlier, pair.later),
                    )
                except (BrokenFileError, MemoryError) as error:
                    _log(f"the movement of {pair.step} is not measured: {error}")
            self._measured.put(found)


def _weights(state: SavedState) -> LoraFile:
    return LoraFile(Path(state.path) / "model.safetensors")


def _log(line: str) -> None:
    print(line, flush=True)  # noqa: T201  stdout is supervisor.log here

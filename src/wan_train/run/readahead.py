"""Read the experts' weights into the page cache while caching keeps the GPU busy.

A starting trainer reads 28.6 GB: minutes from a cold network disk, seconds from RAM. Only free RAM is used, so that
nothing in use is evicted.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from wan_train.base.host import available_ram
from wan_train.base.units import GB
from wan_train.run.plan import Plan, StepKind
from wan_train.run.progress import Progress
from wan_train.run.state import JobState, RunState

RESERVE_BYTES = 4_000_000_000
"""RAM that stays free for everything else."""
_CHUNK = 8 * 1024 * 1024
_LOOK_BYTES = 256 * 1024 * 1024
_LOWEST_PRIORITY = 19


def is_time(plan: Plan, state: RunState, progress: Mapping[str, Progress]) -> bool:
    """Whether caching is running and has loaded its own models: before that, it needs the disk for them."""
    running = [
        step.id
        for step in plan.steps
        if step.kind is not StepKind.TRAIN and state.jobs[step.id].state is JobState.RUNNING
    ]
    return bool(running) and all((progress.get(step) or Progress()).cached for step in running)


def weights(plan: Plan) -> list[Path]:
    """Return the weights that trainings read first: one expert's, or both if two GPUs may train them at once."""
    steps = [step for step in plan.steps if step.expert is not None]
    at_once = steps[: max(1, len(plan.gpu_uuids))]
    return [plan.models.dit[step.expert.value] for step in at_once if step.expert is not None]


def fitting(sizes: Sequence[tuple[Path, int]], *, available: int, copies: int) -> list[Path]:
    """Return the first files, in order, that fit into `available` bytes of RAM and leave the reserve free.

    `copies`: 2 if the trainer also keeps what it reads in RAM, as it does with swapped blocks.
    """
    left = available - RESERVE_BYTES
    chosen = []
    for path, size in sizes:
        left -= copies * size
        if left < 0:
            break
        chosen.append(path)
    return chosen


class ReadAhead:
    """Reads files once, in a daemon thread of the lowest priority."""

    def __init__(self, plan: Plan, *, available: Callable[[], int] = available_ram) -> None:
        self._plan = plan
        self._available = available
        self._stop = threading.Event()
        self.thread: threading.Thread | None = None

    def look(self, state: RunState, progress: Mapping[str, Progress]) -> None:
        """Begin when the time has come; later calls do nothing."""
        if self.thread is None and is_time(self._plan, state, progress):
            self.thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
            self.thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        sizes = [(path, path.stat().st_size) for path in weights(self._plan) if path.is_file()]
        if not sizes:  # the rehearsal has no such files
            return
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        available = self._available()
        swaps = any(spec.training.blocks_to_swap for spec in self._plan.recipe.experts)
        copies = 2 if swaps else 1
        chosen = fitting(sizes, available=available, copies=copies)
        if len(chosen) < len(sizes):
            needed = copies * sum(size for _, size in sizes) + RESERVE_BYTES
            left_out = ", ".join(path.name for path, _ in sizes if path not in chosen)
            print(  # noqa: T201  stdout is supervisor.log here
                f"not read ahead: {left_out}: needs {needed / GB:.1f} GB of RAM, {available / GB:.1f} GB available",
                flush=True,
            )
        for path in chosen:
            began = time.monotonic()
            done = sum(self._pieces(path))
            print(f"read ahead: {done / GB:.1f} GB of {path.name} in {time.monotonic() - began:.0f} s", flush=True)  # noqa: T201  stdout is supervisor.log here

    def _pieces(self, path: Path) -> Iterator[int]:
        buffer = bytearray(_CHUNK)
        since_look = 0
        try:
            with path.open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
                while not self._stop.is_set() and (count := file.readinto(buffer)):
                    yield count
                    since_look += count
                    if since_look >= _LOOK_BYTES:
                        since_look = 0
                        if self._available() < RESERVE_BYTES:
                            return
        except OSError:
            return  # the trainer will hit the same error and explain it

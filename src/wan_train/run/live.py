"""What a supervisor sees, written for viewers: `live.json` every round, `gpus.jsonl` every ten seconds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from wan_train.base import codec
from wan_train.base.clock import Clock
from wan_train.base.files import append_lines, write_whole
from wan_train.gpu.model import Gpu
from wan_train.run.directory import RunDirectory
from wan_train.run.gpu_pool import GpuPool, gpu_label
from wan_train.run.plan import Devices, Plan
from wan_train.run.progress import Progress
from wan_train.run.scheduler import GpuView, why_waiting
from wan_train.run.state import JobState, RunState

EVERY_SECONDS = 10.0
"""Between two samples of a GPU. A short memory peak between two samples is not seen."""

MOST_LINES = 8000
"""Two GPUs for eleven hours. A longer file is thinned to half of this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One GPU at one moment (seconds since 1970), while `steps` of the run were on it.

    Memory in bytes, of all processes; utilisation in percent, temperature in degrees Celsius.
    """

    at: float
    uuid: str
    label: str
    name: str
    used_bytes: int
    total_bytes: int
    utilization: int | None = None
    temperature: int | None = None
    power_watts: float | None = None
    steps: tuple[str, ...] = ()
    driver: str | None = None


class GpuHistory:
    """Appends samples. Nothing depends on them, so nothing is flushed, and readers skip damaged lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: int | None = None

    def append(self, samples: Sequence[GpuSample]) -> None:
        """Write samples of one moment; raises OSError."""
        if self._lines is None:
            self._lines = len(read_gpu_history(self._path))
        append_lines(self._path, *map(codec.to_json, samples), durable=False)
        self._lines += len(samples)
        if self._lines > MOST_LINES:
            kept = thinned(read_gpu_history(self._path), MOST_LINES // 2)
            write_whole(self._path, "".join(codec.to_json(sample) + "\n" for sample in kept), durable=False)
            self._lines = len(kept)


def read_gpu_history(path: Path) -> tuple[GpuSample, ...]:
    """Return all samples in order of time. Damaged lines are skipped, and a missing file has no samples."""
    try:
        samples: list[GpuSample] = codec.read_lines(path, GpuSample)
    except OSError:
        return ()
    return tuple(sorted(filter(_is_finite, samples), key=lambda sample: sample.at))


def _is_finite(sample: GpuSample) -> bool:
    return math.isfinite(sample.at) and (sample.power_watts is None or math.isfinite(sample.power_watts))


def thinned(samples: Sequence[GpuSample], most: int) -> tuple[GpuSample, ...]:
    """Return about `most` samples over the same time: of neighbours, the one with the most memory in use stays."""
    by_gpu: dict[str, list[GpuSample]] = defaultdict(list)
    for sample in samples:
        by_gpu[sample.uuid].append(sample)
    if not by_gpu:
        return ()
    begin = min(sample.at for sample in samples)
    slots = max(1, most // len(by_gpu))
    width = (max(sample.at for sample in samples) - begin) / slots or 1.0
    kept: list[GpuSample] = []
    for found in by_gpu.values():
        fullest: dict[int, GpuSample] = {}
        for sample in found:
            slot = min(slots - 1, int((sample.at - begin) / width))
            if slot not in fullest or sample.used_bytes > fullest[slot].used_bytes:
                fullest[slot] = sample
        kept += fullest.values()
    return tuple(sorted(kept, key=lambda sample: sample.at))


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The newest observations. `at` is when, in seconds since 1970; mappings are by step id."""

    at: float
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str | None = None
    taken: Mapping[str, str] = field(default_factory=dict)
    """Other wan-train runs or processes that hold a GPU, by its UUID: `run 20261122-141500-dog`."""
    progress: Mapping[str, Progress] = field(default_factory=dict)
    waiting: Mapping[str, str] = field(default_factory=dict)
    disk_free_bytes: int | None = None
    price_problem: str | None = None
    """Why the provider of the box reported no price."""


def write_live(run: RunDirectory, live: Live) -> None:
    write_whole(run.live, codec.to_json(live), durable=False)


def read_live(run: RunDirectory) -> Live | None:
    """The newest observations, None before the first. They are a convenience: damaged ones count as none."""
    return codec.read(run.live, Live)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round of the supervisor saw, in addition to the resulting state. Mappings are by step id."""

    views: Sequence[GpuView]
    blocked: Mapping[str, str]
    """Steps that the check of their caches holds back, and why."""
    not_launched: Mapping[str, str] = field(default_factory=dict)
    """Steps that were due and could not be launched, and why."""
    progress: Mapping[str, Progress]
    disk_free_bytes: int | None
    price_problem: str | None = None


class Observations:
    """Writes observations, on which nothing depends. A full disk is handled where the journal is written."""

    def __init__(self, run: RunDirectory, plan: Plan, clock: Clock) -> None:
        self._run = run
        self._plan = plan
        self._clock = clock
        self._history = GpuHistory(run.gpu_history)
        self._next_sample = clock.monotonic()

    def write(self, state: RunState, pool: GpuPool, seen: Round) -> None:
        now = self._clock.now()
        waiting = {
            step.id: seen.not_launched.get(step.id)
            or why_waiting(self._plan, state, step, seen.views, now, blocked=seen.blocked)
            for step in self._plan.steps
            if state.jobs[step.id].state in {JobState.WAITING, JobState.BACKOFF}
        }
        live = Live(
            at=now,
            gpus=pool.gpus,
            gpu_problem=pool.problem,
            taken={gpu.uuid: gpu.taken_by for gpu in seen.views if gpu.taken_by is not None},
            progress=seen.progress,
            waiting=waiting,
            disk_free_bytes=seen.disk_free_bytes,
            price_problem=seen.price_problem,
        )
        with suppress(OSError):
            write_live(self._run, live)
        if self._clock.monotonic() >= self._next_sample and (samples := self._samples(state, pool, now)):
            self._next_sample = self._clock.monotonic() + EVERY_SECONDS
            with suppress(OSError):
                self._history.append(samples)

    def _samples(self, state: RunState, pool: GpuPool, now: float) -> tuple[GpuSample, ...]:
        """Return samples of the GPUs that run this run's steps. CPU slots have no measurements."""
        if self._plan.devices is Devices.CPU_SLOTS:
            return ()
        found = []
        for gpu in pool.gpus:
            steps = tuple(step for step, job in state.jobs.items() if job.occupies_gpu == gpu.uuid)
            if steps:
                found.append(
                    GpuSample(
                        at=round(now, 3),
                        uuid=gpu.uuid,
                        label=gpu_label(gpu, self._plan.devices),
                        name=gpu.name,
                        used_bytes=gpu.used_bytes,
                        total_bytes=gpu.total_bytes,
                        utilization=gpu.utilization,
                        temperature=gpu.temperature,
                        power_watts=gpu.power_watts,
                        steps=steps,
                        driver=pool.driver,
                    )
                )
        return tuple(found)

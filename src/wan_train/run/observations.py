"""What a supervisor sees, written for those who watch: `live.json` every round, `gpus.jsonl` every ten seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from wan_train.base.clock import Clock
from wan_train.run.directory import RunDirectory
from wan_train.run.gpu_history import EVERY_SECONDS, GpuHistory, GpuSample
from wan_train.run.gpu_pool import GpuDesk, gpu_label
from wan_train.run.live import Live, write_live
from wan_train.run.plan import Devices, Plan
from wan_train.run.progress import Progress
from wan_train.run.scheduler import GpuView, why_waiting
from wan_train.run.state import JobState, RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round of the supervisor saw, beside the state that it led to. Mappings are by step id."""

    views: Sequence[GpuView]
    held: Mapping[str, str]
    """Steps that the look at their caches keeps back, and why."""
    blocked: Mapping[str, str] = field(default_factory=dict)
    """Steps that were due and could not be launched, and why."""
    progress: Mapping[str, Progress]
    disk_free_bytes: int | None


class Observations:
    """Writes; decides nothing, and nothing depends on it. A full disk is dealt with where the journal is written."""

    def __init__(self, run: RunDirectory, plan: Plan, clock: Clock) -> None:
        self._run = run
        self._plan = plan
        self._clock = clock
        self._history = GpuHistory(run.gpu_history)
        self._next_sample = clock.monotonic()

    def write(self, state: RunState, desk: GpuDesk, seen: Round) -> None:
        now = self._clock.now()
        waiting = {
            step.id: seen.blocked.get(step.id) or why_waiting(self._plan, state, step, seen.views, now, held=seen.held)
            for step in self._plan.steps
            if state.jobs[step.id].state in {JobState.WAITING, JobState.BACKOFF}
        }
        live = Live(
            at=now,
            gpus=desk.gpus,
            gpu_problem=desk.problem,
            taken={gpu.uuid: gpu.taken_by for gpu in seen.views if gpu.taken_by is not None},
            progress=seen.progress,
            waiting=waiting,
            disk_free_bytes=seen.disk_free_bytes,
        )
        with suppress(OSError):
            write_live(self._run, live)
        if self._clock.monotonic() >= self._next_sample and (samples := self._samples(state, desk, now)):
            self._next_sample = self._clock.monotonic() + EVERY_SECONDS
            with suppress(OSError):
                self._history.append(samples)

    def _samples(self, state: RunState, desk: GpuDesk, now: float) -> tuple[GpuSample, ...]:
        """The GPUs that steps of this run are on. CPU slots measure nothing."""
        if self._plan.devices is Devices.CPU_SLOTS:
            return ()
        found = []
        for gpu in desk.gpus:
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
                        driver=desk.driver,
                    )
                )
        return tuple(found)

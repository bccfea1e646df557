"""A small world for the scheduler: GPUs that come and go, trainers that end as they like, people who stop runs."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass, field, replace
from typing import assert_never

from support.runs import OUT_OF_MEMORY, SUPERVISOR, T0, make_plan
from wan_train.base.errors import ExitCode
from wan_train.engine.failures import Cause
from wan_train.run.events import (
    Event,
    Exited,
    RetryScheduled,
    RunFinished,
    Signaled,
    StateSaved,
    StepExited,
    StepFailed,
    StepSkipped,
    StepStarted,
    StepStopped,
    StepStopping,
    StepSucceeded,
    StopMode,
    StopRequested,
    SupervisorStarted,
)
from wan_train.run.plan import Plan, StepKind
from wan_train.run.scheduler import Action, Claim, Finish, GiveUp, GpuView, Launch, Release, Stop, decide
from wan_train.run.state import JobState, RunState, fold, initial

QUIET_TICKS = 2


@dataclass(slots=True, kw_only=True)
class WorldGpu:
    """One GPU as it really is."""

    uuid: str
    present: bool = True
    used_by_stranger: bool = False
    leased_by_other: bool = False
    older_run_waits: bool = False
    claimed: bool = False
    quiet: int = 0
    dirty: int = 0
    """Ticks until the memory of the last trainer is back."""


@dataclass(slots=True, kw_only=True)
class Process:
    """A running attempt."""

    gpu: str | None
    left: int
    succeeds: bool
    stopping: bool = False
    exited: bool = False


@dataclass(slots=True, kw_only=True)
class World:
    """Plays one run; `check` is called with what must hold at every launch."""

    plan: Plan = field(default_factory=make_plan)
    gpus: list[WorldGpu] = field(default_factory=lambda: [WorldGpu(uuid="GPU-0"), WorldGpu(uuid="GPU-1")])
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    failing: frozenset[str] = frozenset()
    flaky: dict[str, Cause] = field(default_factory=dict)
    """Steps whose first attempt fails for this cause and is tried again."""
    longest: int = 5
    state: RunState = field(default_factory=RunState)
    events: list[Event] = field(default_factory=list)
    running: dict[str, Process] = field(default_factory=dict)
    ticks: int = 0
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self.state = initial(self.plan)
        self.append(SupervisorStarted(at=T0, identity=SUPERVISOR))

    @property
    def now(self) -> float:
        return T0 + self.ticks

    def append(self, event: Event) -> None:
        self.events.append(event)
        self.state = fold(self.state, event)

    def stop(self, mode: StopMode = StopMode.NOW, number: int = signal.SIGINT) -> None:
        self.append(StopRequested(at=self.now, mode=mode, signal=number))

    def gpu(self, uuid: str | None) -> WorldGpu:
        return next(gpu for gpu in self.gpus if gpu.uuid == uuid)

    def stir(self) -> None:
        """Somebody else comes or goes, a GPU falls off the bus or returns."""
        gpu = self.chance.choice(self.gpus) if self.gpus else None
        if gpu is None:
            return
        match self.chance.randrange(8):
            case 0:
                gpu.present = not gpu.present
            case 1 | 2:
                gpu.used_by_stranger = not gpu.used_by_stranger
            case 3 if not gpu.claimed:
                gpu.leased_by_other = not gpu.leased_by_other
            case 4:
                gpu.older_run_waits = not gpu.older_run_waits
            case _:
                pass

    def calm(self) -> None:
        """From now on everybody else is gone."""
        for gpu in self.gpus:
            gpu.present, gpu.used_by_stranger, gpu.leased_by_other, gpu.older_run_waits = True, False, False, False

    def tick(self) -> list[Action]:
        self.ticks += 1
        self._exits()
        self._save_states()
        for gpu in self.gpus:
            gpu.dirty = max(0, gpu.dirty - 1)
            gpu.quiet = gpu.quiet + 1 if self._is_quiet(gpu) else 0
        actions = list(decide(self.plan, self.state, self.views(), self.now))
        for action in actions:
            self._perform(action)
        self.most_at_once = max(self.most_at_once, sum(not process.exited for process in self.running.values()))
        self._judge()
        return actions

    def play(self, limit: int = 500) -> None:
        """Until the run is over; an AssertionError when that takes too long."""
        for _ in range(limit):
            if self.state.is_over:
                return
            self.tick()
        waiting = {step: job.state.value for step, job in self.state.jobs.items()}
        raise AssertionError(f"not over after {limit} ticks: {waiting}")

    def views(self) -> list[GpuView]:
        return [self._view(gpu) for gpu in self.gpus if gpu.present]

    @property
    def exit_code(self) -> ExitCode:
        assert self.state.finished is not None
        return ExitCode(self.state.finished.exit_code)

    def started(self) -> list[tuple[str, str | None]]:
        """Every launch in order: step and GPU."""
        return [(event.step, event.gpu_uuid) for event in self.events if isinstance(event, StepStarted)]

    def _is_quiet(self, gpu: WorldGpu) -> bool:
        mine = any(process.gpu == gpu.uuid and not process.exited for process in self.running.values())
        return gpu.present and not (mine or gpu.used_by_stranger or gpu.dirty)

    def _view(self, gpu: WorldGpu) -> GpuView:
        busy = None if self._is_quiet(gpu) else f"{gpu.uuid}: 20.0 of 32.0 GB in use"
        if gpu.leased_by_other and not gpu.claimed and busy is None:
            busy = f"{gpu.uuid} is in use by run other"
        return GpuView(
            uuid=gpu.uuid,
            label=gpu.uuid,
            claimed=gpu.claimed,
            free=busy is None and gpu.quiet >= QUIET_TICKS,
            first_in_line=gpu.claimed or not gpu.older_run_waits,
            busy_because=busy,
        )

    def _exits(self) -> None:
        for step, process in self.running.items():
            process.left -= 1
            if process.left <= 0 and not process.exited:
                process.exited = True
                if process.gpu is not None:
                    self.gpu(process.gpu).dirty = self.chance.randrange(3)
                ended = Signaled(signal=15) if process.stopping else Exited(code=0 if process.succeeds else 1)
                number = len(self.state.jobs[step].attempts)
                self.append(StepExited(at=self.now, step=step, attempt=number, exit=ended))

    def _save_states(self) -> None:
        for step, process in self.running.items():
            if self.plan.step(step).kind is StepKind.TRAIN and not process.exited and self.chance.random() < 0.5:
                number = len(self.state.jobs[step].attempts)
                self.append(StateSaved(at=self.now, step=step, attempt=number, path="/state", epoch=1))

    def _judge(self) -> None:
        for step, process in list(self.running.items()):
            if not process.exited:
                continue
            del self.running[step]
            number = len(self.state.jobs[step].attempts)
            if process.stopping:
                self.append(StepStopped(at=self.now, step=step))
            elif step in self.flaky and number == 1:
                self.append(
                    RetryScheduled(
                        at=self.now,
                        step=step,
                        attempt=number,
                        diagnosis=replace(OUT_OF_MEMORY, cause=self.flaky[step]),
                        not_before=self.now + self.chance.randint(0, 8),
                        why="it failed",
                    )
                )
            elif process.succeeds:
                self.append(StepSucceeded(at=self.now, step=step, attempt=number, loss=0.1))
            else:
                self.append(StepFailed(at=self.now, step=step, attempt=number, diagnosis=OUT_OF_MEMORY))

    def _perform(self, action: Action) -> None:
        match action:
            case Claim(gpu_uuid=uuid):
                gpu = self.gpu(uuid)
                assert not gpu.claimed, f"{uuid} is claimed twice"
                if not gpu.leased_by_other:
                    gpu.claimed, gpu.quiet = True, 0
            case Release(gpu_uuid=uuid):
                users = [step for step, process in self.running.items() if process.gpu == uuid and not process.exited]
                assert not users, f"{uuid} is given back while {users} runs on it"
                self.gpu(uuid).claimed = False
            case Launch(step=step, gpu_uuid=uuid):
                self._launch(step, uuid)
            case Stop(step=step):
                process = self.running[step]
                assert not process.exited
                assert not process.stopping, f"{step} is stopped twice"
                process.stopping, process.left = True, self.chance.randint(1, 3)
                number = len(self.state.jobs[step].attempts)
                self.append(StepStopping(at=self.now, step=step, attempt=number))
            case GiveUp(step=step, because=because):
                assert step not in self.running
                if because is None:
                    self.append(StepStopped(at=self.now, step=step))
                else:
                    self.append(StepSkipped(at=self.now, step=step, reason=because))
            case Finish(exit_code=code):
                assert not self.running
                kept = [gpu.uuid for gpu in self.gpus if gpu.claimed and gpu.present]
                assert not kept, f"the run ends with leases on {kept}"
                self.append(RunFinished(at=self.now, exit_code=code))
            case _:
                assert_never(action)

    def _launch(self, step_id: str, uuid: str | None) -> None:
        step = self.plan.step(step_id)
        assert self.state.stop is None, f"{step_id} is launched after a stop was asked for"
        assert step_id not in self.running, f"{step_id} runs already"
        assert all(self.state.jobs[need].state is JobState.SUCCEEDED for need in step.needs)
        if uuid is not None:
            gpu = self.gpu(uuid)
            assert gpu.claimed, f"{step_id} is launched on {uuid}, which is not claimed"
            assert gpu.quiet >= QUIET_TICKS, f"{step_id} is launched on {uuid}, which is in use"
            users = [other for other, process in self.running.items() if process.gpu == uuid and not process.exited]
            assert not users, f"{step_id} is launched on {uuid} beside {users}"
        job = self.state.jobs[step_id]
        assert job.not_before is None or self.now >= job.not_before, f"{step_id} is tried again too early"
        if self.state.one_at_a_time and step.kind is StepKind.TRAIN:
            others = [other for other in self.running if self.plan.step(other).kind is StepKind.TRAIN]
            assert all(self.running[other].exited for other in others), f"{step_id} is launched beside {others}"
        number = len(job.attempts) + 1
        self.running[step_id] = Process(
            gpu=uuid, left=self.chance.randint(1, self.longest), succeeds=step_id not in self.failing
        )
        self.append(
            StepStarted(
                at=self.now,
                step=step_id,
                attempt=number,
                gpu_uuid=uuid,
                gpu_label=uuid,
                identity=replace(SUPERVISOR, pid=1000 + self.ticks),
            )
        )


def world(gpus: int, **changes: object) -> World:
    """A world with that many GPUs."""
    return World(gpus=[WorldGpu(uuid=f"GPU-{index}") for index in range(gpus)], **changes)  # type: ignore[arg-type]  # names checked at each call

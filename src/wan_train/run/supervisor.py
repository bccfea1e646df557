"""The supervisor of one run: observe, append, fold, decide, perform; until nothing is left to do."""

from __future__ import annotations

import errno
import shutil
import time
from dataclasses import dataclass, field
from typing import assert_never

from wan_train.engine import outputs
from wan_train.errors import ExitCode
from wan_train.gpu.leases import LeaseRoom
from wan_train.gpu.model import GpuProbe
from wan_train.run import commands, verdict
from wan_train.run.clock import Clock
from wan_train.run.directory import AttemptDirectory, RunDirectory
from wan_train.run.events import (
    CheckpointKept,
    EpochEnded,
    Event,
    ResultPlaced,
    RunFinished,
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
from wan_train.run.gpu_desk import GpuDesk
from wan_train.run.identity import myself
from wan_train.run.journal import Journal, read_events
from wan_train.run.launcher import Launcher
from wan_train.run.live import Live, write_live
from wan_train.run.plan import Plan, Step, StepKind
from wan_train.run.progress import LogFollower, ProgressTracker
from wan_train.run.scheduler import (
    Action,
    Claim,
    Finish,
    GiveUp,
    GpuView,
    Launch,
    Release,
    Stop,
    decide,
    ready,
    why_waiting,
)
from wan_train.run.state import Attempt, JobState, fold, fold_all
from wan_train.run.stopping import read_stop_request

_DISK_RETRY_SECONDS = 5.0


@dataclass(slots=True)
class _Watch:
    """What is being read of one running attempt."""

    follower: LogFollower
    tracker: ProgressTracker = field(default_factory=ProgressTracker)


class Supervisor:
    """Carries one plan out. Everything it learns is in the journal, so another one can take over at any moment."""

    def __init__(
        self,
        *,
        run: RunDirectory,
        plan: Plan,
        clock: Clock,
        launcher: Launcher,
        probe: GpuProbe,
        room: LeaseRoom,
        poll_seconds: float,
        settle_seconds: float,
    ) -> None:
        self._run = run
        self._plan = plan
        self._clock = clock
        self._launcher = launcher
        self._desk = GpuDesk(plan, probe, room, clock)
        self._poll_seconds = poll_seconds
        self._settle_seconds = settle_seconds
        self._journal = Journal(run.events)
        self._state = fold_all(plan, read_events(run.events))
        self._watches: dict[str, _Watch] = {}
        self._views: tuple[GpuView, ...] = ()
        self._signal: int | None = None
        self._warnings: tuple[str, ...] = ()

    def stop_now(self, number: int) -> None:
        """Called from a signal handler: the run is to stop at once."""
        self._signal = number

    def begin(self) -> None:
        self._append(SupervisorStarted(at=self._clock.now(), identity=myself()))

    def tick(self) -> float | None:
        """One round; returns the seconds until the next is due, None when the run is over."""
        self._take_requests()
        self._see_exits()
        self._follow_logs()
        now = self._clock.now()
        wanting = bool(ready(self._plan, self._state, now))
        self._views = self._desk.look(wanting=wanting)
        actions = decide(self._plan, self._state, self._views, now)
        for action in actions:
            self._perform(action)
        judged = self._judge_exited()
        self._write_live()
        if self._state.is_over:
            return None
        if judged or any(isinstance(action, Claim | Launch | GiveUp) for action in actions):
            return 0.0 if judged else self._settle_seconds
        # A step that waits for a GPU that is about to be free must not lose time to a long look away.
        settling = wanting and any(view.claimed or view.busy_because is None for view in self._views)
        return self._settle_seconds if settling else self._poll_seconds

    def close(self) -> None:
        self._desk.close()
        self._journal.close()

    @property
    def exit_code(self) -> ExitCode | None:
        return ExitCode(self._state.finished.exit_code) if self._state.finished is not None else None

    def _append(self, event: Event) -> None:
        """Record, then believe. A full disk stops everything but the trainers until there is room again."""
        while True:
            try:
                self._journal.append(event)
                break
            except OSError as error:
                if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                    raise
                print(f"the disk of {self._run.path} is full: waiting for space", flush=True)  # noqa: T201  stdout is supervisor.log here
                time.sleep(_DISK_RETRY_SECONDS)
        self._state = fold(self._state, event)

    def _take_requests(self) -> None:
        if self._signal is not None:
            number, self._signal = self._signal, None
            self._append(StopRequested(at=self._clock.now(), mode=StopMode.NOW, signal=number))
        request = read_stop_request(self._run)
        known = self._state.stop
        if request is not None and (known is None or (request.mode is StopMode.NOW and known.mode is not StopMode.NOW)):
            self._append(StopRequested(at=self._clock.now(), mode=request.mode, signal=request.signal))

    def _see_exits(self) -> None:
        for step, attempt in self._running():
            ended = self._launcher.ended(attempt.identity, self._directory(step, attempt))
            if ended is not None:
                self._append(StepExited(at=ended.at, step=step.id, attempt=attempt.number, exit=ended.exit))

    def _follow_logs(self) -> None:
        for step, attempt in self._running():
            watch = self._watch(step, attempt)
            watch.tracker.add(watch.follower.new_records(), self._clock.monotonic())
            self._record_epochs(step, attempt, watch)

    def _record_epochs(self, step: Step, attempt: Attempt, watch: _Watch) -> None:
        for epoch, loss in watch.tracker.take_finished_epochs():
            self._append(EpochEnded(at=self._clock.now(), step=step.id, attempt=attempt.number, epoch=epoch, loss=loss))
            # The trainer starts the next epoch only after LoRA, state and removals of the last one are written.
            self._record_files(step, attempt, epoch)

    def _record_files(self, step: Step, attempt: Attempt, epoch: int) -> None:
        directory = self._directory(step, attempt)
        state = outputs.state_dir(directory.output, step.produces or "", epoch)
        if outputs.is_complete_state(state):
            self._append(
                StateSaved(at=self._clock.now(), step=step.id, attempt=attempt.number, path=str(state), epoch=epoch)
            )
        keep = self._plan.keep_every_epochs
        if keep is not None and epoch % keep == 0 and epoch < self._plan.epochs:
            kept = verdict.keep_checkpoint(self._run, step, directory, epoch)
            if kept is not None:
                self._append(CheckpointKept(at=self._clock.now(), step=step.id, path=str(kept), epoch=epoch))

    def _judge_exited(self) -> bool:
        """Settle the attempts whose processes are gone. After deciding, so that a free GPU is not kept waiting."""
        judged = False
        for step in self._plan.steps:
            job = self._state.jobs[step.id]
            attempt = job.attempt
            if not job.state.has_process or attempt is None or attempt.exit is None:
                continue
            judged = True
            directory = self._directory(step, attempt)
            watch = self._watch(step, attempt)
            watch.tracker.add(watch.follower.new_records(), self._clock.monotonic())
            watch.tracker.add(watch.follower.parser.finish(), self._clock.monotonic())
            self._record_epochs(step, attempt, watch)
            diagnosis = verdict.judge(self._plan, step, directory, attempt.exit)
            now = self._clock.now()
            if diagnosis is None:
                self._record_success(step, attempt, directory, watch)
            elif job.state is JobState.STOPPING:
                self._append(StepStopped(at=now, step=step.id))
            else:
                self._append(StepFailed(at=now, step=step.id, attempt=attempt.number, diagnosis=diagnosis))
        return judged

    def _record_success(self, step: Step, attempt: Attempt, directory: AttemptDirectory, watch: _Watch) -> None:
        now = self._clock.now()
        loss = watch.tracker.progress.loss
        if step.kind is StepKind.TRAIN:
            epoch = watch.tracker.progress.epoch
            if epoch is not None:
                self._append(EpochEnded(at=now, step=step.id, attempt=attempt.number, epoch=epoch, loss=loss))
            placed = verdict.place_result(self._run, step, directory)
            self._append(
                ResultPlaced(at=now, step=step.id, path=str(placed.path), bytes=placed.bytes, sha256=placed.sha256)
            )
        self._append(StepSucceeded(at=now, step=step.id, attempt=attempt.number, loss=loss))

    def _perform(self, action: Action) -> None:
        match action:
            case Claim(gpu_uuid=uuid):
                self._desk.claim(uuid)
            case Release(gpu_uuid=uuid):
                self._desk.release(uuid)
            case Launch(step=step, gpu_uuid=uuid):
                self._launch(self._plan.step(step), uuid)
            case Stop(step=step):
                attempt = self._state.jobs[step].attempt
                assert attempt is not None, "only running steps are stopped"  # noqa: S101  an invariant of decide
                self._append(StepStopping(at=self._clock.now(), step=step, attempt=attempt.number))
                self._launcher.terminate(attempt.identity)
            case GiveUp(step=step, because=because):
                now = self._clock.now()
                if because is None:
                    self._append(StepStopped(at=now, step=step))
                else:
                    self._append(StepSkipped(at=now, step=step, reason=because))
            case Finish(exit_code=code):
                self._append(RunFinished(at=self._clock.now(), exit_code=code))
            case _:
                assert_never(action)

    def _launch(self, step: Step, gpu_uuid: str | None) -> None:
        number = len(self._state.jobs[step.id].attempts) + 1
        directory = self._free_directory(step, number)
        number = int(directory.path.name)
        command = commands.on_device(commands.for_attempt(self._plan, step.id, number), self._plan.devices, gpu_uuid)
        identity = self._launcher.start(command, directory, self._desk.inherit(gpu_uuid, step.id))
        self._watches[step.id] = _Watch(LogFollower(directory.log))
        self._append(
            StepStarted(
                at=self._clock.now(),
                step=step.id,
                attempt=number,
                gpu_uuid=gpu_uuid,
                gpu_label=self._desk.label(gpu_uuid),
                identity=identity,
            )
        )

    def _free_directory(self, step: Step, number: int) -> AttemptDirectory:
        """The next attempt directory that nobody has used: one may exist whose launch was never recorded."""
        directory = self._run.attempt(step.id, number)
        while directory.path.exists():
            number += 1
            directory = self._run.attempt(step.id, number)
        return directory

    def _running(self) -> list[tuple[Step, Attempt]]:
        return [
            (step, attempt)
            for step in self._plan.steps
            if (job := self._state.jobs[step.id]).state.has_process
            and (attempt := job.attempt) is not None
            and attempt.exit is None
        ]

    def _watch(self, step: Step, attempt: Attempt) -> _Watch:
        if step.id not in self._watches:
            self._watches[step.id] = _Watch(LogFollower(self._directory(step, attempt).log))
        return self._watches[step.id]

    def _directory(self, step: Step, attempt: Attempt) -> AttemptDirectory:
        return self._run.attempt(step.id, attempt.number)

    def _write_live(self) -> None:
        now = self._clock.now()
        waiting = {
            step.id: why_waiting(self._state, step, self._views, now)
            for step in self._plan.steps
            if self._state.jobs[step.id].state in {JobState.WAITING, JobState.BACKOFF}
        }
        try:
            write_live(
                self._run,
                Live(
                    at=now,
                    gpus=self._desk.gpus,
                    gpu_problem=self._desk.problem,
                    progress={step: watch.tracker.progress for step, watch in self._watches.items()},
                    waiting=waiting,
                    disk_free_bytes=shutil.disk_usage(self._run.path).free,
                    warnings=self._warnings,
                ),
            )
        except OSError:
            # Nothing depends on it: the view shows its age. A full disk is dealt with where the journal is written.
            return

"""The supervisor of one run: observe, append, fold, decide and perform until nothing is left to do."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import assert_never

from wan_train import __version__
from wan_train.base.clock import Clock
from wan_train.base.errors import ExitCode
from wan_train.base.host import myself, oom_kills
from wan_train.base.settings import Settings
from wan_train.engine.failures import Cause, Diagnosis
from wan_train.gpu.leases import LeaseRoom
from wan_train.gpu.model import GpuProbe
from wan_train.recipe.model import changed
from wan_train.run import attempt_events, attempts, step_commands
from wan_train.run.attempt_events import Case, cache_manager, event_of
from wan_train.run.attempt_watch import AttemptWatch, gpu_lost, other_steps, speed_of, write_stall_report
from wan_train.run.budget import over_budget, paid_seconds
from wan_train.run.control import StopRequest, clear_stop_request, is_news, read_stop_request
from wan_train.run.directory import AttemptDirectory, RunDirectory
from wan_train.run.disk import DiskWatch
from wan_train.run.events import (
    BudgetSet,
    DiskLow,
    Event,
    Journal,
    RunFinished,
    RunResumed,
    StepExited,
    StepSkipped,
    StepStarted,
    StepStopped,
    StepStopping,
    StopMode,
    StopRequested,
    SupervisorStarted,
    read_events,
)
from wan_train.run.gpu_pool import GpuPool
from wan_train.run.launcher import Launcher, hide_secrets
from wan_train.run.live import Observations, Round, read_live
from wan_train.run.movement import MovementMeter
from wan_train.run.plan import Plan, Step, StepKind
from wan_train.run.price_watch import PriceWatch
from wan_train.run.readahead import ReadAhead
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
)
from wan_train.run.speeds import expected, key_of, read_speeds, remember
from wan_train.run.state import Attempt, Job, JobState, fold, fold_all, running

_DISK_RETRY_SECONDS = 5.0


class Supervisor:
    """Carries out one plan. Everything it learns is in the journal, so another one can take over at any moment."""

    def __init__(
        self,
        *,
        run: RunDirectory,
        plan: Plan,
        clock: Clock,
        launcher: Launcher,
        probe: GpuProbe,
        room: LeaseRoom,
        settings: Settings,
        visible: str | None = None,
    ) -> None:
        """`visible` is the value of CUDA_VISIBLE_DEVICES."""
        self._run = run
        self._plan = plan
        self._clock = clock
        self._launcher = launcher
        self._caching = cache_manager(run, plan, clock, room.directory)
        self._read_ahead = ReadAhead(plan)
        self._movement = MovementMeter(run, plan, clock.now)
        self._settings = settings
        self._journal = Journal(run.events)
        self._state = fold_all(plan, read_events(run.events))
        chosen, named = self._state.gpu_uuids, self._state.gpus_named
        self._pool = GpuPool(plan, probe, room, clock, chosen=chosen, named=named, visible=visible)
        self._watches: dict[str, AttemptWatch] = {}
        self._views: tuple[GpuView, ...] = ()
        self._signal: int | None = None
        self._not_launched: dict[str, str] = {}
        """By step, why a launch that the scheduler decided was not possible, as text."""
        self._disk = DiskWatch(run, plan)
        self._prices = PriceWatch(run.run_id, room, settings, clock, os.environ)
        self._observations = Observations(run, plan, clock)

    def stop_now(self, number: int) -> None:
        """Request an immediate stop. Called from a signal handler."""
        self._signal = number

    def begin(
        self,
        *,
        resume: bool = False,
        epochs: int | None = None,
        ends: Mapping[str, int] | None = None,
        gpus: tuple[str, ...] | None = None,
        budget: float | None = None,
    ) -> None:
        """Take over the run. `resume` resumes a run that is over, `epochs` gives it a larger total.

        `ends` are new epochs after which trainings end, by step; `gpus` are UUIDs that replace those it used;
        `budget` is what it may cost in total, in dollars.
        """
        idle_since = self._last_sign()
        if resume:
            clear_stop_request(self._run)
            total = self._state.total_epochs(self._plan)
            longer = epochs if epochs is not None and epochs > total else None
            self._append(RunResumed(at=self._clock.now(), epochs=longer, ends=ends or {}))
        if gpus is not None:
            self._append(self._pool.choose(gpus))
        if budget is not None:
            self._append(BudgetSet(at=self._clock.now(), dollars=budget))
        self._finish_what_was_begun()
        # Append this last: it shows the starter that everything before it is done.
        now = self._clock.now()
        self._append(SupervisorStarted(at=now, identity=myself(), version=__version__, idle_since=idle_since))

    def _last_sign(self) -> float | None:
        """Return when a run whose supervisor died last showed life; None if unknown, or if a trainer is alive."""
        live = read_live(self._run) if not self._state.is_over else None
        if live is None or any(attempt.identity.is_alive() for _, attempt in running(self._plan, self._state)):
            return None
        begun = running(self._plan, self._state)
        logs = [self._directory(step, attempt).log for step, attempt in begun]
        return max([live.at, *(log.stat().st_mtime for log in logs if log.exists())])

    def _finish_what_was_begun(self) -> None:
        """Finish what a killed supervisor left half done."""
        for step, attempt in running(self._plan, self._state):
            if self._state.jobs[step.id].state is JobState.STOPPING:
                self._launcher.terminate(attempt.identity)
        for directory in attempts.unrecorded(self._run, self._state):
            self._launcher.abandon(directory)

    def tick(self) -> float | None:
        """Do one round; return the seconds until the next is due, None when the run is over."""
        self._take_requests()
        self._see_exits()
        self._follow_attempts()
        self._append_all(self._movement.take())
        self._read_ahead.look(self._state, {step: watch.tracker.progress for step, watch in self._watches.items()})
        self._look_at_disk()
        self._look_at_money()
        now = self._clock.now()
        self._look_at_caches(now)
        blocked = self._caching.blocked
        wanting = any(step.id not in blocked for step in ready(self._plan, self._state, now))
        self._views = self._pool.look(wanting=wanting)
        if (moved := self._pool.take_moved()) is not None:
            self._append(moved)
        actions = decide(self._plan, self._state, self._views, now, blocked)
        for action in actions:
            self._perform(action)
        judged = self._judge_exited()
        self._observations.write(self._state, self._pool, self._round())
        if self._state.is_over:
            return None
        if judged:
            return 0.0
        # Look again soon if a GPU is about to become free, so that a waiting step loses no time.
        settling = wanting and any(view.claimed or view.busy_because is None for view in self._views)
        acted = any(isinstance(action, Claim | Launch | GiveUp) for action in actions)
        soon = settling or acted or self._caching.is_looking
        return self._settings.settle_seconds if soon else self._settings.poll_seconds

    def _round(self) -> Round:
        return Round(
            views=self._views,
            blocked=self._caching.blocked,
            not_launched=self._not_launched,
            progress={step: watch.tracker.progress for step, watch in self._watches.items()},
            disk_free_bytes=self._disk.free,
            price_problem=self._prices.problem,
        )

    def _look_at_caches(self, now: float) -> None:
        """Check caches until nothing changes: valid caches let a training be checked in the same round."""
        under_way = [step.id for step, _ in running(self._plan, self._state)]
        before = None
        while before is not self._state:
            before = self._state
            due = [step.id for step in ready(self._plan, self._state, now)]
            for finding in self._caching.look(due, under_way):
                self._append(event_of(finding, self._clock.now()))

    def close(self) -> None:
        self._read_ahead.stop()
        self._caching.close()
        self._prices.close()
        self._pool.close()
        self._journal.close()

    @property
    def exit_code(self) -> ExitCode | None:
        return ExitCode(self._state.finished.exit_code) if self._state.finished is not None else None

    def _append(self, event: Event) -> None:
        """Record, then change the state. A full disk blocks everything but the trainers until there is space."""
        while True:
            try:
                self._journal.append(event)
                break
            except OSError as error:
                self._wait_for_space(error)
        self._state = fold(self._state, event)

    def _wait_for_space(self, error: OSError) -> None:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise error
        with suppress(OSError):  # this log is on the same disk
            print(f"the disk of {self._run.path} is full: waiting for space", flush=True)  # noqa: T201  stdout is supervisor.log
        time.sleep(_DISK_RETRY_SECONDS)

    def _append_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self._append(event)

    def _take_requests(self) -> None:
        number, self._signal = self._signal, None
        asked = StopRequest(mode=StopMode.NOW, signal=number) if number is not None else None
        for request in (asked, read_stop_request(self._run)):
            if request is not None and is_news(request, self._state.stop):
                self._append(StopRequested(at=self._clock.now(), mode=request.mode, signal=request.signal))

    def _see_exits(self) -> None:
        for step, attempt in running(self._plan, self._state):
            directory = self._directory(step, attempt)
            ended = self._launcher.ended(attempt.identity, directory)
            if ended is not None:
                self._hide_secrets(directory.log)
                self._append(StepExited(at=ended.at, step=step.id, attempt=attempt.number, exit=ended.exit))

    def _hide_secrets(self, log: Path) -> None:
        """Wait if a full disk keeps secrets in the log; report other errors, as no result may be lost for them."""
        while True:
            try:
                hide_secrets(log)
                break
            except OSError as error:
                if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                    print(f"cannot hide the secrets in {log}: {error.strerror}", flush=True)  # noqa: T201  stdout is supervisor.log
                    break
                self._wait_for_space(error)

    def _follow_attempts(self) -> None:
        for step, attempt in running(self._plan, self._state):
            watch = self._watch(step, attempt)
            watch.read_log(self._clock.monotonic())
            self._append_all(attempt_events.progress_events(self._case(step, watch), attempt))
            now = self._state.jobs[step.id].attempt
            assert now is not None, "it was just seen"
            if now.last_state is not None and now.last_state is not attempt.last_state:
                self._after_state(step, now, watch)
            if self._state.jobs[step.id].state is JobState.RUNNING:
                self._look_after(step, now, watch)

    def _look_after(self, step: Step, attempt: Attempt, watch: AttemptWatch) -> None:
        """End an attempt that is complete or that cannot succeed."""
        lost = {gpu.uuid: gpu.reason for gpu in self._pool.lost if gpu.uuid is not None}
        complete = watch.is_complete(attempt)
        if complete and not watch.awaits_samples(attempt):
            self._end(step, attempt, complete=True)
            return
        trouble = watch.trouble(self._clock.monotonic(), self._settings.stall_seconds)
        if trouble is None and attempt.saves_elsewhere:
            trouble = other_steps(attempt)
        if trouble is None and attempt.gpu_uuid in lost:
            trouble = gpu_lost(lost[attempt.gpu_uuid])
        if trouble is not None and complete:
            self._end(step, attempt, complete=True)
        elif trouble is not None:
            if trouble.cause is Cause.NO_PROGRESS:
                write_stall_report(watch.directory)
            self._end(step, attempt, diagnosis=trouble)

    def _case(self, step: Step, watch: AttemptWatch) -> Case:
        return Case(run=self._run, plan=self._plan, step=step, watch=watch, now=self._clock.now())

    def _after_state(self, step: Step, attempt: Attempt, watch: AttemptWatch) -> None:
        """After a new state, remove old ones, and end the attempt if its checkpoint has non-finite numbers."""
        assert attempt.last_state is not None, "just recorded"
        self._movement.look(step, self._state.jobs[step.id])
        attempts.remove_old_states(self._run, self._plan, step, self._state.jobs[step.id])
        attempts.remove_old_checkpoints(self._run, self._plan, step, self._state.jobs[step.id])
        trouble = watch.checkpoint_trouble(attempt.last_state.epoch - attempt.epochs_before)
        if trouble is not None and self._state.jobs[step.id].state is JobState.RUNNING:
            self._end(step, attempt, diagnosis=trouble)

    def _end(self, step: Step, attempt: Attempt, *, diagnosis: Diagnosis | None = None, complete: bool = False) -> None:
        self._append(
            StepStopping(
                at=self._clock.now(), step=step.id, attempt=attempt.number, diagnosis=diagnosis, complete=complete
            )
        )
        self._launcher.terminate(attempt.identity)

    def _judge_exited(self) -> bool:
        """Judge ended attempts, after `decide` so that a free GPU does not wait. Return whether there were any."""
        settled = False
        for step in self._plan.steps:
            job = self._state.jobs[step.id]
            attempt = job.attempt
            if not job.state.has_process or attempt is None or attempt.exit is None:
                continue
            settled = True
            watch = self._watch(step, attempt)
            watch.read_log(self._clock.monotonic(), to_the_end=True)
            self._append_all(attempt_events.progress_events(self._case(step, watch), attempt))
            pause = self._settings.pause_seconds
            case, judge = self._case(step, watch), self._caching.conclude
            self._append_all(attempt_events.judge_attempt(case, self._state, pause_seconds=pause, caches=judge))
            self._after_attempt(step, watch)
        return settled

    def _after_attempt(self, step: Step, watch: AttemptWatch) -> None:
        if step.kind is not StepKind.TRAIN:
            self._caching.over(step.id)
        job = self._state.jobs[step.id]
        measured = speed_of(self._plan, self._state, job, watch, card=self._card(job), at=self._clock.now())
        if measured is not None:
            remember(self._run.path.parent, measured)
        if job.state is JobState.SUCCEEDED and step.kind is StepKind.TRAIN:
            self._movement.look(step, job)
            # The last state stays, so that a finished training can be extended.
            attempts.remove_old_states(self._run, self._plan, step, job, keep=1)
            attempts.remove_old_checkpoints(self._run, self._plan, step, job)

    def _perform(self, action: Action) -> None:
        match action:
            case Claim(gpu_uuid=uuid):
                self._pool.claim(uuid)
            case Release(gpu_uuid=uuid):
                self._pool.release(uuid)
            case Launch(step=step, gpu_uuid=uuid):
                self._launch(self._plan.step(step), uuid)
            case Stop(step=step):
                attempt = self._state.jobs[step].attempt
                assert attempt is not None, "only running steps are stopped"
                self._end(self._plan.step(step), attempt)
            case GiveUp(step=step, because=because):
                now = self._clock.now()
                if because is None:
                    self._append(StepStopped(at=now, step=step))
                else:
                    self._append(StepSkipped(at=now, step=step, reason=because))
            case Finish(exit_code=code):
                self._append_all(self._movement.take(wait=True))
                self._append(RunFinished(at=self._clock.now(), exit_code=code))
            case _:
                assert_never(action)

    def _launch(self, step: Step, gpu_uuid: str) -> None:
        """Start the next attempt. Caching needs the same lock that was held when its need was found."""
        if step.kind is StepKind.TRAIN:
            self._start(step, gpu_uuid, self._caching.lock.inherit())
            return
        if not self._caching.may_launch(step.id):
            self._not_launched[step.id] = "checking the dataset and its caches"
            return
        self._not_launched.pop(step.id, None)
        try:
            cleared = self._caching.clear(step.id)
        except OSError as error:
            self._wait_for_space(error)
            return
        if cleared is not None:
            self._append(event_of(cleared, self._clock.now()))
        self._start(step, gpu_uuid, self._caching.lock.inherit())

    def _start(self, step: Step, gpu_uuid: str, locks: Sequence[int]) -> None:
        inherit = (*self._pool.inherit(gpu_uuid, step.id), *locks)
        directory = self._run.free_attempt(step.id, len(self._state.jobs[step.id].attempts) + 1)
        following = attempts.next_attempt(
            self._run,
            self._plan,
            self._state,
            step,
            int(directory.path.name),
            seconds_per_step=self._seconds_per_step(step, gpu_uuid),
            paid_seconds=paid_seconds(self._state, self._clock.now()),
        )
        spec = following.spec
        command = step_commands.on_device(
            step_commands.command_of(self._plan, step, spec), self._plan.devices, gpu_uuid
        )
        kills = oom_kills()
        try:
            identity = self._launcher.start(command, directory, inherit)
        except OSError as error:
            shutil.rmtree(directory.path, ignore_errors=True)
            self._wait_for_space(error)
            return
        self._watches.pop(step.id, None)
        self._append(
            StepStarted(
                at=self._clock.now(),
                step=step.id,
                attempt=spec.number,
                gpu_uuid=gpu_uuid,
                gpu_label=self._pool.label(gpu_uuid),
                identity=identity,
                resumed_from=str(spec.resume_from) if spec.resume_from is not None else None,
                epochs_before=following.epochs_before,
                total_epochs=spec.total_epochs if step.kind is StepKind.TRAIN else None,
                schedule_epochs=spec.schedule_epochs if step.kind is StepKind.TRAIN else None,
                saves_at_step=spec.stop_at_step,
                changes=spec.changes,
                oom_kills=kills,
                state_every_epochs=spec.state_every_epochs if step.kind is StepKind.TRAIN else None,
            )
        )

    def _seconds_per_step(self, step: Step, gpu_uuid: str) -> float:
        plan = self._plan
        if step.expert is None:
            return 0.0
        changed_training = changed(plan.training(step.expert), self._state.jobs[step.id].changes)
        key = key_of(plan.trainer, step.kind, changed_training, card=self._pool.name(gpu_uuid) or "", at_once=1)
        found = expected(read_speeds(self._run.path.parent), key, cost=plan.batch_cost or 0.0, units=1)
        batch = found.per_unit if found is not None and found.per_unit else plan.trainer.traits.seconds_per_step
        return batch * plan.batches_of_step(step.expert)

    def _card(self, job: Job) -> str | None:
        """Return the name of the card that its last attempt ran on."""
        uuid = job.attempt.gpu_uuid if job.attempt is not None else None
        return self._pool.name(uuid) if uuid is not None else None

    def _watch(self, step: Step, attempt: Attempt) -> AttemptWatch:
        if step.id not in self._watches:
            self._watches[step.id] = AttemptWatch.of(self._plan, step, self._directory(step, attempt), attempt)
        return self._watches[step.id]

    def _directory(self, step: Step, attempt: Attempt) -> AttemptDirectory:
        return self._run.attempt(step.id, attempt.number)

    def _look_at_disk(self) -> None:
        """Request a stop after the next states if the ones after them would not fit on the disk."""
        training = [step for step, _ in running(self._plan, self._state) if step.kind is StepKind.TRAIN]
        short = self._disk.look(len(training), self._clock.monotonic())
        if short is not None and not self._state.is_stopping:
            self._append(DiskLow(at=self._clock.now(), free=short.free, needed=short.needed))

    def _look_at_money(self) -> None:
        """Record a new price, and request a stop before the budget is exceeded."""
        if (price := self._prices.look(self._state.meter)) is not None:
            self._append(price)
        trackers = {step: watch.tracker for step, watch in self._watches.items()}
        stopping = self._settings.term_grace_seconds + 2 * self._settings.poll_seconds
        now = self._clock.now()
        reached = over_budget(self._plan, self._state, trackers, now=now, stopping=stopping)
        if reached is not None:
            self._append(reached)

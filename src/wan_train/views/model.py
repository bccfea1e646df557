"""The records of one run, read together: the input of every view.

Reads the plan, the journal, live.json, the curves, supervisor.log, picked.json, the duties, the upload records and
the time in report.json. Of logs it reads the last lines and when they were last written. It also reads the free disk
space, the box's environment variables and the record of the box's end. Only previews and reports read more files.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from wan_train.base.clock import SystemClock, is_later, moment
from wan_train.base.codec import CorruptRecordError
from wan_train.base.errors import WanTrainError
from wan_train.base.text import redact, visible
from wan_train.box.rental import Shell, shell_of
from wan_train.engine.log_parser import last_words
from wan_train.run.box_ending import Ending, Phase, ending_of_this_box, read_keep_request, seconds_left
from wan_train.run.curves import Curve, CurveReader
from wan_train.run.directory import RunDirectory, report_of_end
from wan_train.run.duties import Duties, is_registered, read_duties
from wan_train.run.events import (
    BudgetReached,
    CachesCleared,
    CachesDisturbed,
    CheckpointKept,
    DiskLow,
    EpochEnded,
    Event,
    GpusChosen,
    JournalReader,
    Lost,
    ResultPlaced,
    RetryScheduled,
    RunResumed,
    StateUnusable,
    StepFailed,
    StepRefused,
    StepStarted,
    StepStopping,
    StopRequested,
    SupervisorStarted,
    TrainingBegan,
)
from wan_train.run.launcher import marked_processes
from wan_train.run.live import Live, read_live
from wan_train.run.picks import Pick, read_picks
from wan_train.run.plan import Plan
from wan_train.run.progress import read_tail
from wan_train.run.state import Attempt, Job, JobState, RunState, fold, initial
from wan_train.upload.status import TargetStatus, of_run
from wan_train.views.losses import Losses, losses_of

TAIL_LINES = 8
"""Log lines shown of a failed step: a Python error with its last frames."""
_MOST_RECENT = 8
"""Number of kept recent events; a view shows as many as fit."""
_CURVES_SECONDS = 1.0
_CURVES_SHARE = 0.005
"""The largest share of a core that reading curves may take."""
_NEWS = (
    RetryScheduled
    | StepFailed
    | StepRefused
    | CachesDisturbed
    | CheckpointKept
    | ResultPlaced
    | DiskLow
    | BudgetReached
    | StopRequested
    | RunResumed
    | GpusChosen
    | StateUnusable
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The speed of a training on this box: seconds to the first step, and mean seconds per step of an attempt.

    `per_step` is None before the first whole epoch.
    """

    to_load: float
    per_step: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One run at one moment. `tails` maps the IDs of failed steps to their last log lines, safe to print."""

    run: RunDirectory
    plan: Plan
    state: RunState
    live: Live | None
    supervisor_alive: bool
    """Also true before the first supervisor starts."""
    tails: Mapping[str, tuple[str, ...]]
    disk_free: int | None = None
    """Bytes free where the run is; None when unknown."""
    supervisor_said: str | None = None
    """The last line that a dead supervisor printed, safe to print. A supervisor normally prints nothing."""
    losses: Mapping[str, Losses] = field(default_factory=dict)
    """By step ID, for trainings that have made a step; empty unless the reader reads `curves`."""
    paces: Mapping[str, Pace] = field(default_factory=dict)
    """By step ID, for trainings that have made a step."""
    recent: tuple[Event, ...] = ()
    """The last events worth showing, oldest first."""
    last_signs: Mapping[tuple[str, int], float] = field(default_factory=dict)
    """When the files of attempts without a process were last written, by step ID and attempt."""
    report: Path | None = None
    """The HTML report made after the run ended."""
    picks: tuple[Pick, ...] = ()
    """Epochs that a person chose, newest last; empty when the record is unreadable."""
    uploads: tuple[TargetStatus, ...] = ()
    """The status of each upload target; empty when the records are unreadable."""
    shell: Shell | None = None
    """The SSH address of this box; None when its provider does not say."""
    duties: Duties | None = None
    """Work beside and after the training; None when there is none, or the record is unreadable."""
    ending: Ending | None = None
    """The end of the box, once decided. A cancelled end is here only if it was for this run."""
    ending_seconds: float = 0.0
    """Seconds left in the countdown."""
    awaits_ending: bool = False
    """Whether the guardian still has duties of this run to do."""
    orphans: frozenset[str] = frozenset()
    """The IDs of steps whose program still runs although the supervisor died."""

    @property
    def has_supervisor(self) -> bool:
        """Whether a supervisor is running."""
        return self.state.supervisor is not None and self.supervisor_alive


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuNow:
    """A GPU before a run begins. Memory in bytes; `busy_because` is None when it is free."""

    label: str
    name: str
    used_bytes: int
    total_bytes: int
    busy_because: str | None = None


def view_of(run: RunDirectory, *, curves: bool = False, lease_dir: Path | None = None) -> RunView:
    """Read a run once; see `RunReader`."""
    return RunReader(run, curves=curves, lease_dir=lease_dir).refresh()[0]


class RunReader:
    """Reads a run repeatedly: the plan once, then only new journal entries.

    Raises what RunDirectory.read_plan raises, and CorruptRecordError for a damaged journal.
    """

    def __init__(self, run: RunDirectory, *, curves: bool = False, lease_dir: Path | None = None) -> None:
        """`curves`: also read the loss of every step, which takes a moment for a long training.

        `lease_dir`: where the record of the box's end is.
        """
        self._lease_dir = lease_dir
        self._run = run
        self._plan = run.read_plan()
        self._history = History()
        self._losses = _LossReader(run, self._plan) if curves else None
        self._state = initial(self._plan)
        self._journal = JournalReader(run.events)
        self._tails: dict[str, tuple[str, ...]] = {}
        self._last_signs: dict[tuple[str, int], float] = {}

    def refresh(self) -> tuple[RunView, list[Event]]:
        """The run now, and the events since the last call."""
        # Check the supervisor before reading the journal: one found dead has already written its last event.
        alive = self._state.supervisor is None or self._state.supervisor.is_alive()
        events = list(self._journal.new_events())
        before = self._state.supervisor
        for event in events:
            self._state = fold(self._state, event)
            self._history.add(event)
        if self._state.supervisor is not None and self._state.supervisor != before:
            alive = self._state.supervisor.is_alive()
        self._read_tails()
        finished = self._state.finished
        duties = _duties(self._run)
        ending = self._ending(duties)
        view = RunView(
            run=self._run,
            plan=self._plan,
            state=self._state if self._is_where_it_was_made else _here(self._state, self._plan, self._run),
            live=read_live(self._run),
            supervisor_alive=alive,
            tails=dict(self._tails),
            disk_free=_disk_free(self._run),
            supervisor_said=_last_line(self._run) if not alive else None,
            losses=self._losses.refresh(self._state) if self._losses is not None else {},
            paces=dict(self._history.paces),
            recent=tuple(self._history.recent),
            last_signs=self._signs(supervisor_alive=alive),
            report=report_of_end(self._run, finished) if finished is not None else None,
            picks=_picks(self._run),
            uploads=self._uploads(),
            shell=shell_of(os.environ),
            duties=duties,
            ending=ending,
            ending_seconds=seconds_left(ending, moment(SystemClock())) if ending is not None else 0.0,
            awaits_ending=self._lease_dir is not None and is_registered(self._lease_dir, self._run),
            orphans=frozenset() if alive else self._orphans(),
        )
        return view, events

    def _orphans(self) -> frozenset[str]:
        return frozenset(
            job.step
            for job in self._state.jobs.values()
            if job.state.has_process and job.attempt is not None and self._runs(job.step, job.attempt)
        )

    def _runs(self, step: str, attempt: Attempt) -> bool:
        """Whether a process of an attempt lives. Its warden may be gone, and its trainer not."""
        if attempt.identity.is_alive():
            return True
        try:
            return bool(marked_processes(self._run.attempt(step, attempt.number)))
        except OSError:  # no /proc: the run came home from another computer
            return False

    @property
    def _is_where_it_was_made(self) -> bool:
        return self._plan.run_dir == self._run.path

    def _ending(self, duties: Duties | None) -> Ending | None:
        ending = ending_of_this_box(self._lease_dir) if self._lease_dir is not None else None
        if ending is None or self._lease_dir is None:
            return None
        if ending.phase in {Phase.COUNTDOWN, Phase.ENDING}:
            kept_by = read_keep_request(self._lease_dir, ending)  # the guardian acts on it in its next round
            return ending if kept_by is None else replace(ending, phase=Phase.CANCELLED, cancelled_by=kept_by)
        if duties is not None and is_later(duties.began, ending.decided):
            return None  # this ending is older than the run
        return ending if ending.phase is Phase.ASKED or self._run.run_id in ending.runs else None

    def _uploads(self) -> tuple[TargetStatus, ...]:
        try:
            return of_run(self._run, self._plan, self._state)
        except (OSError, WanTrainError):
            return ()

    def _read_tails(self) -> None:
        for job in self._state.jobs.values():
            attempt = job.attempt
            if job.state is JobState.FAILED and attempt is not None and job.step not in self._tails:
                self._tails[job.step] = _log_end(self._run.attempt(job.step, attempt.number).log, TAIL_LINES)

    def _signs(self, *, supervisor_alive: bool) -> Mapping[tuple[str, int], float]:
        """Return when each attempt without a process last wrote. An ended attempt is read only once."""
        running: dict[tuple[str, int], float] = {}
        for job in self._state.jobs.values():
            for attempt in job.attempts:
                key = job.step, attempt.number
                if key in self._last_signs or (attempt.ended is None and supervisor_alive):
                    continue
                at = self._last_sign(job, attempt)
                if at is not None:
                    (running if attempt.ended is None else self._last_signs)[key] = at
        return {**self._last_signs, **running}

    def _last_sign(self, job: Job, attempt: Attempt) -> float | None:
        files = self._run.attempt(job.step, attempt.number)
        for path in (files.exit, files.log) if isinstance(attempt.exit, Lost) else (files.exit,):
            try:
                return path.stat().st_mtime
            except OSError:
                continue
        return None


def _here(state: RunState, plan: Plan, run: RunDirectory) -> RunState:
    """Return the state with paths on this machine. Records of a run copied from elsewhere have the old paths."""

    def moved(text: str) -> str:
        path = Path(text)
        return str(run.path / path.relative_to(plan.run_dir)) if path.is_relative_to(plan.run_dir) else text

    def of(job: Job) -> Job:
        result = replace(job.result, path=moved(job.result.path)) if job.result is not None else None
        return replace(job, result=result, kept=tuple(map(moved, job.kept)))

    return replace(state, jobs={name: of(job) for name, job in state.jobs.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEnd:
    """The newest lines of a step's log, safe to print."""

    step: str
    path: Path
    lines: tuple[str, ...]


def read_logs(view: RunView, height: int) -> tuple[LogEnd, ...]:
    """Return at most `height` log lines of each running step, or of the step started last if none runs."""
    begun = [(job, job.attempt) for job in view.state.jobs.values() if job.attempt is not None]
    running = [(job, attempt) for job, attempt in begun if job.state.has_process]
    shown = running or sorted(begun, key=lambda pair: pair[1].started)[-1:]
    paths = {job.step: view.run.attempt(job.step, attempt.number).log for job, attempt in shown}
    return tuple(LogEnd(step=step, path=path, lines=_log_end(path, max(1, height))) for step, path in paths.items())


def _log_end(log: Path, count: int) -> tuple[str, ...]:
    return tuple(visible(redact(text)) for text in last_words(read_tail(log), count))


def _last_line(run: RunDirectory) -> str | None:
    return next(iter(_log_end(run.supervisor_log, 1)), None)


def _picks(run: RunDirectory) -> tuple[Pick, ...]:
    try:
        return read_picks(run)
    except (OSError, CorruptRecordError):
        return ()


def _duties(run: RunDirectory) -> Duties | None:
    try:
        return read_duties(run)
    except (OSError, CorruptRecordError):
        return None


def _disk_free(run: RunDirectory) -> int | None:
    try:
        return shutil.disk_usage(run.path).free
    except OSError:
        return None


class _LossReader:
    """Reads the curves of a run rarely enough that a long training costs no more than a short one."""

    def __init__(self, run: RunDirectory, plan: Plan) -> None:
        self._curves = CurveReader(run, plan)
        self._losses: Mapping[str, Losses] = {}
        self._due = 0.0
        self._was_over = False

    def refresh(self, state: RunState) -> Mapping[str, Losses]:
        begun = time.monotonic()
        if begun < self._due and state.is_over == self._was_over:
            return self._losses
        self._was_over = state.is_over
        losses = {step: _losses_of(curve, state.jobs[step]) for step, curve in self._curves.refresh(state).items()}
        self._losses = {step: found for step, found in losses.items() if found is not None}
        now = time.monotonic()
        self._due = now + max(_CURVES_SECONDS, (now - begun) / _CURVES_SHARE)
        return self._losses


def _losses_of(curve: Curve, job: Job) -> Losses | None:
    attempt = job.attempt
    return losses_of(curve, (attempt.steps_per_epoch if attempt is not None else None) or 1)


@dataclass(slots=True)
class History:
    """Facts from the journal that the run's state does not keep: speeds and recent events, oldest first."""

    recent: deque[Event] = field(default_factory=lambda: deque(maxlen=_MOST_RECENT))
    paces: dict[str, Pace] = field(default_factory=dict)
    """By step ID, from the newest attempt that has one."""
    _clocks: dict[str, _AttemptClock] = field(default_factory=dict)
    _has_supervisor: bool = False

    def add(self, event: Event) -> None:
        if self._is_news(event):
            self.recent.append(event)
        match event:
            case SupervisorStarted():
                self._has_supervisor = True
            case StepStarted(total_epochs=int(total)):
                epochs = event.schedule_epochs or total
                self._clocks[event.step] = _AttemptClock(started=event.at, epoch=event.epochs_before, epochs=epochs)
            case TrainingBegan() if event.step in self._clocks:
                to_load = self._clocks[event.step].begin(event)
                before = self.paces.get(event.step)
                self.paces[event.step] = Pace(to_load=to_load, per_step=before.per_step if before else None)
            case EpochEnded() if event.step in self.paces:
                per_step = self._clocks[event.step].per_step(event)
                if per_step is not None:
                    self.paces[event.step] = replace(self.paces[event.step], per_step=per_step)
            case _:
                pass

    def _is_news(self, event: Event) -> bool:
        """Whether the live view lists it; a step's own lines already show the other events."""
        match event:
            case SupervisorStarted():
                return self._has_supervisor
            case StepStarted():
                return event.attempt > 1
            case StepStopping():
                return event.diagnosis is not None
            case CachesCleared():
                return event.keep > 0 or bool(event.removed)
            case _:
                return isinstance(event, _NEWS)


@dataclass(slots=True, kw_only=True)
class _AttemptClock:
    """Times the epochs of one attempt from `since` on. `epoch` counts over all attempts."""

    started: float
    epoch: int
    epochs: int
    since: float = 0.0
    steps_per_epoch: int = 0

    def begin(self, event: TrainingBegan) -> float:
        """Record the first step and return the seconds until it."""
        self.since = event.at
        self.steps_per_epoch = event.steps // max(1, self.epochs)
        return max(0.0, event.at - self.started)

    def per_step(self, event: EpochEnded) -> float | None:
        if event.at <= self.since:
            # A supervisor that took over reports earlier epochs all at once, without their times.
            self.epoch = max(self.epoch, event.epoch)
        steps = (event.epoch - self.epoch) * self.steps_per_epoch
        return (event.at - self.since) / steps if steps > 0 and event.at > self.since else None

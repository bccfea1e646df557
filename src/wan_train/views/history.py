"""What the journal tells over time and the state of a run does not keep: speeds of attempts, and what happened last."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from wan_train.run.events import (
    CachesCleared,
    CachesDisturbed,
    CachesUpToDate,
    CheckpointKept,
    DiskLow,
    EpochEnded,
    Event,
    GpusChosen,
    ResultPlaced,
    RetryScheduled,
    RunFinished,
    RunResumed,
    StateSaved,
    StateUnusable,
    StepExited,
    StepFailed,
    StepRefused,
    StepSkipped,
    StepStarted,
    StepStopped,
    StepStopping,
    StepSucceeded,
    StopRequested,
    SupervisorStarted,
    TrainingBegan,
)

_MOST_RECENT = 8
"""A view shows as many as it has room for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a training goes on this box: seconds until the first step, and for each step over a whole attempt.

    `per_step` is None until an epoch was seen from its beginning to its end.
    """

    to_load: float
    per_step: float | None = None


@dataclass(slots=True)
class History:
    """Folds events, oldest first."""

    recent: deque[Event] = field(default_factory=lambda: deque(maxlen=_MOST_RECENT))
    paces: dict[str, Pace] = field(default_factory=dict)
    """By step id, of the newest attempt that tells."""
    _clocks: dict[str, _AttemptClock] = field(default_factory=dict)
    _has_supervisor: bool = False

    def add(self, event: Event) -> None:
        if self._is_news(event):
            self.recent.append(event)
        match event:
            case SupervisorStarted():
                self._has_supervisor = True
            case StepStarted(total_epochs=int(epochs)):
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
        """Whether a person watching would want to be told, beyond what the steps themselves show."""
        match event:
            case SupervisorStarted():
                return self._has_supervisor
            case StepStarted():
                return event.attempt > 1
            case StepStopping():
                return event.diagnosis is not None
            case CachesCleared():
                return event.keep > 0 or bool(event.removed)
            case (
                RetryScheduled()
                | StepFailed()
                | StepRefused()
                | CachesDisturbed()
                | CheckpointKept()
                | ResultPlaced()
                | DiskLow()
                | StopRequested()
                | RunResumed()
                | GpusChosen()
                | StateUnusable()
            ):
                return True
            case (
                CachesUpToDate()
                | EpochEnded()
                | RunFinished()
                | StateSaved()
                | StepExited()
                | StepSkipped()
                | StepStopped()
                | StepSucceeded()
                | TrainingBegan()
            ):
                return False


@dataclass(slots=True, kw_only=True)
class _AttemptClock:
    """From when on an attempt's epochs can be timed. `epoch` counts over all attempts."""

    started: float
    epoch: int
    epochs: int
    since: float = 0.0
    steps_per_epoch: int = 0

    def begin(self, event: TrainingBegan) -> float:
        """Note the first step; the seconds it took to get there."""
        self.since = event.at
        self.steps_per_epoch = event.steps // max(1, self.epochs)
        return max(0.0, event.at - self.started)

    def per_step(self, event: EpochEnded) -> float | None:
        if event.at <= self.since:
            # A supervisor that took over tells at once of all that happened before: when, nobody saw.
            self.epoch = max(self.epoch, event.epoch)
        steps = (event.epoch - self.epoch) * self.steps_per_epoch
        return (event.at - self.since) / steps if steps > 0 and event.at > self.since else None

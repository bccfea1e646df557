"""The progress of a running attempt, from its log: position, recent speed, ETA."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from wan_train.engine.log_parser import (
    MAKING_SAMPLES,
    CacheProgress,
    CheckpointBegun,
    EpochStarted,
    Items,
    OutputParser,
    Record,
    Stage,
    StateBegun,
    StepRecord,
    TotalSteps,
)

_Other = EpochStarted | TotalSteps | CheckpointBegun | StateBegun | Items | CacheProgress | Stage
"""Every record but a step."""

_WINDOW_SECONDS = 120.0
_WINDOW_LOOKS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of an attempt. `seconds_per_step` is recent, not the whole run's; `eta_seconds` follows from it.

    The attempt ends after `epochs` and `steps`, counted over all attempts.

    `loss` is the trainer's own moving average, None while unknown or not finite (`loss_is_finite` says which).
    """

    stage: str | None = None
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    loss_is_finite: bool = True
    seconds_per_step: float | None = None
    eta_seconds: float | None = None
    items: int | None = None
    cached: int | None = None


@dataclass(slots=True)
class ProgressTracker:
    """Folds records of one attempt into its progress. `now` is the reader's monotonic time in seconds.

    The trainer counts every attempt from zero, so the `epochs_before` of earlier attempts are added here.
    """

    epochs_before: int = 0
    sample_every: int = 0
    """Epochs of this attempt between its samples, 0 for none."""
    ends_after: int | None = None
    """The epoch, counted over all attempts, after which it is ended; None if its trainer ends by itself."""
    schedule_epochs: int | None = None
    """The trainer's own total of epochs, as it last announced or as it was told."""
    announced_steps: int | None = None
    """The trainer's own total of steps, for all epochs of the schedule."""
    local_step: int | None = None
    """The newest step, by the trainer's own count."""
    newest_epoch: int | None = None
    """The last epoch that began, counted over all attempts. The trainer may run past the end until it is stopped."""
    progress: Progress = field(default_factory=Progress)
    finished_epochs: list[tuple[int, float | None]] = field(default_factory=list)
    """Epochs that ended since the last `take_finished_epochs`, counted over all attempts, with their last loss."""
    had_finite_loss: bool = False
    """Whether any loss on the bar was a finite number."""
    _seen: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_WINDOW_LOOKS))
    """The time and newest step of each look."""
    _pause_since: float | None = None
    _pause: float | None = None
    """How long the last samples paused the training, in seconds."""

    def add(self, records: Iterator[Record], now: float) -> None:
        # Only the newest step of a look counts, with the newest loss seen: not every bar shows a loss.
        newest: StepRecord | None = None
        loss: float | None = None
        for record in records:
            if isinstance(record, StepRecord):
                newest = record
                loss = loss if record.loss is None else record.loss
                self.had_finite_loss = self.had_finite_loss or (record.loss is not None and math.isfinite(record.loss))
                continue
            if newest is not None:
                self._step(newest, loss, now)
                newest, loss = None, None
            self._add(record, now)
        if newest is not None:
            self._step(newest, loss, now)

    @property
    def pause_seconds(self) -> float | None:
        """How long the last samples paused the training, in seconds; None before the first."""
        return self._pause

    def take_finished_epochs(self) -> list[tuple[int, float | None]]:
        taken, self.finished_epochs = self.finished_epochs, []
        return taken

    def _add(self, record: _Other, now: float) -> None:
        p = self.progress
        match record:
            case EpochStarted(epoch=epoch, epochs=epochs):
                counted = self.epochs_before + epoch
                if self.newest_epoch is not None and counted > self.newest_epoch:
                    self.finished_epochs.append((self.newest_epoch, p.loss))
                self._end_pause(now)
                self.newest_epoch, self.schedule_epochs = counted, epochs
                ends = epochs if self.ends_after is None else min(epochs, self.ends_after)
                shown = counted if self.ends_after is None else min(counted, ends)
                stage = None if p.stage == MAKING_SAMPLES else p.stage
                self.progress = _with(p, epoch=shown, epochs=ends, stage=stage)
            case TotalSteps(steps=steps):
                self.announced_steps = steps
                self.progress = _with(p, steps=self._until_end(steps))
            case Items(count=count):
                self.progress = _with(p, items=count)
            case CacheProgress(done=done):
                self.progress = _with(p, cached=done, stage=None)
            case Stage(words=words):
                if words == MAKING_SAMPLES:
                    # Their time belongs to no step: the speed from before holds until there are two new looks.
                    self._seen.clear()
                    self._pause_since = now
                self.progress = _with(p, stage=words)
            case CheckpointBegun() | StateBegun():
                pass

    def _step(self, record: StepRecord, loss: float | None, now: float) -> None:
        self._end_pause(now)
        p = self.progress
        self.local_step = record.step
        if record.step > 0:
            if self._seen and self._seen[-1][0] == now:
                self._seen.pop()
            self._seen.append((now, record.step))
            while len(self._seen) > 2 and now - self._seen[0][0] > _WINDOW_SECONDS:  # two points make a rate
                self._seen.popleft()
        speed = self._speed() or p.seconds_per_step
        self.announced_steps = record.steps
        step, steps = self._steps_before(record.steps) + record.step, self._until_end(record.steps)
        if self.ends_after is not None:
            step = min(step, steps)
        finite = loss is None or math.isfinite(loss)
        self.progress = _with(
            p,
            step=step,
            steps=steps,
            stage=None if record.step else p.stage,
            loss=(loss if finite else None) if loss is not None else p.loss,
            loss_is_finite=finite if loss is not None else p.loss_is_finite,
            seconds_per_step=speed,
            eta_seconds=speed * max(0, steps - step) + self._pauses() if speed is not None else None,
        )

    def _end_pause(self, now: float) -> None:
        # A pause within one look cannot be timed: an adopted attempt's log is read again all at once.
        if self._pause_since is not None and now > self._pause_since:
            self._pause = now - self._pause_since
        self._pause_since = None

    def _pauses(self) -> float:
        """Return the seconds that samples will still take, if each round takes as long as the last one."""
        p = self.progress
        if not self.sample_every or self._pause is None or p.epoch is None or p.epochs is None:
            return 0.0
        goal, done = p.epochs - self.epochs_before, p.epoch - 1 - self.epochs_before
        return max(0, goal // self.sample_every - done // self.sample_every) * self._pause

    def _steps_before(self, steps: int) -> int:
        epochs = self.schedule_epochs
        return self.epochs_before * (steps // epochs) if epochs else 0

    def _until_end(self, steps: int) -> int:
        """Return the steps after which the attempt ends, from the trainer's total."""
        epochs = self.schedule_epochs
        return steps if self.ends_after is None or not epochs else min(epochs, self.ends_after) * (steps // epochs)

    def _speed(self) -> float | None:
        if len(self._seen) < 2:  # two points make a rate
            return None
        (first_at, first), (last_at, last) = self._seen[0], self._seen[-1]
        return (last_at - first_at) / (last - first) if last > first and last_at > first_at else None


@dataclass(slots=True)
class LogFollower:
    """Reads what was appended to a log since the last look, in bounded pieces."""

    path: Path
    parser: OutputParser = field(default_factory=OutputParser)
    _offset: int = 0

    def new_records(self) -> Iterator[Record]:
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                while chunk := file.read(262_144):
                    self._offset += len(chunk)
                    yield from self.parser.feed(chunk)
        except FileNotFoundError:
            return


def read_tail(path: Path, size: int = 65_536) -> str:
    """Return the end of a log as text, empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _with(progress: Progress, **changes: object) -> Progress:
    return replace(progress, **changes)  # type: ignore[arg-type]  # names and types are checked at each call above

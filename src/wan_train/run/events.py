"""What can happen to a run, a closed set of events, and the journal that records them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from wan_train.base import codec
from wan_train.base.files import NewLines
from wan_train.base.host import ProcessIdentity
from wan_train.box.rental import PriceSource
from wan_train.engine.failures import Diagnosis


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """The process ended by itself with this code."""

    code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Signaled:
    """The process was ended by this signal."""

    signal: int

    @property
    def name(self) -> str:
        try:
            return signal.Signals(self.signal).name
        except ValueError:
            return f"signal {self.signal}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The process is gone, and no exit was recorded."""

    reason: str


Exit = Exited | Signaled | Lost

Setting = bool | int | str
"""The value of a training setting that an attempt may change."""


class StopMode(StrEnum):
    """How soon a run is to stop."""

    AFTER_STATE = "after_state"
    NOW = "now"


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorStarted:
    """A supervisor took the run over. Times are seconds since 1970, UTC; `version` is wan-train's.

    `idle_since`: if the previous supervisor died, the last sign of life of the run before this one began.
    """

    at: float
    identity: ProcessIdentity
    version: str | None = None
    idle_since: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted:
    """An attempt at a step was launched. `identity` is the warden's, which outlives a supervisor.

    Earlier attempts trained `epochs_before`, `total_epochs` are wanted in total, and `schedule_epochs` are those of its
    schedule: more if it ends early. `changes` are training settings that differ from the plan's recipe.
    """

    at: float
    step: str
    attempt: int
    gpu_uuid: str | None
    gpu_label: str | None
    identity: ProcessIdentity
    resumed_from: str | None = None
    epochs_before: int = 0
    total_epochs: int | None = None
    schedule_epochs: int | None = None
    saves_at_step: int | None = None
    """The optimizer step, by its trainer's count, at which it saves LoRA and state outside its interval."""
    changes: Mapping[str, Setting] = field(default_factory=dict)
    oom_kills: int | None = None
    """Out-of-RAM kills in this container up to the start of the attempt."""
    state_every_epochs: int | None = None
    """The number of its epochs between two states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBegan:
    """The trainer made its first step. `steps` is the total of its schedule, including those before a resume."""

    at: float
    step: str
    attempt: int
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepExited:
    """The processes of an attempt are gone; its GPU is free again. Whether it succeeded is not yet known."""

    at: float
    step: str
    attempt: int
    exit: Exit


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSucceeded:
    """The files an attempt had to produce are there, whole and finite."""

    at: float
    step: str
    attempt: int
    loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailed:
    """An attempt did not succeed."""

    at: float
    step: str
    attempt: int
    diagnosis: Diagnosis


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStopping:
    """An attempt was told to end: by request, because its epochs are done, or because of what `diagnosis` says."""

    at: float
    step: str
    attempt: int
    diagnosis: Diagnosis | None = None
    complete: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStopped:
    """A step ended, or never started, because the run was stopped."""

    at: float
    step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSkipped:
    """A step cannot run because one it needs failed."""

    at: float
    step: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CachesUpToDate:
    """A caching step has nothing to do: all caches of its `items` items are right. No process was started for it.

    `removed` counts files that no longer belonged to any item, by reason.
    """

    at: float
    step: str
    items: int
    removed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachesCleared:
    """A caching attempt is about to start. Of `items` items, `make` lack their caches and `keep` have them.

    `made` counts the items to make, `removed` the files removed, both by reason (`caching.decide.Reason`).
    """

    at: float
    step: str
    items: int
    keep: int
    make: int
    made: Mapping[str, int] = field(default_factory=dict)
    removed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachesDisturbed:
    """Valid caches changed just before their training: caching is repeated."""

    at: float
    step: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRefused:
    """A step cannot be started, and waiting would not help."""

    at: float
    step: str
    diagnosis: Diagnosis


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryScheduled:
    """An attempt failed, and the next one is due at `not_before`, with the settings in `changes`."""

    at: float
    step: str
    attempt: int
    diagnosis: Diagnosis
    not_before: float
    why: str
    changes: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnded:
    """An epoch was completed, counted over all attempts. `loss` is the trainer's average, None when not finite."""

    at: float
    step: str
    attempt: int
    epoch: int
    loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSaved:
    """A complete state is on disk. `epoch` counts over all attempts.

    `files` are those that its trainer wrote before it continued. Later states are complete if they have them all.
    """

    at: float
    step: str
    attempt: int
    path: str
    epoch: int
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StateUnusable:
    """The trainer saved a state that cannot be resumed from; `why` says why. `epoch` counts over all attempts."""

    at: float
    step: str
    attempt: int
    path: str
    epoch: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MovementMeasured:
    """How far a LoRA moved between two states, relative to its size: 0.004 is 0.4 %.

    Epochs count over all attempts.
    """

    at: float
    step: str
    since_epoch: int
    epoch: int
    relative: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointKept:
    """An intermediate LoRA the user asked for was put beside the results."""

    at: float
    step: str
    path: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultPlaced:
    """A finished, verified LoRA has its final name."""

    at: float
    step: str
    path: str
    bytes: int
    sha256: str
    epochs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested:
    """The run was asked to stop; `signal` is INT or TERM and decides the exit code."""

    at: float
    mode: StopMode
    signal: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskLow:
    """The run stops after the next states, because the disk has no room for more. In bytes."""

    at: float
    free: int
    needed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceSet:
    """From here on, an hour of the box costs `per_hour` dollars, which `runs` runs share.

    `rental_ends` is when the rental of the box ends, None if unknown.
    """

    at: float
    per_hour: float
    source: PriceSource
    runs: int = 1
    rental_ends: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSet:
    """From here on, the run must stop before its total cost exceeds this, in dollars."""

    at: float
    dollars: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetReached:
    """The run stops because its budget pays for no further checkpoint. In dollars; `spent` is the cost so far."""

    at: float
    spent: float
    budget: float
    mode: StopMode


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResumed:
    """A finished run was resumed: failed and stopped steps are retried. `epochs` is a new, larger total.

    `ends` are the epochs, by step, at which trainings now end under unchanged schedules; empty for no change.
    """

    at: float
    epochs: int | None = None
    ends: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpusChosen:
    """From here on, the run uses these GPUs: the user named them, or the box lacks those it had."""

    at: float
    gpu_uuids: tuple[str, ...]
    labels: tuple[str, ...]
    asked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """Nothing is left to do."""

    at: float
    exit_code: int


Event = (
    SupervisorStarted
    | StepStarted
    | StepExited
    | StepSucceeded
    | StepFailed
    | StepStopping
    | StepStopped
    | StepSkipped
    | EpochEnded
    | StateSaved
    | StateUnusable
    | MovementMeasured
    | CheckpointKept
    | ResultPlaced
    | StopRequested
    | TrainingBegan
    | RetryScheduled
    | CachesUpToDate
    | CachesCleared
    | CachesDisturbed
    | StepRefused
    | DiskLow
    | PriceSet
    | BudgetSet
    | BudgetReached
    | RunResumed
    | GpusChosen
    | RunFinished
)

codec.register_union(Exit)
codec.register_union(Event)


_MEND_BYTES = 65_536


class Journal:
    """Appends events. Every append is on disk when it returns; a torn last line from a crash is cut off first."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._mend()

    def append(self, event: Event) -> None:
        line = codec.to_json(event, Event).encode() + b"\n"
        before = os.fstat(self._descriptor).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, before)  # half a line would hide the next one
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    def _mend(self) -> None:
        end = size = os.fstat(self._descriptor).st_size
        while end > 0:
            begin = max(0, end - _MEND_BYTES)
            newline = os.pread(self._descriptor, end - begin, begin).rfind(b"\n")
            end = begin if newline < 0 else begin + newline + 1
            if newline >= 0:
                break
        if end != size:
            os.ftruncate(self._descriptor, end)


class JournalReader:
    """Reads a journal from the start and later only what is new. Ignores a line that is still being written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = NewLines(path)

    def new_events(self) -> Iterator[Event]:
        for line in self._lines.read():
            yield codec.from_json(line, Event, where=str(self._path))


def read_events(path: Path) -> list[Event]:
    return list(JournalReader(path).new_events())

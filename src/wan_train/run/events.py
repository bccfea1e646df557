"""What can happen to a run: the closed set of events its journal is made of."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import StrEnum

from wan_train import codec
from wan_train.engine.failures import Diagnosis
from wan_train.run.identity import ProcessIdentity


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
    """The process is gone and nobody saw how it ended."""

    reason: str


Exit = Exited | Signaled | Lost


class StopMode(StrEnum):
    """How soon a run is to stop."""

    AFTER_STATE = "after_state"
    NOW = "now"


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorStarted:
    """A supervisor took the run over. Times are seconds since 1970, UTC."""

    at: float
    identity: ProcessIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted:
    """An attempt at a step was launched. `identity` is the warden's, which outlives a supervisor."""

    at: float
    step: str
    attempt: int
    gpu_uuid: str | None
    gpu_label: str | None
    identity: ProcessIdentity
    resumed_from: str | None = None


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
    """An attempt was told to end."""

    at: float
    step: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStopped:
    """A step ended, or never began, because somebody stopped the run."""

    at: float
    step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSkipped:
    """A step cannot run because one it needs failed."""

    at: float
    step: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnded:
    """An epoch of a training was completed. `loss` is the trainer's moving average, None when not finite."""

    at: float
    step: str
    attempt: int
    epoch: int
    loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSaved:
    """A complete state is on disk."""

    at: float
    step: str
    attempt: int
    path: str
    epoch: int | None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested:
    """Somebody asked the run to stop; `signal` is INT or TERM and decides the exit code."""

    at: float
    mode: StopMode
    signal: int


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
    | CheckpointKept
    | ResultPlaced
    | StopRequested
    | RunFinished
)

codec.register_union(Exit)
codec.register_union(Event)

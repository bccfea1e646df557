"""Draws the missing cells on one GPU, attempt by attempt. Each cell is recorded as soon as it is finished."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wan_train.base.clock import Clock
from wan_train.base.errors import InterruptionError, NotReadyError
from wan_train.base.files import size_of
from wan_train.base.host import ProcessIdentity
from wan_train.engine import generate
from wan_train.engine.failures import Cause, Diagnosis
from wan_train.engine.failures.diagnosis import diagnose
from wan_train.engine.generate import Memory, Phase
from wan_train.engine.trainer import Trainer
from wan_train.preview.estimate import Eta
from wan_train.preview.job import DrawingEvent, EventReader, device_environment, events_of, write_job
from wan_train.preview.model import Drawing, Row, drawn
from wan_train.preview.prepared import PreparedPreview
from wan_train.preview.recorder import Recorder
from wan_train.run.directory import AttemptDirectory
from wan_train.run.events import Lost, Signaled
from wan_train.run.launcher import Launcher, read_exit

_LOOK_SECONDS = 0.2
_TAIL_BYTES = 64 * 1024
_FRUITLESS = 2
"""Consecutive attempts without progress before the session gives up."""


class DrawingError(NotReadyError):
    """The drawing could not be finished; `diagnosis` says why."""

    def __init__(self, message: str, *, hint: str, diagnosis: Diagnosis) -> None:
        super().__init__(message, hint=hint)
        self.diagnosis = diagnosis


@dataclass(slots=True, kw_only=True)
class _Attempt:
    """The observed progress of one attempt."""

    directory: AttemptDirectory
    began: float
    stages: int = 0
    cells: int = 0
    phase: Phase | None = None
    """The current phase. None if unknown, as with the trainer's plain command."""
    heard: float = 0.0
    cell_seconds: float = 0.0
    eta: Eta

    @property
    def was_fruitful(self) -> bool:
        return self.stages + self.cells > 0


@dataclass(slots=True, kw_only=True)
class Session:
    """Draws a preview with one GPU. `inherit` lists descriptors of locks that stay held while its program lives."""

    recorder: Recorder
    trainer: Trainer
    memory: Memory
    device: str
    """For CUDA_VISIBLE_DEVICES."""
    env: Mapping[str, str]
    inherit: tuple[int, ...]
    launcher: Launcher
    clock: Clock
    sleep: Callable[[float], None]
    stall_seconds: float
    is_interrupted: Callable[[], bool]

    @property
    def ready(self) -> PreparedPreview:
        return self.recorder.ready

    def run(self) -> None:
        """Draw the missing cells. Raise DrawingError, InterruptionError, or OSError from the preview's own records."""
        self.recorder.adopt()
        fruitless = 0
        while left := self.recorder.left():
            attempt = self._attempt(left)
            self.recorder.adopt()
            left = self.recorder.left()
            if not left:
                break
            diagnosis = _diagnosis(attempt.directory)
            fruitless = 0 if attempt.was_fruitful else fruitless + 1
            self._prepare_next(diagnosis, attempt, fruitless=fruitless)
        # Once every cell is drawn, the latents and the logs are useless.
        if not self.recorder.flawed:
            shutil.rmtree(self.ready.directory.work, ignore_errors=True)

    def _attempt(self, left: Sequence[tuple[Row, int]]) -> _Attempt:
        directory = _free(self.ready.directory.work)
        cells = {self.ready.preview.key(row, number): (row, number) for row, number in left}
        command = write_job(
            self.ready,
            self.trainer,
            left,
            attempt=directory,
            memory=self.memory,
            env={**self.env, **device_environment(self.device)},
        )
        now = self.clock.monotonic()
        eta = Eta(preview=self.ready.preview, cells={key: number for key, (_, number) in cells.items()})
        attempt = _Attempt(directory=directory, began=now, heard=now, eta=eta)
        self.recorder.progress("starting")
        identity = self.launcher.start(command, directory, self.inherit)
        try:
            self._follow(attempt, identity, cells)
        finally:
            self._end(identity, directory)
            self.ready.directory.keep_drawing(
                Drawing(
                    at=self.clock.now(),
                    card=self.recorder.card or "",
                    seconds=self.clock.monotonic() - attempt.began,
                    cells=attempt.cells,
                    cell_seconds=attempt.cell_seconds,
                )
            )
        return attempt

    def _follow(self, attempt: _Attempt, identity: ProcessIdentity, cells: dict[str, tuple[Row, int]]) -> None:
        reader = EventReader(events_of(attempt.directory))
        size = -1
        while True:
            ended = self.launcher.ended(identity, attempt.directory) is not None
            events = reader.new()
            self._take(attempt, events, cells)
            if ended:
                return
            if self.is_interrupted():
                raise InterruptionError(
                    "interrupted; every finished picture is kept",
                    hint=f"To continue: wan-train preview {self.ready.run.run_id}"
                    + (" --fast" if self.ready.preview.is_fast else ""),
                )
            now, grown = self.clock.monotonic(), size_of(attempt.directory.log)
            if events or grown != size:
                attempt.heard, size = now, grown
            elif now - attempt.heard > self.stall_seconds:
                return
            self.sleep(_LOOK_SECONDS)

    def _take(self, attempt: _Attempt, events: Sequence[DrawingEvent], cells: dict[str, tuple[Row, int]]) -> None:
        for each in events:
            place = cells.get(each.key or "")
            attempt.eta.take(each)
            self.recorder.seconds_left = attempt.eta.left()
            match each.event:
                case "loading":
                    attempt.phase = _PHASES.get(each.what or "")
                    self.recorder.progress(_LOADING.get(each.what or "", "loading"))
                case "facts":
                    self.recorder.remember(each.negative)
                case "drawing" if place is not None:
                    attempt.phase = Phase.STEPS if each.expert is not None else None
                    doing = "pictures" if each.expert is None else f"{each.expert}-noise steps"
                    self.recorder.progress(f"{doing}, {each.number} of {each.of}")
                case "stage":
                    attempt.stages += 1
                case "decoding":
                    attempt.phase = Phase.DECODING
                case "cell" if place is not None:
                    attempt.cells += 1
                    attempt.cell_seconds += each.seconds or 0.0
                    self.recorder.keep(*place, seconds=each.seconds or 0.0)
                case _:
                    pass

    def _prepare_next(self, diagnosis: Diagnosis, attempt: _Attempt, *, fruitless: int) -> None:
        """Change the settings for the next attempt. Raise DrawingError if no attempt can help."""
        match diagnosis.cause:
            case Cause.OUT_OF_MEMORY:
                phase = attempt.phase or generate.phase_of(_tail(attempt.directory))
                memory = generate.next_memory(self.memory, phase)
                if phase is Phase.TEXT and not generate.is_known(self.trainer):
                    memory = None
                if memory is None:
                    raise self._error(diagnosis, _SMALLER[phase])
                self.memory = memory
                self.recorder.say(f"The GPU ran out of memory. Retrying: {memory.words()}.")
            case Cause.DISK_FULL:
                raise self._error(diagnosis, "Free some disk space: wan-train clean")
            case Cause.BAD_INPUT | Cause.SETTING | Cause.ENVIRONMENT | Cause.MISSING_FILE | Cause.NO_GPU:
                raise self._error(diagnosis, diagnosis.advice)
            case _ if fruitless >= _FRUITLESS:
                raise self._error(diagnosis, diagnosis.advice)
            case _:
                self.recorder.say(
                    f"The drawing was interrupted: {diagnosis.meaning}. Drawing continues with the missing pictures."
                )

    def _error(self, diagnosis: Diagnosis, advice: str) -> DrawingError:
        total = len(list(self.ready.preview.places()))
        have = len(drawn(self.ready.directory, self.ready.preview))
        log = _newest_log(self.ready.directory.work)
        return DrawingError(
            f"{total - have} of {total} pictures could not be drawn: {diagnosis.meaning}\nlog: {log}",
            hint=f"{advice}\nFinished pictures are kept. To continue, repeat the command.",
            diagnosis=diagnosis,
        )

    def _end(self, identity: ProcessIdentity, attempt: AttemptDirectory) -> None:
        self.launcher.terminate(identity)
        while self.launcher.ended(identity, attempt) is None:
            self.sleep(_LOOK_SECONDS)


_SMALLER = {
    Phase.TEXT: "The text encoder alone needs 12 GB. See what else uses the GPU: nvidia-smi",
    Phase.STEPS: "Draw smaller pictures: --size 640x384, or fewer --frames.",
    Phase.DECODING: "Draw smaller pictures: --size 640x384, or fewer --frames.",
}
_PHASES = {"text": Phase.TEXT, "high": Phase.STEPS, "low": Phase.STEPS, "decoder": Phase.DECODING}
_LOADING = {
    "libraries": "loading the trainer",
    "text": "encoding the prompts",
    "high": "loading the high-noise expert",
    "low": "loading the low-noise expert",
    "decoder": "decoding",
}


def _free(work: Path) -> AttemptDirectory:
    number = 1
    while (work / str(number)).exists():
        number += 1
    return AttemptDirectory(work / str(number))


def _diagnosis(attempt: AttemptDirectory) -> Diagnosis:
    """Return why an attempt ended early, judged by the end of its log."""
    found = diagnose(_tail(attempt))
    if found.cause is not Cause.UNKNOWN or found.evidence:
        return found
    ended = read_exit(attempt)
    killed = ended is None or isinstance(ended.exit, Signaled | Lost)
    return replace(found, meaning=f"the program that draws {'was killed' if killed else 'ended without a message'}")


def _tail(attempt: AttemptDirectory) -> str:
    try:
        with attempt.log.open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - _TAIL_BYTES))
            return log.read().decode(errors="replace")
    except OSError:
        return ""


def _newest_log(work: Path) -> Path:
    logs = sorted(work.glob("*/output.log"), key=lambda path: path.stat().st_mtime)
    return logs[-1] if logs else work

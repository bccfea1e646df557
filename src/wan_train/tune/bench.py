"""Measures one candidate with the real trainer on a leased GPU: starts it, times each step, stops it in time."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from wan_train.base.errors import InterruptionError, NotReadyError
from wan_train.base.host import ProcessIdentity
from wan_train.engine import commands
from wan_train.engine.commands import ACCELERATE_CONFIG, DEVICE_VARIABLE, TrainingJob
from wan_train.engine.failures import Cause
from wan_train.engine.failures.diagnosis import diagnose
from wan_train.engine.log_parser import EpochStarted, OutputParser, Record, StepRecord
from wan_train.gpu.free import why_busy
from wan_train.gpu.leases import Lease
from wan_train.gpu.model import Gpu, GpuProbe, GpuUnavailableError
from wan_train.recipe.levers import with_settings
from wan_train.recipe.measured import Measurement, Outcome
from wan_train.run.directory import AttemptDirectory
from wan_train.run.launcher import Launcher
from wan_train.tune.search import Candidate, is_slower

WARMUP_STEPS = 3
"""Kernels are chosen and buffers grow in the first steps."""
STEPS = 15
"""Timed steps, without those that begin an epoch."""


@dataclass(slots=True)
class Stamps:
    """When each step of one trainer was first seen, in seconds of any monotonic clock."""

    began: float
    trains_since: float | None = None
    steps: dict[int, float] = field(default_factory=dict)
    first_of_epoch: set[int] = field(default_factory=set)

    def add(self, records: Iterable[Record], now: float) -> None:
        """Add records that arrived at `now`, in order."""
        for record in records:
            match record:
                case EpochStarted():
                    self.trains_since = now if self.trains_since is None else self.trains_since
                    self.first_of_epoch.add(self.done + 1)
                case StepRecord(step=step) if step > 0:
                    self.steps.setdefault(step, now)
                case _:
                    pass

    @property
    def done(self) -> int:
        return max(self.steps, default=0)

    @property
    def load_seconds(self) -> float | None:
        """From the start of the program to the first epoch."""
        return None if self.trains_since is None else self.trains_since - self.began

    def step_seconds(self) -> tuple[float, ...]:
        """Return the times of at most `STEPS` steps after warm-up that do not begin an epoch."""
        return tuple(self._seconds(first_of_epoch=False))[:STEPS]

    @property
    def is_complete(self) -> bool:
        return len(self.step_seconds()) >= STEPS

    def warmup_seconds(self) -> float:
        """Return the extra time of the warm-up over as many later steps."""
        last, usual = self.steps.get(WARMUP_STEPS), self.step_seconds()
        if last is None or self.trains_since is None or not usual:
            return 0.0
        return max(0.0, last - self.trains_since - WARMUP_STEPS * statistics.median(usual))

    def epoch_seconds(self) -> float:
        """Return the extra time of an epoch's first step over the others."""
        first, usual = list(self._seconds(first_of_epoch=True)), self.step_seconds()
        return max(0.0, statistics.median(first) - statistics.median(usual)) if first and usual else 0.0

    def _seconds(self, *, first_of_epoch: bool) -> Iterable[float]:
        for step in sorted(self.steps):
            if step > WARMUP_STEPS and step - 1 in self.steps and (step in self.first_of_epoch) is first_of_epoch:
                yield self.steps[step] - self.steps[step - 1]


_LOOK_SECONDS = 0.01
"""The resolution of the step times."""
_SAMPLE_SECONDS = 0.2
_SETTLE_SECONDS = 30.0
"""The longest time for the driver to free a trainer's memory."""
_BOUND = 3 * (STEPS + WARMUP_STEPS)
"""Steps after which a trainer ends by itself if its parent died."""
_TAIL_BYTES = 64 * 1024


class GpuLostError(NotReadyError):
    """The GPU fell off the bus, or another program fills it: nothing more can be measured on it now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The observations of one candidate; see `Measurement`."""

    outcome: Outcome
    stamps: Stamps
    peak_bytes: int | None
    wall_seconds: float
    note: str = ""


class Bench(Protocol):
    """Measures candidates one by one."""

    def measure(self, candidate: Candidate, leader: Measurement | None, say: Callable[[str], None]) -> Observed:
        """Train some steps with a candidate; `say` reports progress. A failed candidate is a result too.

        Raise InterruptionError on a request to stop.
        """
        ...

    def settle(self) -> None:
        """Wait until the card is empty again. Raise GpuLostError if it does not become empty."""
        ...


@dataclass(slots=True, kw_only=True)
class TrainerBench:
    """The bench that runs the real trainer. `job` is the training job of a run, without its directories.

    `stall_seconds` is the longest time without output.
    """

    job: TrainingJob
    scratch: Path
    gpu: Gpu
    lease: Lease
    launcher: Launcher
    probe: Callable[[], GpuProbe]
    stall_seconds: float
    is_interrupted: Callable[[], bool]
    _number: int = field(default=0, init=False)

    def measure(self, candidate: Candidate, leader: Measurement | None, say: Callable[[str], None]) -> Observed:
        self._number += 1
        attempt = AttemptDirectory(self.scratch / f"candidate-{self._number}")
        accelerate = self.scratch / "accelerate.yaml"
        accelerate.write_text(ACCELERATE_CONFIG, encoding="utf-8")
        training = with_settings(self.job.spec.training, candidate.settings)
        job = replace(
            self.job,
            spec=replace(self.job.spec, training=training),
            attempt_dir=attempt.path,
            accelerate_config=accelerate,
        )
        command = commands.measure(job, steps=_BOUND, env={DEVICE_VARIABLE: self.gpu.uuid})
        with _sampled(self.probe, self.gpu.uuid) as sampler:
            began = time.monotonic()
            identity = self.launcher.start(command, attempt, (self.lease.fileno(),))
            try:
                stamps, is_silent = self._watch(identity, attempt, began, leader, say)
            finally:
                self._end(identity, attempt)
        is_whole = stamps.is_complete or is_slower(stamps.step_seconds(), leader)
        outcome, note = (Outcome.MEASURED, "") if is_whole else _why_failed(attempt, is_silent=is_silent)
        if outcome is Outcome.MEASURED and not stamps.is_complete:
            outcome = Outcome.SLOWER
        return Observed(
            outcome=outcome,
            stamps=stamps,
            peak_bytes=sampler.peak,
            wall_seconds=time.monotonic() - began,
            note=note,
        )

    def settle(self) -> None:
        probe = self.probe()
        try:
            deadline = time.monotonic() + _SETTLE_SECONDS
            while (why := self._why_unusable(probe)) is not None:
                if time.monotonic() > deadline:
                    raise GpuLostError(
                        f"nothing more can be measured: {why}",
                        hint="The rows so far are kept. Run the command again when the GPU is free.",
                    )
                time.sleep(_SAMPLE_SECONDS)
        finally:
            probe.close()

    def _why_unusable(self, probe: GpuProbe) -> str | None:
        """Return why the card is not empty, or None if it is. Raise GpuLostError if the card is gone."""
        hint = (
            "The rows so far are kept, and this candidate will not be tried again. "
            "Run `nvidia-smi`. If it also fails, reboot the machine or rent another."
        )
        try:
            reading = probe.read()
        except GpuUnavailableError as error:
            raise GpuLostError(f"the GPU driver no longer responds: {error.message}", hint=hint) from error
        now = next((gpu for gpu in reading.gpus if gpu.uuid == self.gpu.uuid), None)
        if now is None:
            reasons = [lost.reason for lost in reading.lost if lost.uuid in {None, self.gpu.uuid}]
            raise GpuLostError(f"GPU {self.gpu.number} is lost: {', '.join(reasons) or 'not listed'}", hint=hint)
        return why_busy(now)

    def _watch(
        self,
        identity: ProcessIdentity,
        attempt: AttemptDirectory,
        began: float,
        leader: Measurement | None,
        say: Callable[[str], None],
    ) -> tuple[Stamps, bool]:
        """Watch until enough was timed, or the trainer ended or fell silent. The second value says it fell silent."""
        parser, stamps = OutputParser(), Stamps(began=began)
        heard = began
        with attempt.log.open("rb") as log:
            while not (stamps.is_complete or is_slower(stamps.step_seconds(), leader)):
                if self.is_interrupted():
                    raise InterruptionError("interrupted")
                chunk = log.read()
                now = time.monotonic()
                if chunk:
                    heard = now
                    stamps.add(parser.feed(chunk), now)
                    say(f"step {stamps.done}" if stamps.done else "loading")
                elif self.launcher.ended(identity, attempt) is not None:
                    # Output between the last read and the end of the trainer.
                    stamps.add((*parser.feed(log.read()), *parser.finish()), now)
                    break
                elif now - heard > self.stall_seconds:
                    return stamps, True
                time.sleep(_LOOK_SECONDS)
        return stamps, False

    def _end(self, identity: ProcessIdentity, attempt: AttemptDirectory) -> None:
        self.launcher.terminate(identity)
        while self.launcher.ended(identity, attempt) is None:
            time.sleep(_LOOK_SECONDS)


def _why_failed(attempt: AttemptDirectory, *, is_silent: bool) -> tuple[Outcome, str]:
    if is_silent:
        return Outcome.FAILED, "it stopped printing output"
    with attempt.log.open("rb") as log:
        log.seek(max(0, log.seek(0, 2) - _TAIL_BYTES))
        found = diagnose(log.read().decode(errors="replace"))
    if found.cause is Cause.OUT_OF_MEMORY:
        return Outcome.OUT_OF_MEMORY, found.meaning
    if found.cause is Cause.DISK_FULL:
        raise NotReadyError(f"the measurement needs disk space: {found.meaning}", hint=found.advice)
    return Outcome.FAILED, found.meaning


class _Sampler:
    """The peak memory use of one GPU, read by a thread with its own driver process."""

    def __init__(self, probe: GpuProbe, uuid: str) -> None:
        self.peak: int | None = None
        self._probe = probe
        self._uuid = uuid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._probe.close()

    def _read(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            try:
                used = [gpu.used_bytes for gpu in self._probe.read().gpus if gpu.uuid == self._uuid]
            except GpuUnavailableError:
                return  # `settle` reports what is wrong
            self.peak = max([*used, *([self.peak] if self.peak is not None else [])], default=None)


@contextmanager
def _sampled(probe: Callable[[], GpuProbe], uuid: str) -> Iterator[_Sampler]:
    sampler = _Sampler(probe(), uuid)
    sampler.start()
    try:
        yield sampler
    finally:
        sampler.stop()

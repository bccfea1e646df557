"""Follow one running attempt: its log, files and heartbeat; and measure its speed once it is over."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from wan_train.base.files import size_of
from wan_train.engine import checkpoints
from wan_train.engine.failures import Cause, Diagnosis
from wan_train.engine.log_parser import MAKING_SAMPLES
from wan_train.engine.sample_files import sample_files
from wan_train.engine.scalars import ScalarFollower
from wan_train.engine.tensors import BrokenFileError, first_non_finite, read_header
from wan_train.recipe.model import changed
from wan_train.run.attempts import state_files
from wan_train.run.directory import AttemptDirectory
from wan_train.run.events import CachesCleared
from wan_train.run.launcher import marked_processes
from wan_train.run.plan import CACHING_STEPS, Plan, Step, StepKind
from wan_train.run.progress import LogFollower, ProgressTracker
from wan_train.run.samples import sample_every
from wan_train.run.speeds import Speed, key_of
from wan_train.run.state import Attempt, Job, JobState, RunState

_FEWEST = 20
"""The fewest steps for a usable speed: the first ones warm up."""
_SHORTEST_SECONDS = 2.0
"""The shortest time for a usable speed, as looks are a second apart."""
_MOSTLY = 0.5
"""A program that overlapped more than this fraction of an attempt counts as running beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds per step or item, of everything else but pauses (`beside`), and of the part after the last step."""

    units: int
    per_unit: float
    beside: float
    after: float = 0.0


@dataclass(slots=True)
class Stopwatch:
    """Times a growing count; `now` is monotonic seconds. `paused` is the seconds of all `pauses`."""

    paused: float = 0.0
    pauses: int = 0
    _first: tuple[float, int] | None = None
    _last: tuple[float, int] | None = None
    _paused_before_last: tuple[float, int] = (0.0, 0)
    """Seconds and number of the pauses before the count last grew."""
    _looked: float | None = None
    _was_paused: bool = False

    def look(self, count: int | None, now: float, *, paused: bool = False) -> None:
        """Record a count. `paused`: samples are being made, so this time belongs to no step."""
        continues = self._last is not None and self._was_paused
        if continues and self._looked is not None:
            self.paused += now - self._looked
        begins = paused and self._last is not None and not continues
        self._was_paused, self._looked = paused, now
        if count and (self._last is None or count > self._last[1]):
            self._first = self._first or (now, count)
            self._last = (now, count)
            self._paused_before_last = (self.paused, self.pauses)
            begins = paused  # the pause before was over, even if no look saw it end
        self.pauses += begins

    def seconds_per_pause(self, *, only_whole: bool = False) -> float | None:
        """Return the mean pause, None if there was none. `only_whole`: leave out one after which no step followed."""
        paused, pauses = self._paused_before_last if only_whole else (self.paused, self.pauses)
        return paused / pauses if pauses else None

    def timing(self, seconds: float, *, made: int = 0) -> Timing | None:
        """Return the timing of an attempt of `seconds` that made `made` in all; None if it made nothing.

        `made` may exceed the count at the last look. When those last steps were made is unknown.
        """
        if self._first is None or self._last is None:
            return Timing(units=made, per_unit=0.0, beside=seconds) if made else None
        (begun, first), (ended, last) = self._first, self._last
        before_last, _ = self._paused_before_last
        worked, units = ended - begun - before_last, max(last, made)
        per_unit = worked / (last - first) if last - first >= _FEWEST and worked >= _SHORTEST_SECONDS else 0.0
        after = (self._looked or ended) - ended - (self.paused - before_last) - (units - last) * per_unit
        return Timing(
            units=units,
            per_unit=per_unit,
            beside=max(0.0, seconds - units * per_unit - self.paused),
            after=max(0.0, after),
        )


LOAD_STALL = 4.0
"""Loading 28 GB from a cold network disk: 20 minutes with the default base of five."""
FIRST_STEP_STALL = 6.0
"""The first step may compile for half an hour."""
STEP_STALL = 1.0
STEPS_OF_SILENCE = 20.0
"""A step hangs if it takes this many times as long as recent ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """The signs of life of an attempt at one moment.

    `activity` is a number that grows with the bytes read and the CPU time of the process tree.
    """

    step: int | None
    loading: bool
    log_bytes: int
    activity: int
    seconds_per_step: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatWatch:
    """The newest heartbeat, and when the last sign of life was seen (monotonic seconds)."""

    heartbeat: Heartbeat
    since: float


def watch(previous: HeartbeatWatch | None, heartbeat: Heartbeat, now: float) -> HeartbeatWatch:
    """Return the watch after one more heartbeat."""
    if previous is None or _lives(previous.heartbeat, heartbeat):
        return HeartbeatWatch(heartbeat=heartbeat, since=now)
    return HeartbeatWatch(heartbeat=heartbeat, since=previous.since)


def patience(heartbeat: Heartbeat, base_seconds: float) -> float:
    """Return how long an attempt in this stage may be silent, in seconds; `base_seconds` defaults to five minutes."""
    if heartbeat.step is None:
        return base_seconds * LOAD_STALL
    if heartbeat.step == 0 or heartbeat.loading:
        return base_seconds * FIRST_STEP_STALL
    return max(base_seconds * STEP_STALL, STEPS_OF_SILENCE * (heartbeat.seconds_per_step or 0.0))


def is_stalled(heartbeat_watch: HeartbeatWatch, now: float, base_seconds: float) -> bool:
    return now - heartbeat_watch.since > patience(heartbeat_watch.heartbeat, base_seconds)


def _lives(before: Heartbeat, after: Heartbeat) -> bool:
    if (after.step or 0) > 0:
        # A trainer that spins without making steps uses CPU too, so once it trains only its output counts.
        return after.step != before.step or after.log_bytes != before.log_bytes
    return after != before


NAN_STEPS = 10
"""Non-finite losses in a row that mean divergence. Single ones are normal in fp16: the gradient scaler skips them."""
_HEARTBEAT_SECONDS = 15.0


@dataclass(slots=True, kw_only=True)
class AttemptWatch:
    """Reads one attempt. For an adopted attempt, it reads the log again from the start."""

    plan: Plan
    step: Step
    directory: AttemptDirectory
    tracker: ProgressTracker
    follower: LogFollower
    scalars: ScalarFollower
    nan_steps: int = 0
    ever_finite: bool = False
    """Whether any loss was finite, in this attempt or those it resumed from."""
    heartbeat_watch: HeartbeatWatch | None = None
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    _next_heartbeat: float = field(default=0.0)

    @classmethod
    def of(cls, plan: Plan, step: Step, directory: AttemptDirectory, attempt: Attempt) -> AttemptWatch:
        return cls(
            plan=plan,
            step=step,
            directory=directory,
            tracker=ProgressTracker(
                epochs_before=attempt.epochs_before,
                sample_every=sample_every(plan, attempt),
                ends_after=attempt.total_epochs if attempt.epochs_before or attempt.ends_early else None,
                schedule_epochs=attempt.schedule_epochs,
            ),
            follower=LogFollower(directory.log),
            scalars=ScalarFollower(directory.path / "logs"),
            ever_finite=attempt.epochs_before > 0,
        )

    def read_log(self, now: float, *, to_the_end: bool = False) -> None:
        self.tracker.add(self.follower.new_records(), now)
        if to_the_end:
            self.tracker.add(self.follower.parser.finish(), now)
        else:  # after its end, the time of the last steps is unknown
            progress = self.tracker.progress
            made = self.tracker.local_step if self.step.kind is StepKind.TRAIN else progress.cached
            self.stopwatch.look(made, now, paused=progress.stage == MAKING_SAMPLES)
        self.ever_finite = self.ever_finite or self.tracker.had_finite_loss

    @property
    def never_finite(self) -> bool:
        """Whether there were losses, but no finite one."""
        return not self.ever_finite and (self.nan_steps > 0 or not self.tracker.progress.loss_is_finite)

    def trouble(self, now: float, stall_seconds: float) -> Diagnosis | None:
        """Return why this attempt should be ended, None while it is healthy. `now` is monotonic seconds."""
        return self._divergence() or self._stall(now, stall_seconds)

    def is_complete(self, attempt: Attempt) -> bool:
        """Whether an attempt that must be ended has written the LoRA and the state of its last epoch."""
        goal = attempt.target
        if goal is None or (self.tracker.local_step or 0) < goal.steps:
            return False
        name = self.step.produces or ""
        state = checkpoints.step_state_dir(self.directory.output, name, goal.steps)
        fault = checkpoints.state_fault(state, state_files(self.plan, self.step, attempt))
        return fault is None and is_whole(self.final_lora(attempt))

    def awaits_samples(self, attempt: Attempt) -> bool:
        """Whether an attempt that must be ended has yet to make the samples of its last epoch.

        The trainer saves LoRA and state first, so nothing is lost if the samples fail.
        """
        goal, samples, every = attempt.target, self.plan.samples, sample_every(self.plan, attempt)
        epoch = self.tracker.newest_epoch
        if (
            goal is None
            or samples is None
            or not every
            or goal.epochs % every
            or (epoch is not None and epoch > attempt.epochs_before + goal.epochs)
        ):
            return False
        made = sample_files(self.directory.output, self.step.produces or "")
        return len({file.prompt_index for file in made if file.epoch == goal.epochs}) < len(samples.prompts)

    def final_lora(self, attempt: Attempt) -> Path:
        """The file in which this attempt leaves the finished LoRA."""
        goal = attempt.target
        name = self.step.produces or ""
        if goal is None:
            return checkpoints.lora_file(self.directory.output, name)
        return checkpoints.step_lora_file(self.directory.output, name, goal.steps)

    def checkpoint_trouble(self, local_epoch: int) -> Diagnosis | None:
        """Return a diagnosis if an epoch's LoRA has non-finite numbers: such a training never recovers."""
        path = checkpoints.lora_file(self.directory.output, self.step.produces or "", local_epoch)
        try:
            bad = first_non_finite(path, read_header(path))
        except (BrokenFileError, OSError):
            return None
        if bad is None:
            return None
        return diverged(f"tensor {bad} of {path.name} is not finite", never_finite=self.never_finite)

    def _divergence(self) -> Diagnosis | None:
        for scalar in self.scalars.new_scalars():
            if scalar.tag == "loss/current":
                finite = math.isfinite(scalar.value)
                self.nan_steps = 0 if finite else self.nan_steps + 1
                self.ever_finite = self.ever_finite or finite
        if self.nan_steps < NAN_STEPS:
            return None
        return diverged(f"the loss of {self.nan_steps} steps in a row", never_finite=self.never_finite)

    def _stall(self, now: float, stall_seconds: float) -> Diagnosis | None:
        if now < self._next_heartbeat:
            return None
        self._next_heartbeat = now + min(_HEARTBEAT_SECONDS, stall_seconds / 4)
        progress = self.tracker.progress
        heartbeat = Heartbeat(
            step=self.tracker.local_step,
            loading=progress.stage is not None,
            log_bytes=size_of(self.directory.log),
            activity=_activity(self.directory) if not self.tracker.local_step else 0,
            seconds_per_step=progress.seconds_per_step,
        )
        self.heartbeat_watch = watch(self.heartbeat_watch, heartbeat, now)
        if not is_stalled(self.heartbeat_watch, now, stall_seconds):
            return None
        silence = now - self.heartbeat_watch.since
        return Diagnosis(
            cause=Cause.NO_PROGRESS,
            meaning=f"the trainer is alive but showed no progress for {silence:.0f} s",
            advice="stall.txt beside its log shows where it hangs.",
            evidence=f"last step {heartbeat.step}" if heartbeat.step is not None else "before its first step",
        )


def diverged(evidence: str | None, *, never_finite: bool, kept: bool = False) -> Diagnosis:
    """Return the diagnosis for non-finite numbers. `kept`: an earlier checkpoint was placed beside the results."""
    if never_finite:
        return Diagnosis(
            cause=Cause.NAN_LOSS,
            meaning="the loss was never a finite number: the model files are damaged, or their precision does not fit",
            advice="`wan-train provision --check --verify` compares the model files with their checksums. If they are "
            "intact, start a new run without your own precision settings (mixed_precision, fp8, VAE or T5 files). "
            "The learning rate is not the reason.",
            evidence=evidence,
        )
    saved = " The newest finite checkpoint was kept." if kept else ""
    return Diagnosis(
        cause=Cause.NAN_LOSS,
        meaning="the training diverged: its numbers are no longer finite",
        advice=f"Start a new run with a lower --learning-rate.{saved}",
        evidence=evidence,
    )


def gpu_lost(reason: str) -> Diagnosis:
    return Diagnosis(
        cause=Cause.CUDA_ERROR,
        meaning=f"its GPU was lost: {reason}",
        advice="Another GPU is used if there is one. If no GPU responds, restart the machine or rent another.",
    )


def other_steps(attempt: Attempt) -> Diagnosis:
    """Return the diagnosis for a trainer whose step count differs from the plan's: it would miss its last save."""
    return Diagnosis(
        cause=Cause.INTERRUPTED,
        meaning=f"an epoch has {attempt.steps_per_epoch} steps, but this was unknown at the start",
        advice="It is restarted so that it saves at the end of its last epoch.",
    )


def is_whole(path: Path) -> bool:
    try:
        read_header(path)
    except BrokenFileError:
        return False
    return True


def write_stall_report(directory: AttemptDirectory) -> None:
    """Write stall.txt beside the log: where in the kernel each process of a hung attempt is."""
    lines = []
    for identity in marked_processes(directory):
        try:
            process = psutil.Process(identity.pid)
            lines.append(
                f"pid {identity.pid} {process.name()} {process.status()} cpu {sum(process.cpu_times()[:2]):.1f} s"
            )
        except psutil.Error:
            continue
        for name in ("wchan", "stack"):
            try:
                lines.append(f"  {name}: {Path(f'/proc/{identity.pid}/{name}').read_text(encoding='utf-8').strip()}")
            except OSError:
                continue
    with contextlib.suppress(OSError):  # a full disk must not keep the hang alive
        (directory.path / "stall.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _activity(directory: AttemptDirectory) -> int:
    """A number that grows while the attempt's processes compute or read: CPU milliseconds and bytes read."""
    total = 0
    for identity in marked_processes(directory):
        try:
            process = psutil.Process(identity.pid)
            total += int(1000 * sum(process.cpu_times()[:2])) + process.io_counters().read_bytes
        except psutil.Error:
            continue
    return total


def speed_of(
    plan: Plan, state: RunState, job: Job, watch: AttemptWatch, *, card: str | None, at: float
) -> Speed | None:
    """Return the measured speed; None if the attempt failed, made too little, or its card or work is unknown."""
    attempt, step = job.attempt, watch.step
    if attempt is None or attempt.ended is None or card is None or attempt.stop_diagnosis is not None:
        return None
    if attempt.diagnosis is not None or plan.batch_cost is None:
        return None
    timing = watch.stopwatch.timing(attempt.ended - attempt.started, made=_made(job, watch))
    if timing is None or (step.kind is StepKind.TRAIN and not timing.per_unit):
        return None
    training = changed(plan.training(step.expert), attempt.changes) if step.expert is not None else None
    batches = plan.batches_of_step(step.expert) if step.expert is not None else 1
    is_usual = job.state is JobState.SUCCEEDED
    return Speed(
        at=at,
        key=key_of(plan.trainer, step.kind, training, card=card, at_once=_at_once(plan, state, step, attempt)),
        sizes=plan.speed_key,
        cost=1.0 if step.kind is StepKind.CACHE_TEXT else plan.batch_cost,
        units=timing.units * batches,
        per_unit=timing.per_unit / batches,
        beside=timing.beside if is_usual else None,
        after=timing.after if is_usual else None,
        per_sample=_per_sample(plan, attempt, watch, timing, only_whole=not is_usual),
    )


def _made(job: Job, watch: AttemptWatch) -> int:
    """Return the final steps or items. Short caching steps end before a look sees their last items, or any."""
    if watch.step.kind is StepKind.TRAIN:
        return watch.tracker.local_step or 0
    cleared = job.caches.make if job.state is JobState.SUCCEEDED and isinstance(job.caches, CachesCleared) else 0
    return max(cleared, watch.tracker.progress.cached or 0)


def _per_sample(plan: Plan, attempt: Attempt, watch: AttemptWatch, timing: Timing, *, only_whole: bool) -> float | None:
    """Return the seconds per sample, None without whole samples. Samples quicker than a look count as steps."""
    every, per_epoch = sample_every(plan, attempt), attempt.steps_per_epoch
    if plan.samples is None or not every or not per_epoch or timing.units < every * per_epoch:
        return None
    if not watch.stopwatch.pauses:
        return 0.0
    pause = watch.stopwatch.seconds_per_pause(only_whole=only_whole)
    return pause / len(plan.samples.prompts) if pause is not None else None


def _at_once(plan: Plan, state: RunState, step: Step, attempt: Attempt) -> int:
    """Return how many programs of this kind ran for most of the attempt's time, itself included."""
    caching = step.id in CACHING_STEPS.values()
    begun, ended = attempt.started, attempt.ended or attempt.started
    count = 1
    for other in plan.steps:
        if other.id == step.id or (other.id in CACHING_STEPS.values()) is not caching:
            continue
        shared = sum(
            max(0.0, min(ended, each.ended or ended) - max(begun, each.started))
            for each in state.jobs[other.id].attempts
        )
        count += shared > _MOSTLY * (ended - begun)
    return count

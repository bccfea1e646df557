"""Loss and learning rate of every step of a training, over all its attempts, from the records on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from wan_train.engine.log_parser import StepRecord
from wan_train.engine.scalars import Scalar, ScalarFollower
from wan_train.run.directory import RunDirectory
from wan_train.run.plan import Plan, StepKind
from wan_train.run.progress import LogFollower
from wan_train.run.state import Attempt, RunState


class LossSource(StrEnum):
    """Where the numbers of a curve come from. Every view that shows them says which."""

    TENSORBOARD = "tensorboard"
    """The trainer's TensorBoard file: the loss and the learning rate of each single step."""
    PROGRESS_LINE = "progress_line"
    """The trainer's progress bar: a moving average over an epoch, three digits, no learning rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One optimizer step, counted from 1 over all attempts. `loss` may be NaN or infinite."""

    step: int
    loss: float
    lr: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What one attempt trained. Its points up to `counts_to` are part of the finished training; None: all are.

    Later points were trained again from an earlier state by a later attempt, or lie past the last step.
    """

    attempt: int
    source: LossSource
    points: tuple[Point, ...]
    counts_to: int | None = None

    @property
    def counted(self) -> tuple[Point, ...]:
        if self.counts_to is None:
            return self.points
        return tuple(point for point in self.points if point.step <= self.counts_to)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The training of one expert, attempts in order; those without a step are left out."""

    segments: tuple[Segment, ...] = ()

    @property
    def points(self) -> tuple[Point, ...]:
        """Each step once, as it went into the LoRA."""
        return tuple(point for segment in self.segments for point in segment.counted)

    @property
    def source(self) -> LossSource | None:
        """The less precise source if attempts differ; None without a step."""
        sources = {segment.source for segment in self.segments if segment.counted}
        if not sources:
            return None
        return LossSource.PROGRESS_LINE if LossSource.PROGRESS_LINE in sources else LossSource.TENSORBOARD

    @property
    def final_loss(self) -> float | None:
        """The loss after the last step, smoothed as in every view; None without steps, or if it is not finite.

        The trainer's own average is already smooth.
        """
        losses = [point.loss for point in self.points]
        if not losses:
            return None
        final = losses[-1] if self.source is LossSource.PROGRESS_LINE else smoothed(losses)[-1]
        return final if math.isfinite(final) else None


class CurveReader:
    """Reads the curves of a run repeatedly, and only the new part of each file."""

    def __init__(self, run: RunDirectory, plan: Plan) -> None:
        self._run = run
        self._steps = [step.id for step in plan.steps if step.kind is StepKind.TRAIN]
        self._attempts: dict[tuple[str, int], _AttemptPoints] = {}

    def refresh(self, state: RunState) -> Mapping[str, Curve]:
        """The curves by step id, as far as the trainer has written them."""
        return {step: self.curve(step, state.jobs[step].attempts) for step in self._steps}

    def curve(self, step: str, attempts: Sequence[Attempt]) -> Curve:
        """Return the curve of one training."""
        segments: list[Segment] = []
        later_begins: int | None = None
        for attempt in reversed(attempts):
            # A resumed trainer runs past the last step until it is stopped.
            limits = [limit for limit in (later_begins, attempt.wanted_steps) if limit is not None]
            segment = self._segment(step, attempt, min(limits, default=None))
            if segment is None:
                continue
            segments.append(segment)
            begins = attempt.steps_before or 0
            later_begins = begins if later_begins is None else min(later_begins, begins)
        return Curve(segments=tuple(reversed(segments)))

    def _segment(self, step: str, attempt: Attempt, counts_to: int | None) -> Segment | None:
        offset = attempt.steps_before
        if offset is None:
            return None
        key = (step, attempt.number)
        if key not in self._attempts:
            self._attempts[key] = _AttemptPoints.of(self._run.attempt(step, attempt.number).path, offset)
        found = self._attempts[key]
        found.read()
        points = found.points()
        return (
            Segment(attempt=attempt.number, source=found.source, points=points, counts_to=counts_to) if points else None
        )


_WEIGHT = 0.98


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return an exponential moving average, corrected for the bias at its start. Non-finite numbers are skipped.

    The formula is that of Adam's first moment: m = w m + (1 - w) x, divided by 1 - w^n.
    """
    average, scale = 0.0, 1.0
    out = []
    for loss in losses:
        if loss - loss == 0.0:  # neither NaN nor infinite
            average = _WEIGHT * average + (1 - _WEIGHT) * loss
            scale *= _WEIGHT
        out.append(average / (1 - scale) if scale < 1.0 else float("nan"))
    return out


@dataclass(slots=True)
class _AttemptPoints:
    offset: int
    scalars: ScalarFollower
    log: LogFollower
    source: LossSource = LossSource.PROGRESS_LINE
    _rate_tag: str | None = None
    _losses: dict[int, float] = field(default_factory=dict)
    _rates: dict[int, float] = field(default_factory=dict)
    _points: tuple[Point, ...] | None = None

    @classmethod
    def of(cls, directory: Path, offset: int) -> _AttemptPoints:
        return cls(offset=offset, scalars=ScalarFollower(directory / "logs"), log=LogFollower(directory / "output.log"))

    def read(self) -> None:
        for scalar in self.scalars.new_scalars():
            self._add_scalar(scalar)
        if self.source is LossSource.TENSORBOARD:
            return
        for record in self.log.new_records():
            if isinstance(record, StepRecord) and record.step > 0 and record.loss is not None:
                self._losses[record.step] = record.loss
                self._points = None

    def points(self) -> tuple[Point, ...]:
        if self._points is None:
            self._points = tuple(
                Point(step=self.offset + step, loss=loss, lr=self._rates.get(step))
                for step, loss in sorted(self._losses.items())
            )
        return self._points

    def _add_scalar(self, scalar: Scalar) -> None:
        if scalar.step < 1:
            return  # batches gathered before the first optimizer step
        if scalar.tag == "loss/current":
            if self.source is LossSource.PROGRESS_LINE:
                self.source = LossSource.TENSORBOARD
                self._losses.clear()
            self._losses[scalar.step] = scalar.value
        elif scalar.tag.startswith("lr/") and not scalar.tag.startswith("lr/d*lr/"):
            # Optimizers with several groups log a rate for each; the first stands for all.
            self._rate_tag = self._rate_tag or scalar.tag
            if scalar.tag != self._rate_tag:
                return
            self._rates[scalar.step] = scalar.value
        else:
            return
        self._points = None

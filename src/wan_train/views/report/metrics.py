"""The numbers of a run that its report tells and that runs are compared by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wan_train.recipe.terms import Expert
from wan_train.run.curves import Curve, LossSource
from wan_train.run.events import EpochEnded, Event, TrainingBegan
from wan_train.run.live import GpuSample
from wan_train.run.state import Attempt, Job
from wan_train.views import run_status as facts
from wan_train.views.report.report_data import Story


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFigures:
    """One expert's training. Times in seconds; None for what is not known (yet)."""

    step: str
    expert: Expert
    job: Job
    epochs_done: int
    epochs: int
    steps_done: int
    final_loss: float | None
    """The smoothed loss after the last step."""
    not_finite: int
    """Steps whose loss was no number."""
    last_rate: float | None
    source: LossSource | None
    seconds: float | None
    """All attempts, loading included."""
    seconds_per_step: float | None
    """Between the first step of an attempt and the end of its last epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFigures:
    """What one GPU did while steps of the run were on it, as sampled. Units as in `GpuSample`."""

    uuid: str
    label: str
    name: str
    driver: str | None
    total_bytes: int
    peak_bytes: int
    mean_utilization: float | None
    peak_temperature: int | None
    peak_watts: float | None
    samples: int


def experts(story: Story) -> tuple[ExpertFigures, ...]:
    """The trainings in plan order."""
    return tuple(_experts(story))


def _experts(story: Story) -> Iterator[ExpertFigures]:
    for step, job in facts.steps_of(story.view):
        if step.expert is None:
            continue
        curve = story.curves.get(step.id, Curve())
        points = curve.points
        rates = [point.lr for point in points if point.lr is not None and math.isfinite(point.lr)]
        yield ExpertFigures(
            step=step.id,
            expert=step.expert,
            job=job,
            epochs_done=job.attempt.epochs_done if job.attempt is not None else 0,
            epochs=facts.epochs(story.view, step),
            steps_done=points[-1].step if points else 0,
            final_loss=curve.final_loss,
            not_finite=sum(not math.isfinite(point.loss) for point in points),
            last_rate=rates[-1] if rates else None,
            source=curve.source,
            seconds=facts.spent(story.view, job, story.made),
            seconds_per_step=_pace(job, story.events),
        )


def _pace(job: Job, events: Sequence[Event]) -> float | None:
    seconds, steps = 0.0, 0
    for attempt in job.attempts:
        per_epoch = attempt.steps_per_epoch
        begun = [e.at for e in events if isinstance(e, TrainingBegan) and _is_of(e, job, attempt)]
        ended = [e for e in events if isinstance(e, EpochEnded) and _is_of(e, job, attempt)]
        if begun and ended and per_epoch:
            seconds += ended[-1].at - begun[0]
            steps += (ended[-1].epoch - attempt.epochs_before) * per_epoch - 1
    return seconds / steps if steps > 0 and seconds > 0 else None


def _is_of(event: TrainingBegan | EpochEnded, job: Job, attempt: Attempt) -> bool:
    return event.step == job.step and event.attempt == attempt.number


def gpus(samples: Sequence[GpuSample]) -> tuple[GpuFigures, ...]:
    """By GPU, in the order in which they were first used."""
    return tuple(
        _gpu([sample for sample in samples if sample.uuid == uuid])
        for uuid in dict.fromkeys(sample.uuid for sample in samples)
    )


def _gpu(samples: Sequence[GpuSample]) -> GpuFigures:
    last = samples[-1]
    loads = [sample.utilization for sample in samples if sample.utilization is not None]
    return GpuFigures(
        uuid=last.uuid,
        label=last.label,
        name=last.name,
        driver=last.driver,
        total_bytes=last.total_bytes,
        peak_bytes=max(sample.used_bytes for sample in samples),
        mean_utilization=sum(loads) / len(loads) if loads else None,
        peak_temperature=max((s.temperature for s in samples if s.temperature is not None), default=None),
        peak_watts=max((s.power_watts for s in samples if s.power_watts is not None), default=None),
        samples=len(samples),
    )

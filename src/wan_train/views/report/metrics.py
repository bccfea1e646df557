"""The numbers of a run for reports and comparisons: experts, GPUs, and how attempts ended."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wan_train.recipe.terms import Expert
from wan_train.run.curves import Curve, LossSource
from wan_train.run.events import EpochEnded, Event, TrainingBegan
from wan_train.run.live import GpuSample
from wan_train.run.state import Attempt, Job, JobState
from wan_train.views import formatting, run_status
from wan_train.views.report.report_data import ReportData


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertMetrics:
    """The training of one expert. Times in seconds; None where unknown."""

    step: str
    expert: Expert
    job: Job
    epochs_done: int
    epochs: int
    steps_done: int
    final_loss: float | None
    """The smoothed loss after the last step."""
    not_finite: int
    """Steps with a loss of NaN or infinity."""
    last_rate: float | None
    source: LossSource | None
    seconds: float | None
    """All attempts, including loading."""
    seconds_per_step: float | None
    """From the first step of an attempt to the end of its last epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMetrics:
    """Readings of one GPU while steps of the run used it. Units as in `GpuSample`."""

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


def experts(report: ReportData) -> tuple[ExpertMetrics, ...]:
    """The trainings in plan order."""
    return tuple(_experts(report))


def _experts(report: ReportData) -> Iterator[ExpertMetrics]:
    for step, job in run_status.steps_of(report.view):
        if step.expert is None:
            continue
        curve = report.curves.get(step.id, Curve())
        points = curve.points
        rates = [point.lr for point in points if point.lr is not None and math.isfinite(point.lr)]
        yield ExpertMetrics(
            step=step.id,
            expert=step.expert,
            job=job,
            epochs_done=job.attempt.epochs_done if job.attempt is not None else 0,
            epochs=run_status.epochs(report.view, step),
            steps_done=points[-1].step if points else 0,
            final_loss=curve.final_loss,
            not_finite=sum(not math.isfinite(point.loss) for point in points),
            last_rate=rates[-1] if rates else None,
            source=curve.source,
            seconds=run_status.spent(report.view, job, report.made),
            seconds_per_step=_pace(job, report.events),
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


def gpus(samples: Sequence[GpuSample]) -> tuple[GpuMetrics, ...]:
    """One for each GPU, in order of first use."""
    return tuple(
        _gpu([sample for sample in samples if sample.uuid == uuid])
        for uuid in dict.fromkeys(sample.uuid for sample in samples)
    )


def _gpu(samples: Sequence[GpuSample]) -> GpuMetrics:
    last = samples[-1]
    loads = [sample.utilization for sample in samples if sample.utilization is not None]
    return GpuMetrics(
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


def outcome_of(job: Job, attempt: Attempt) -> tuple[str, bool]:
    """How an attempt ended, in words, and whether it failed."""
    is_last = job.attempt is attempt
    if is_last and job.state is JobState.SUCCEEDED:
        return "finished", False
    if attempt.exit is None:
        return ("running" if is_last and job.state.has_process else "end unknown"), False
    found = attempt.diagnosis or attempt.stop_diagnosis
    if found is not None:
        return formatting.safe(found.meaning), True
    return ("stopped" if is_last and job.state is JobState.STOPPED else "ended"), False

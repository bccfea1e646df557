"""The report of a run as one HTML file without scripts: results first, then its course, then its settings."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_train.base import units
from wan_train.base.units import count
from wan_train.engine.failures import Diagnosis
from wan_train.run.live import EVERY_SECONDS
from wan_train.run.plan import Devices
from wan_train.run.state import JobState
from wan_train.views import formatting, run_status
from wan_train.views.cost import cost_basis, cost_of, cost_text
from wan_train.views.dataset_page.cards import Card, cards
from wan_train.views.dataset_tables import settings_of as dataset_settings
from wan_train.views.html.render import render
from wan_train.views.lines import plain
from wan_train.views.model import RunView
from wan_train.views.plan_details import learning_rates
from wan_train.views.report import metrics
from wan_train.views.report.metrics import ExpertMetrics
from wan_train.views.report.plots import MOST_POINTS
from wan_train.views.report.report_data import ReportData, SampleGrid, ShownDataset, sample_grid
from wan_train.views.report.reproduce import rerun_command, settings_of, versions
from wan_train.views.report.timeline import gpu_readings, loss_charts, movement_chart, started_at, timeline
from wan_train.views.result import RESUME_CANNOT_HELP, headline, resume_command, resumes_from
from wan_train.views.run_status import RunStatus

GENERATOR = "wan-train run report"
"""Marks every report, so that only files of this kind are overwritten."""
_MOST_KEPT = 20


def page(report: ReportData) -> str:
    """The whole document."""
    view = report.view
    plan, status, experts = view.plan, run_status.status_of(view), metrics.experts(report)
    failures = list(_failures(view))
    longest = max((len(curve.points) for curve in report.curves.values()), default=0)
    return render(
        "report/report.html",
        generator=GENERATOR,
        report=report,
        plan=plan,
        run=view.run,
        status=status,
        headline=_headline(report),
        report_command=f"wan-train report {shlex.quote(formatting.safe(view.run.run_id))}",
        facts=list(_facts(report, experts)),
        failures=failures,
        next_step=_next_step(view, has_failures=bool(failures)),
        files=[each for each in experts if each.job.result is not None],
        picks=view.picks,
        kept=[_Kept.of(each) for each in experts if each.job.kept],
        loss_charts=loss_charts(report, experts),
        movement=movement_chart(report, experts),
        thinned_from=longest if longest > MOST_POINTS else None,
        timeline=timeline(report),
        uses_gpus=plan.devices is not Devices.CPU_SLOTS,
        gpus=gpu_readings(report),
        gpu_interval=f"{EVERY_SECONDS:.0f} s",
        samples=list(_samples(report)),
        previews=report.previews,
        run_name=shlex.quote(formatting.safe(view.run.run_id)),
        dataset_counts=", ".join(_dataset_counts(report)),
        has_changed=_has_changed(report),
        subsets=list(_subsets(report.dataset)) if report.dataset is not None else [],
        settings=settings_of(plan),
        learning_rates=learning_rates(plan),
        changes=[
            f"{step.id}, attempt {attempt.number}: {name}={value}"
            for step, job in run_status.steps_of(view)
            for attempt in job.attempts
            for name, value in attempt.changes.items()
        ],
        commands=[_command(*key, text) for key, text in report.commands.items()],
        versions=versions(report),
        models=_models(report) if plan.trainer.is_real else (),
        rerun=rerun_command(report),
        longer=_longer(report),
    )


def _headline(report: ReportData) -> str:
    if report.is_final or run_status.status_of(report.view) is RunStatus.LOST:
        return plain([headline(report.view)]).strip()
    return f"The run has not finished; {units.duration(run_status.elapsed(report.view, report.made))} so far."


def _facts(report: ReportData, experts: Sequence[ExpertMetrics]) -> Iterator[tuple[str, str, Sequence[str]]]:
    view = report.view
    yield "Duration", run_status.took(view, report.made), [f"started {formatting.date_time(started_at(report))}"]
    cost = cost_of(view, report.made)
    if cost is not None:
        yield "Cost", cost_text(cost), [cost_basis(cost)]
    yield "Dataset", f"{view.plan.dataset.items:,}", [f"files, {view.plan.dataset.captions:,} with caption"]
    for each in experts:
        loss = "no loss yet" if each.final_loss is None else f"loss {formatting.loss(each.final_loss)}"
        pace = f", {formatting.pace(each.seconds_per_step)}" if each.seconds_per_step is not None else ""
        done = f"of {count(each.epochs, 'epoch')} · {count(each.steps_done, 'step')}{pace}"
        name = f"{formatting.expert_name(each.expert).capitalize()} expert"
        early = run_status.early_end(view, view.plan.step(each.step))
        yield name, f"{each.epochs_done:,}", [done, loss, *([f"ends {early}"] if early is not None else [])]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    where: str
    meaning: str
    advice: str | None = None
    evidence: str | None = None
    tail: Sequence[str] = ()
    """The last lines of the step's log."""
    log: Path | None = None


def _failures(view: RunView) -> Iterator[_Failure]:
    low = run_status.low_disk(view)
    if low is not None:
        yield _Failure(where="disk", meaning=low.meaning, advice=low.advice)
    for step, job in run_status.steps_of(view):
        if job.state is JobState.SKIPPED:
            yield _Failure(where=step.id, meaning=f"skipped: {job.reason or 'a step it needs failed'}")
        elif job.state is JobState.FAILED:
            found: Diagnosis | None = job.diagnosis
            yield _Failure(
                where=step.id,
                meaning=found.meaning if found is not None else "unknown error",
                advice=found.advice if found is not None else None,
                evidence=formatting.joined_lines(found.evidence) if found is not None else None,
                tail=view.tails.get(step.id, ()),
                log=run_status.log_of(view, job),
            )


def _next_step(view: RunView, *, has_failures: bool) -> tuple[str, str | None] | None:
    """What to do about a run that ended early, and the command for it."""
    if run_status.status_of(view) not in {RunStatus.FAILED, RunStatus.STOPPED, RunStatus.LOST}:
        return None
    resume = resume_command(view)
    if resume is None:
        return RESUME_CANNOT_HELP, None
    return f"{'Once fixed, resume' if has_failures else 'Resume'} {resumes_from(view)}:", resume


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """LoRAs of earlier epochs."""

    title: str
    names: Sequence[str]
    more: int

    @staticmethod
    def of(each: ExpertMetrics) -> _Kept:
        kept = each.job.kept
        expert = formatting.expert_name(each.expert)
        return _Kept(
            title=f"{count(len(kept), 'LoRA')} of earlier epochs of the {expert} expert",
            names=[Path(path).name for path in kept[:_MOST_KEPT]],
            more=max(0, len(kept) - _MOST_KEPT),
        )


def _samples(report: ReportData) -> Iterator[tuple[str, SampleGrid]]:
    for step in report.view.plan.steps:
        if step.expert is not None:
            grid = sample_grid(report.samples, step.expert)
            if grid.made:
                yield f"{formatting.expert_name(step.expert).capitalize()} expert", grid


def _dataset_counts(report: ReportData) -> Iterator[str]:
    counted = report.view.plan.dataset
    yield count(counted.items, "file")
    yield count(counted.captions, "caption")
    if counted.repeats is not None:
        yield f"{count(counted.repeats, 'item')} per epoch with repeats"
    if counted.batches_per_epoch is not None:
        yield f"{count(counted.batches_per_epoch, 'batch', 'batches')} per epoch"


def _has_changed(report: ReportData) -> bool:
    """Whether the number of files or captions has changed since the run was planned."""
    counted, shown = report.view.plan.dataset, report.dataset
    if shown is None:
        return False
    return (shown.layout.summary.files, shown.layout.summary.captions) != (counted.items, counted.captions)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subset:
    source: Path | None
    settings: str
    cards: Sequence[Card]
    more: int


def _subsets(shown: ShownDataset) -> Iterator[_Subset]:
    for number, (each, sizes) in enumerate(zip(shown.layout.subsets, shown.selection.datasets, strict=True)):
        yield _Subset(
            source=each.subset.directory or each.subset.jsonl,
            settings=dataset_settings(each.subset),
            cards=[
                each_card
                for place, size in enumerate(sizes)
                for each_card in cards(size, each.subset.kind, shown.contents, anchor=f"file-{number}-{place}")
            ],
            more=sum(size.left for size in sizes),
        )


def _command(step: str, attempt: int, text: str) -> tuple[str, str]:
    name = f"{step}, attempt {attempt}" if attempt > 1 else step
    return name, "\n".join(line for line in text.strip().split("\n") if not line.startswith("#!"))


def _models(report: ReportData) -> list[tuple[str, str, str]]:
    """The name, file name and size in bytes of each model."""
    plan = report.view.plan
    named = {f"DiT {spec.expert.value}-noise": plan.models.dit[spec.expert.value] for spec in plan.recipe.experts}
    named |= {"VAE": plan.models.vae, "T5": plan.models.t5}
    return [
        (name, path.name, f"{report.model_bytes[path]:,}" if path in report.model_bytes else "file not found")
        for name, path in named.items()
    ]


def _longer(report: ReportData) -> str | None:
    """The command that trains a finished run longer."""
    view = report.view
    if not report.is_final or run_status.status_of(view) is not RunStatus.FINISHED:
        return None
    more = "--until all" if run_status.ended_early(view) else f"--epochs {2 * view.state.total_epochs(view.plan)}"
    return f"wan-train resume {shlex.quote(formatting.safe(view.run.run_id))} {more}"

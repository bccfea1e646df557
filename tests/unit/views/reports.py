"""The data of reports, without a run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from support.runs import GIB, OUT_OF_MEMORY, SUPERVISOR, T0, events_of, make_plan, make_view
from views.datasets import PICTURES, check_of, inventory_of
from wan_train.dataset.layout import layout_of
from wan_train.dataset.previews import Preview
from wan_train.engine.sample_files import SampleKind
from wan_train.recipe.terms import Expert
from wan_train.run.curves import Curve, LossSource, Point, Segment
from wan_train.run.events import EpochEnded, Event, Exited, RetryScheduled, StepExited, StepStarted, TrainingBegan
from wan_train.run.live import GpuSample
from wan_train.run.plan import Plan
from wan_train.run.samples import Sample
from wan_train.run.state import JobState
from wan_train.views.dataset_page.selection import Contents, choose
from wan_train.views.report.report_data import ReportData, ShownDataset

DONE, FAILED = JobState.SUCCEEDED, JobState.FAILED
CACHED = {"cache-latents": DONE, "cache-text": DONE}
BOTH = {**CACHED, "train-high": DONE, "train-low": DONE}
NO_PLOTS: dict[str, Any] = {"curves": {}, "gpus": ()}
"""For a report whose plots are not looked at: drawing them is nearly all of a page's time."""


def points(first: int, last: int, *, rate: bool = True) -> tuple[Point, ...]:
    return tuple(
        Point(
            step=step,
            loss=0.1 + 0.4 / step + 0.02 * math.sin(step),
            lr=3e-4 * (1 - step / (last + 1)) if rate else None,
        )
        for step in range(first, last + 1)
    )


def curve(steps: int = 100, source: LossSource = LossSource.TENSORBOARD) -> Curve:
    rate = source is LossSource.TENSORBOARD
    return Curve(segments=(Segment(attempt=1, source=source, points=points(1, steps, rate=rate)),))


def retried_curve() -> Curve:
    """Forty steps, of which thirty count; then the rest."""
    return Curve(
        segments=(
            Segment(attempt=1, source=LossSource.TENSORBOARD, points=points(1, 40), counts_to=30),
            Segment(attempt=2, source=LossSource.TENSORBOARD, points=points(31, 100)),
        )
    )


def retried_events(plan: Plan) -> list[Event]:
    """The high-noise expert ran out of memory once and went on with more blocks swapped."""
    first = [e for e in events_of(plan, {**CACHED, "train-high": JobState.RUNNING}) if not isinstance(e, EpochEnded)]
    at = T0 + 100
    return [
        *first,
        TrainingBegan(at=at, step="train-high", attempt=1, steps=2400),
        StepExited(at=at + 200, step="train-high", attempt=1, exit=Exited(code=1)),
        RetryScheduled(
            at=at + 201, step="train-high", attempt=1, diagnosis=OUT_OF_MEMORY, not_before=at + 211, why="less memory",
            changes={"blocks_to_swap": 20},
        ),
        StepStarted(
            at=at + 211, step="train-high", attempt=2, gpu_uuid="GPU-0", gpu_label="GPU 0", identity=SUPERVISOR,
            epochs_before=1, total_epochs=100, changes={"blocks_to_swap": 20},
        ),
    ]  # fmt: skip


def gpu_samples(
    count: int = 50, gpus: int = 2, *, label: str = "GPU", name: str = "NVIDIA GeForce RTX 5090"
) -> list[GpuSample]:
    return [
        GpuSample(
            at=T0 + 10 * number,
            uuid=f"GPU-{gpu}",
            label=f"{label} {gpu}",
            name=name,
            used_bytes=(20 + number % 8) * GIB,
            total_bytes=32 * GIB,
            utilization=90 + number % 10,
            temperature=60 + number % 12,
            power_watts=431.25,
            steps=("train-high",),
            driver="570.86.15",
        )
        for number in range(count)
        for gpu in range(gpus)
    ]


def dataset(count: int = 3, *, name: str = "{}.png", caption: str = "a cat", jpeg: bytes = b"\xff\xd8") -> ShownDataset:
    check = check_of(inventory_of([(960, 960)] * count, name=name))
    assert check.inventory is not None
    ahead = layout_of(check.inventory, epochs=100, accumulation=1, image_to_video=False)
    selection = choose(ahead, {}, most=24)
    paths = [one.item.path for sizes in selection.datasets for size in sizes for one in size.shown]
    contents = Contents(
        previews={path: Preview(jpeg=jpeg, width=24, height=16) for path in paths},
        captions=dict.fromkeys(paths, caption),
    )
    return ShownDataset(layout=ahead, selection=selection, contents=contents)


def samples(epochs: int, prompts: int, *, prompt: str = "a red fox") -> list[Sample]:
    return [
        Sample(
            step=f"train-{expert.value}", expert=expert, attempt=1, epoch=epoch, prompt_index=index, prompt=prompt,
            seed=5, path=PICTURES / f"{expert.value}-{epoch}-{index}.png", kind=SampleKind.PICTURE,
        )
        for expert in Expert
        for epoch in range(0, 10 * epochs, 10)
        for index in range(prompts)
    ]  # fmt: skip


def report_of(
    *,
    jobs: dict[str, JobState] | None = None,
    exit_code: int | None = 0,
    events: list[Event] | None = None,
    plan: Plan | None = None,
    tails: dict[str, tuple[str, ...]] | None = None,
    **changes: Any,
) -> ReportData:
    """A run that went well unless `jobs` say otherwise; `changes` replace fields of the report data."""
    plan = plan or make_plan(items=3)
    if events is None:
        events = events_of(
            plan, jobs or BOTH, gpus={"cache-text": 1, "train-low": 1}, epochs={"train-high": 100}, exit_code=exit_code
        )
    view = make_view(plan, events, tails=tails, supervisor_alive=exit_code is None)
    report = ReportData(
        view=view,
        made=T0 + 4000,
        version="1.2.3",
        events=events,
        curves={"train-high": curve(), "train-low": curve(source=LossSource.PROGRESS_LINE)},
        gpus=gpu_samples(),
        commands={("train-high", 1): "#!/bin/sh\ncd /workspace\npython train.py --x 'y'\n"},
        packages={"torch": "2.7.1"},
        model_bytes={plan.models.vae: 254_000_000},
        dataset=dataset(),
    )
    return replace(report, **changes)

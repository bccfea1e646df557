"""The records of a run, read for its report. Missing or damaged records never hide the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from wan_train import __version__
from wan_train.base.text import redact
from wan_train.caching.survey import reading_of
from wan_train.dataset.config import load
from wan_train.dataset.layout import Layout, layout_of
from wan_train.dataset.model import DatasetError, MediaKind
from wan_train.dataset.previews import Preview, previews_of
from wan_train.dataset.scan import scan
from wan_train.engine.sample_files import SampleKind
from wan_train.engine.trainer import package_version
from wan_train.recipe.terms import Expert, Task
from wan_train.run.curves import Curve, CurveReader
from wan_train.run.directory import RunDirectory
from wan_train.run.events import Event
from wan_train.run.live import GpuSample, read_gpu_history
from wan_train.run.plan import Plan
from wan_train.run.samples import Sample, samples_of
from wan_train.run.state import RunState
from wan_train.views.dataset_page.selection import Contents, Selection, choose, contents_of
from wan_train.views.model import RunReader, RunView
from wan_train.views.report.preview_section import ShownPreview, shown_previews

MOST_FILES = 24
"""Files of the dataset that a report shows."""
MOST_SAMPLES = 24
"""Samples of one expert. Each is at most 16 kB, so that a phone can open the page."""
_MOST_PROMPTS = 6
_MOST_COMMAND_BYTES = 100_000
_PACKAGES = ("torch", "accelerate", "diffusers", "transformers", "safetensors", "bitsandbytes", "xformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownDataset:
    """The dataset as its files are now, and a selection of them to show."""

    layout: Layout
    selection: Selection
    contents: Contents


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """One run at `made` (seconds since 1970). Mappings are by step ID; `commands` by step ID and attempt."""

    view: RunView
    made: float
    version: str
    """The version of wan-train that made the report."""
    events: Sequence[Event] = ()
    curves: Mapping[str, Curve] = field(default_factory=dict)
    gpus: Sequence[GpuSample] = ()
    commands: Mapping[tuple[str, int], str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions of packages in the trainer's environment."""
    model_bytes: Mapping[Path, int] = field(default_factory=dict)
    dataset: ShownDataset | None = None
    dataset_missing: str | None = None
    """Why there is no dataset to show."""
    samples: Sequence[Sample] = ()
    sample_pictures: Mapping[Path, Preview] = field(default_factory=dict)
    """The pictures of the shown samples, by path."""
    previews: Sequence[ShownPreview] = ()

    @property
    def is_final(self) -> bool:
        return self.view.state.is_over


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleGrid:
    """The shown samples of an expert: `epochs` are the rows, `prompts` (index and text) the columns."""

    epochs: tuple[int, ...]
    prompts: tuple[tuple[int, str], ...]
    cells: Mapping[tuple[int, int], Sample]
    """By epoch and prompt index."""
    made: int
    """The number of all samples, shown or not."""


def read_report_data(run: RunDirectory, now: float, *, with_pictures: bool = True) -> ReportData:
    """The records of the run at `now`. Raises BadInputError or CorruptRecordError, as RunReader does."""
    view, events = RunReader(run).refresh()
    plan, state = view.plan, view.state
    dataset, missing = _dataset(run, plan) if with_pictures else (None, None)
    samples = samples_of(run, plan, state)
    return ReportData(
        view=view,
        made=now,
        version=__version__,
        events=events,
        curves=CurveReader(run, plan).refresh(state),
        gpus=read_gpu_history(run.gpu_history),
        commands=dict(_commands(run, state)),
        packages=dict(_packages(plan)),
        model_bytes=dict(_sizes(plan)),
        dataset=dataset,
        samples=samples,
        sample_pictures=_pictures(samples) if with_pictures else {},
        previews=shown_previews(run) if with_pictures else (),
        dataset_missing=missing,
    )


def _commands(run: RunDirectory, state: RunState) -> Iterator[tuple[tuple[str, int], str]]:
    for job in state.jobs.values():
        for attempt in job.attempts:
            with suppress(OSError), run.attempt(job.step, attempt.number).command.open("rb") as file:
                text = file.read(_MOST_COMMAND_BYTES).decode("utf-8", errors="replace")
                yield (job.step, attempt.number), redact(text)


def _packages(plan: Plan) -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        with suppress(OSError):
            version = package_version(plan.trainer.python, package)
            if version is not None:
                yield package, version


def _sizes(plan: Plan) -> Iterator[tuple[Path, int]]:
    for path in (*plan.models.dit.values(), plan.models.vae, plan.models.t5):
        with suppress(OSError):
            yield path, path.stat().st_size


def _pictures(samples: Sequence[Sample]) -> dict[Path, Preview]:
    grids = [sample_grid(samples, expert) for expert in Expert]
    return previews_of(
        {
            sample.path: MediaKind.VIDEO if sample.kind is SampleKind.CLIP else MediaKind.IMAGE
            for grid in grids
            for sample in grid.cells.values()
        }
    )


def _dataset(run: RunDirectory, plan: Plan) -> tuple[ShownDataset | None, str | None]:
    """The dataset of the run's own dataset.toml, as its files are now; or why it cannot be shown."""
    reading = reading_of(plan.trainer)
    try:
        inventory = scan(load(run.dataset_config, reading=reading), reading=reading)
    except DatasetError as error:
        return None, error.problems[0].what if error.problems else error.message
    except OSError as error:
        return None, f"{error.filename or run.dataset_config} cannot be read: {error.strerror or error}"
    layout = layout_of(
        inventory,
        epochs=plan.epochs,
        accumulation=plan.recipe.experts[0].training.gradient_accumulation_steps,
        image_to_video=plan.recipe.task is Task.I2V,
    )
    if not any(each.files for each in layout.subsets):
        return None, "its files were moved or deleted"
    selection = choose(layout, {}, most=MOST_FILES)
    return ShownDataset(layout=layout, selection=selection, contents=contents_of(layout, selection)), None


def sample_grid(samples: Sequence[Sample], expert: Expert) -> SampleGrid:
    """Choose the first prompts, and epochs spread evenly from the first to the last."""
    found = [sample for sample in samples if sample.expert is expert]
    prompts = tuple(sorted({sample.prompt_index: sample.prompt for sample in found}.items()))[:_MOST_PROMPTS]
    epochs = sorted({sample.epoch for sample in found})
    rows = max(2, MOST_SAMPLES // max(1, len(prompts)))
    if len(epochs) > rows:
        epochs = [epochs[place * (len(epochs) - 1) // (rows - 1)] for place in range(rows)]
    columns = {index for index, _ in prompts}
    return SampleGrid(
        epochs=tuple(epochs),
        prompts=prompts,
        cells={
            (sample.epoch, sample.prompt_index): sample
            for sample in found
            if sample.epoch in epochs and sample.prompt_index in columns
        },
        made=len(found),
    )

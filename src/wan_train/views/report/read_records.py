"""The records of a run read for its report. Nothing that is missing or damaged keeps the rest from being told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from wan_train import __version__
from wan_train.base.text import redact
from wan_train.caching.survey import reading_of
from wan_train.dataset.config import load
from wan_train.dataset.layout import layout_of
from wan_train.dataset.model import DatasetError, MediaKind
from wan_train.dataset.previews import Preview, previews_of
from wan_train.dataset.scan import Check, scan
from wan_train.engine.sample_files import SampleKind
from wan_train.engine.trainer import package_version
from wan_train.recipe.terms import Expert, Task
from wan_train.run.curves import CurveReader
from wan_train.run.directory import RunDirectory
from wan_train.run.live import read_gpu_history
from wan_train.run.plan import Plan
from wan_train.run.samples import Sample, samples_of
from wan_train.run.state import RunState
from wan_train.views.dataset_page.selection import choose, material_of
from wan_train.views.model import RunReader
from wan_train.views.report.contact_sheet import sheet
from wan_train.views.report.report_data import ShownDataset, Story

MOST_PICTURES = 24
_MOST_COMMAND_BYTES = 100_000
_PACKAGES = ("torch", "accelerate", "diffusers", "transformers", "safetensors", "bitsandbytes", "xformers")


def read_story(run: RunDirectory, now: float, *, with_pictures: bool = True) -> Story:
    """The run as its records tell it at `now`. Raises what RunReader raises: BadInputError, CorruptRecordError."""
    view, events = RunReader(run).refresh()
    plan, state = view.plan, view.state
    dataset, missing = _dataset(run, plan) if with_pictures else (None, None)
    samples = samples_of(run, plan, state)
    return Story(
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
    sheets = [sheet(samples, expert) for expert in Expert]
    return previews_of(
        {
            sample.path: MediaKind.VIDEO if sample.kind is SampleKind.CLIP else MediaKind.IMAGE
            for shown in sheets
            for sample in shown.cells.values()
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
    ahead = layout_of(
        inventory,
        epochs=plan.epochs,
        accumulation=plan.recipe.experts[0].training.gradient_accumulation_steps,
        image_to_video=plan.recipe.task is Task.I2V,
    )
    if not any(each.files for each in ahead.subsets):
        return None, "its files are not where they were"
    check = Check(
        config=run.dataset_config, is_written=True, reading=reading, inventory=inventory, problems=inventory.problems
    )
    selection = choose(ahead, {}, most=MOST_PICTURES)
    return ShownDataset(check=check, outlook=ahead, selection=selection, material=material_of(ahead, selection)), None

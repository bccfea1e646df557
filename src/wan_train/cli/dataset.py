"""`wan-train dataset check`: every problem of a dataset, before anything is trained."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from wan_train.base.errors import ExitCode, NotReadyError
from wan_train.base.settings import Settings
from wan_train.caching.survey import reading_of
from wan_train.cli.dataset_fix import Fixed, fix
from wan_train.cli.html_files import dataset_target, write_dataset_page
from wan_train.cli.options import TaskWord
from wan_train.cli.output import Sink
from wan_train.cli.request import parse_resolution
from wan_train.dataset.deep_scan import Depth
from wan_train.dataset.layout import Layout, layout_of
from wan_train.dataset.model import GUIDE_READING, NEWEST_READING, DatasetOverrides, TrainerReading
from wan_train.dataset.resolve import resolve_dataset
from wan_train.dataset.scan import Check
from wan_train.dataset.scan import check as look
from wan_train.engine import tokenizer
from wan_train.engine import trainer as trainers
from wan_train.engine.capabilities import KNOWN_COMMITS
from wan_train.recipe import load as recipes
from wan_train.recipe.model import Training
from wan_train.recipe.terms import Task

_PATIENCE_SECONDS = 1.0
_TASKS = {TaskWord.T2V: Task.T2V, TaskWord.I2V: Task.I2V}
_BY_VERSION = {"guide": GUIDE_READING, "d0a1930": GUIDE_READING, "v0.3.4": NEWEST_READING}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line said; None for what it did not say."""

    path: str
    task: TaskWord
    engine: str | None
    resolution: str | None
    batch_size: int | None
    repeats: int | None
    is_thorough: bool
    fix: bool
    epochs: int | None
    html: str | None
    yes: bool


def check(asked: Asked, settings: Settings, sink: Sink) -> int:
    """Show all problems and what will be trained; the exit code says whether something stops."""
    target = dataset_target(asked.html, sink, yes=asked.yes) if asked.html is not None else None
    training = _training(asked)
    reading = _reading(asked.engine, settings)
    found = _look(asked, reading, sink)
    fixed = None
    if asked.fix:
        fixed = fix(found, sink, yes=asked.yes)
        if fixed.done:
            found = _look(asked, reading, sink)
    ahead = None
    if found.inventory is not None:
        ahead = layout_of(
            found.inventory,
            epochs=training.max_train_epochs,
            accumulation=training.gradient_accumulation_steps,
            image_to_video=asked.task is TaskWord.I2V,
        )
    _show(found, ahead, fixed, sink)
    if target is not None:
        write_dataset_page(found, ahead, target, sink)
        sink.line(f"The pictures, their crops and captions: {target}")
    return ExitCode.BAD_INPUT if found.stops else ExitCode.DONE


def _training(asked: Asked) -> Training:
    """What the shipped recipe says, with the epochs that were asked for."""
    recipe = recipes.shipped(_TASKS[asked.task])
    changes = {"max_train_epochs": asked.epochs}
    return recipes.override(recipe, changes, names={"max_train_epochs": "--epochs"}).experts[0].training


def _look(asked: Asked, reading: TrainerReading, sink: Sink) -> Check:
    return look(
        resolve_dataset(asked.path),
        reading=reading,
        overrides=DatasetOverrides(
            resolution=parse_resolution(asked.resolution), batch_size=asked.batch_size, num_repeats=asked.repeats
        ),
        tokenizer=tokenizer.cached_file(os.environ),
        depth=Depth.THOROUGH if asked.is_thorough else Depth.QUICK,
        progress=_progress(sink),
    )


def _progress(sink: Sink) -> Callable[[int, int], None]:
    """A counter on one line of the terminal, for the minutes that many pictures take."""
    if not sink.is_terminal or sink.as_json:
        return lambda _done, _all: None
    began = time.monotonic()

    def show(done: int, to_do: int) -> None:
        is_last = done == to_do
        if time.monotonic() - began > _PATIENCE_SECONDS and (done % 50 == 0 or is_last):
            sys.stderr.write("\r\x1b[K" if is_last else f"\rdecoding pictures: {done:,} of {to_do:,}")
            sys.stderr.flush()

    return show


def _reading(version: str | None, settings: Settings) -> TrainerReading:
    """How the named version reads datasets, else the installed one, else the guide's."""
    if version is None:
        version = KNOWN_COMMITS.get(trainers.read_commit(settings.trainer_dir) or "")
    if version is not None:
        return replace(_BY_VERSION[version], root=settings.trainer_dir)
    try:
        return reading_of(trainers.find_musubi(settings))
    except NotReadyError:
        return GUIDE_READING


def _show(found: Check, ahead: Layout | None, fixed: Fixed | None, sink: Sink) -> None:
    if sink.as_json:
        from wan_train.views.json_records import check_json

        data = check_json(found, ahead)
        if fixed is not None:
            data["mended"] = [
                {
                    "path": str(each.fix.path),
                    "now": str(each.fix.target),
                    "what": each.fix.what,
                    "kept": str(each.kept),
                }
                for each in fixed.done
            ]
            data["left"] = [{"path": str(path), "why": why} for path, why in fixed.skipped]
        sink.data(data)
        return
    from wan_train.views.dataset_tables import problem_lines, trained_lines

    sink.show(problem_lines(found))
    if ahead is not None:
        sink.show(trained_lines(ahead, stops=found.stops))

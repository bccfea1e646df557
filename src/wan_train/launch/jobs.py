"""The jobs of a launch, from arguments or a jobs.toml. All their problems are found before anything is rented."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from wan_train.base.errors import BadInputError
from wan_train.base.home import expanded
from wan_train.base.text import one_line, slug
from wan_train.base.units import GB
from wan_train.dataset.layout import DatasetSummary, summary
from wan_train.dataset.model import GUIDE_READING, DatasetOverrides, Inventory
from wan_train.dataset.resolve import resolve_dataset
from wan_train.dataset.scan import check as check_dataset
from wan_train.engine import capabilities, traits
from wan_train.launch.model import Job, Part, Work
from wan_train.launch.offers import models_bytes
from wan_train.launch.shipment import Shipment, shipment_of
from wan_train.recipe import load as recipes
from wan_train.recipe.model import Recipe
from wan_train.recipe.terms import EngineKind, Task
from wan_train.run.disk import disk_need
from wan_train.run.end_epochs import planned_ends
from wan_train.run.speeds import batch_cost, settings_text
from wan_train.run.titles import problem_with_author, problem_with_title

FOLDER = PurePosixPath("/workspace/wan-train-launch")
"""Folder on a box for what was sent, with one folder for each job."""
RECIPE_NAME = "recipe.toml"
VERSION = "d0a1930"
"""Version of the trainer that `wan-train provision` installs."""
_BOX_GB = 110
_BOTH_TASKS_GB = 160
"""Disk of a box without datasets and runs; see docs/vast.md."""
_MOST_JOBS = 10_000
_MOST_BYTES = 4_000_000
_KEYS = {"title": str, "author": str, "dataset": str, "recipe": str, "options": list}
OWN_OPTIONS = frozenset(
    {
        "--title",
        "--dataset",
        "--author",
        "--recipe",
        "--engine",
        "--yes",
        "-y",
        "--json",
        "--detach",
        "--dry-run",
        "--script",
        "--then",
        "--max-hours",
        "--grace",
        "--runs-dir",
        "--workspace",
        "--cache-dir",
        "--musubi-dir",
        "--musubi-python",
        "--price",
        "--budget",
        "--quiet",
        "-q",
        "-d",
        "--help",
        "-h",
    }
)
"""Options of `wan-train train` that the launch sets itself, or that apply to this computer."""
_FILES = frozenset({"--sample-prompts", "--preview-prompts", "--network-weights", "--preview"})
"""Options that name a local file, which is not on the box."""
_SECRETS = {
    "--upload": "needs your token, and no secret goes to a box; upload from here: `wan-train upload`",
    "--upload-with": "belongs to --upload, which a launch does not have",
    "--notify": "is an option of the launch: messages are sent from here",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """One requested job. `where` names it in messages; its paths are relative to `folder`."""

    where: str
    folder: Path
    dataset: str
    title: str | None = None
    author: str | None = None
    recipe: str | None = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A job with a checked dataset and recipe, what is sent for it, and the work it takes."""

    job: Job
    shipment: Shipment
    counted: DatasetSummary
    recipe: Recipe
    work: Work


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """Parsed options of `wan-train train`: their problems, or else the recipe and the changes to the dataset."""

    problems: tuple[str, ...] = ()
    recipe: Recipe = field(default_factory=partial(recipes.shipped, Task.T2V))
    overrides: DatasetOverrides = field(default_factory=DatasetOverrides)


ReadOptions = Callable[[Sequence[str]], JobOptions]


def requests_of_datasets(
    datasets: Sequence[str],
    *,
    title: str | None,
    author: str | None,
    recipe: str | None,
    options: Sequence[str],
    folder: Path,
) -> tuple[JobRequest, ...]:
    """Return the jobs of `launch DATASET…`. Several datasets are titled after their folders. Raises BadInputError."""
    if title is not None and len(datasets) > 1:
        raise BadInputError(
            f"--title names one LoRA, and {len(datasets)} datasets were given",
            hint="Leave --title out: each LoRA is named after its folder.\nOr write a jobs.toml with a title for each.",
        )
    return tuple(
        JobRequest(
            where=f"dataset {one_line(dataset)}",
            folder=folder,
            dataset=dataset,
            title=title,
            author=author,
            recipe=recipe,
            options=tuple(options),
        )
        for dataset in datasets
    )


def read_jobs(path: Path) -> tuple[JobRequest, ...]:
    """The jobs of a jobs.toml: `[[jobs]]` tables over an optional `[defaults]`.

    Raises BadInputError with every problem.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise BadInputError(f"{path} is larger than {_MOST_BYTES:,} bytes", hint="Split it into several launches.")
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror}", hint="Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path} is not TOML: {one_line(str(error))}", hint=_EXAMPLE) from error
    problems = [f"{one_line(key)}: unknown" for key in data if key not in {"jobs", "defaults"}]
    defaults, rows = data.get("defaults", {}), data.get("jobs", [])
    if not isinstance(defaults, dict):
        problems.append("defaults: must be a table, [defaults]")
        defaults = {}
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        problems.append("jobs: must be tables, one [[jobs]] for each")
        rows = []
    elif not 1 <= len(rows) <= _MOST_JOBS:
        problems.append(f"jobs: {len(rows):,} [[jobs]], must be from 1 to {_MOST_JOBS:,}")
        rows = []
    problems += _problems_of("defaults", defaults)
    requests = []
    for number, row in enumerate(rows, start=1):
        where = f"jobs {number}"
        problems += _problems_of(where, row)
        laid = {**defaults, **row}
        if "dataset" not in laid:
            problems.append(f"{where}: dataset is missing")
        requests.append(laid)
    if problems:
        raise BadInputError("\n".join([f"{path} cannot be used:", *(f"  {each}" for each in problems)]), hint=_EXAMPLE)
    folder = path.absolute().parent
    return tuple(
        JobRequest(
            where=f"jobs {number}",
            folder=folder,
            dataset=laid["dataset"],
            title=laid.get("title"),
            author=laid.get("author"),
            recipe=laid.get("recipe"),
            options=tuple(laid.get("options", ())),
        )
        for number, laid in enumerate(requests, start=1)
    )


_EXAMPLE = """Write, for each LoRA:
[[jobs]]
title = "blackcat"
dataset = "cats\""""


def _problems_of(where: str, row: Mapping[str, Any]) -> list[str]:
    problems = []
    for key, value in row.items():
        kind = _KEYS.get(key)
        if kind is None:
            problems.append(f"{where}: {one_line(key)} is unknown, known are {', '.join(_KEYS)}")
        elif not isinstance(value, kind):
            problems.append(f"{where}: {key} must be {'a list of words' if kind is list else 'text'}")
        elif isinstance(value, list) and not all(isinstance(each, str) for each in value):
            problems.append(f"{where}: options must be a list of words, such as ['--epochs', '50']")
    return problems


def prepare(
    requests: Sequence[JobRequest], *, read_options: ReadOptions, say: Callable[[str], None] = lambda _: None
) -> tuple[Ready, ...]:
    """Check every job as `dataset check` and `recipe show` do. Raises BadInputError with every problem of all jobs.

    `say` gets the name of each dataset before its files are read.
    """
    problems: list[str] = []
    found: list[Ready] = []
    titles: dict[str, str] = {}
    names: set[str] = set()
    for request in requests:
        say(request.dataset)
        ready = _ready(request, read_options, problems, names)
        if ready is None:
            continue
        other = titles.get(ready.job.title.casefold())
        if other is not None:
            problems.append(f"{request.where}: the title {one_line(ready.job.title)} is also used by {other}")
        titles[ready.job.title.casefold()] = request.where
        found.append(ready)
    if problems:
        count = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
        raise BadInputError(
            "\n".join([f"nothing was rented: {count}", *(f"  {each}" for each in problems)]),
            hint="Fix them, then start again: `wan-train dataset check DATASET` says more.",
        )
    return tuple(found)


def _ready(request: JobRequest, read_options: ReadOptions, problems: list[str], names: set[str]) -> Ready | None:
    before = len(problems)
    recipe_path = _recipe_path(request)
    words = _read_options(request.options, recipe_path, read_options)
    problems += [f"{request.where}: {each}" for each in words.problems]
    if request.author is not None and (problem := problem_with_author(request.author)):
        problems.append(f"{request.where}: {problem}")
    inventory = _inventory(request, words.overrides, problems)
    title = request.title if request.title is not None else _title(inventory)
    if problem := problem_with_title(title):
        problems.append(f"{request.where}: {problem}")
    if inventory is None or len(problems) > before:
        return None
    name, recipe = _unique(slug(title), names), words.recipe
    # The box gets the dataset as it is here, and applies the options to it itself.
    sent = inventory if words.overrides == DatasetOverrides() else _inventory(request, DatasetOverrides(), problems)
    if sent is None:
        return None
    try:
        shipment = _shipment(sent, name, recipe_path)
    except OSError as error:
        problems.append(f"{request.where}: {error.filename}: {error.strerror}")
        return None
    options = (*(("--author", request.author) if request.author is not None else ()), *request.options)
    counted = summary(inventory, image_to_video=recipe.task is Task.I2V)
    try:
        ends = _ends(recipe, counted)
    except BadInputError as error:
        problems += [f"{request.where}: {line.strip()}" for line in error.message.split("\n")]
        return None
    work = work_of(recipe, counted, shipment.bytes, ends)
    job = Job(
        name=name,
        title=title,
        dataset=inventory.config.path,
        dataset_stamp=shipment.stamp,
        options=options,
        recipe=recipe_path,
        work=work,
    )
    return Ready(job=job, shipment=shipment, counted=counted, recipe=recipe, work=work)


def _recipe_path(request: JobRequest) -> Path | None:
    return None if request.recipe is None else request.folder / expanded(request.recipe)


def _read_options(words: Sequence[str], recipe: Path | None, read_options: ReadOptions) -> JobOptions:
    """Refuse options that the launch sets itself or that cannot be on the box, each with its reason; parse the rest."""
    problems = []
    for word in words:
        if word == "--":
            break
        flag = word.partition("=")[0]
        if flag in OWN_OPTIONS:
            problems.append(f"{flag} is given by the launch itself")
        elif flag in _FILES:
            problems.append(f"{flag} names a file that is not on the box")
        elif flag in _SECRETS:
            problems.append(f"{flag} {_SECRETS[flag]}")
    if problems:
        return JobOptions(problems=tuple(problems))
    return read_options([*(("--recipe", str(recipe)) if recipe is not None else ()), *words])


def _inventory(request: JobRequest, overrides: DatasetOverrides, problems: list[str]) -> Inventory | None:
    try:
        located = resolve_dataset(request.dataset, cwd=request.folder)
    except BadInputError as error:
        problems.append(f"{request.where}: {error.message}")
        return None
    found = check_dataset(located, reading=GUIDE_READING, overrides=overrides)
    stopping = [each for each in found.problems if each.severity.rank == 0]
    problems += [f"{request.where}: {each.line}" for each in stopping[:_SHOWN]]
    if len(stopping) > _SHOWN:
        problems.append(f"{request.where}: and {len(stopping) - _SHOWN} more")
    return None if stopping else found.inventory


_SHOWN = 10
"""Most problems of one dataset that are listed."""


def _title(inventory: Inventory | None) -> str:
    return inventory.config.path.parent.name if inventory is not None else "unknown"


def _unique(name: str, names: set[str]) -> str:
    number = 1
    found = name
    while found.casefold() in names:
        number += 1
        found = f"{name}-{number}"
    names.add(found.casefold())
    return found


def _ends(recipe: Recipe, counted: DatasetSummary) -> Mapping[str, int]:
    """The epoch after which each expert ends, of those with an earlier --until. Raises BadInputError.

    The box may be able to read a video whose length is unknown here, and decides then.
    """
    if counted.batches_per_epoch is None:
        return {}
    return planned_ends(recipe, counted.batches_per_epoch, capabilities.stored(VERSION)).epochs


def work_of(recipe: Recipe, counted: DatasetSummary, dataset_bytes: int, ends: Mapping[str, int]) -> Work:
    """The work of a job, as far as it is known without a box. `ends` are earlier last epochs by expert."""
    batches = counted.batches_per_epoch or 0
    trainer = traits.traits_of(EngineKind.MUSUBI)
    need = disk_need(trainer, recipe, counted.cache_bytes)
    return Work(
        trainer=f"{EngineKind.MUSUBI} {VERSION}",
        parts=tuple(
            Part(
                settings=settings_text(spec.training),
                batches=batches,
                epochs=ends.get(spec.expert.value, spec.training.max_train_epochs),
                state_bytes=trainer.state_bytes(spec.training.network_dim),
            )
            for spec in recipe.experts
        ),
        batch_cost=batch_cost(counted),
        items=counted.items_with_repeats or counted.files,
        download_bytes=models_bytes((recipe.task.word,)),
        dataset_bytes=dataset_bytes,
        result_bytes=need.states + need.loras,
    )


def disk_gb(ready: Sequence[Ready], boxes: int = 1) -> float:
    """GB of disk that each of `boxes` needs for its share of these jobs and one more, rounded up to tens."""
    tasks = {each.recipe.task for each in ready}
    sizes = (each.work.dataset_bytes + each.work.result_bytes + each.counted.cache_bytes for each in ready)
    more = sum(sorted(sizes, reverse=True)[: math.ceil(len(ready) / boxes) + 1])
    return (_BOTH_TASKS_GB if len(tasks) > 1 else _BOX_GB) + 10.0 * math.ceil(more / GB / 10)


def shipment_of_job(job: Job) -> Shipment:
    """The shipment for a recorded job. Raises BadInputError if its dataset changed after the check."""
    problems: list[str] = []
    request = JobRequest(where=f"job {job.name}", folder=Path.cwd(), dataset=str(job.dataset))
    inventory = _inventory(request, DatasetOverrides(), problems)
    try:
        shipment = None if inventory is None else _shipment(inventory, job.name, job.recipe)
    except OSError as error:
        problems.append(f"{error.filename}: {error.strerror}")
        shipment = None
    if shipment is None or shipment.stamp != job.dataset_stamp:
        why = problems[0] if problems else f"{job.dataset.parent} was changed after it was checked"
        raise BadInputError(why, hint="Launch this job again.")
    return shipment


def _shipment(inventory: Inventory, name: str, recipe: Path | None) -> Shipment:
    more = {} if recipe is None else {RECIPE_NAME: recipe.read_text(encoding="utf-8-sig")}
    return shipment_of(inventory, FOLDER / name, more=more)

"""What would fail late, checked before a run exists: models, GPUs, disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from wan_train.base.errors import NotReadyError
from wan_train.engine.commands import ModelPaths
from wan_train.engine.tensors import BrokenFileError, read_header
from wan_train.gpu import selection
from wan_train.gpu.model import Gpu, GpuReading
from wan_train.gpu.selection import choose, why_none
from wan_train.recipe.model import Recipe
from wan_train.recipe.model_files import locate
from wan_train.run.directory import RunDirectory
from wan_train.run.plan import DiskNeed, Plan, disk_for_next_save

_GB = 1e9


def stand_ins(recipe: Recipe) -> ModelPaths:
    """Names for the models that the rehearsal trainer makes itself: it needs no files."""
    return ModelPaths(
        vae=Path("stand-in-vae"),
        t5=Path("stand-in-t5"),
        dit={spec.expert.value: Path(f"stand-in-dit-{spec.expert.value}") for spec in recipe.experts},
    )


def find_models(recipe: Recipe, trainer_dir: Path) -> ModelPaths:
    return ModelPaths(
        vae=locate(recipe.vae, trainer_dir),
        t5=locate(recipe.t5, trainer_dir),
        dit={spec.expert.value: locate(spec.dit, trainer_dir) for spec in recipe.experts},
    )


def check_models(models: ModelPaths) -> str | None:
    """The DiT's element type; raises NotReadyError that names every missing or damaged model file."""
    problems = []
    dtypes: dict[str, str | None] = {}
    for path in (models.vae, models.t5, *models.dit.values()):
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif path.suffix == ".safetensors":
            try:
                dtypes[str(path)] = read_header(path).main_dtype()
            except BrokenFileError as error:
                problems.append(error.message)
        elif path.stat().st_size == 0:
            problems.append(f"{path} is empty")
    if problems:
        listing = "".join(f"\n  {problem}" for problem in problems)
        what = "1 model file" if len(problems) == 1 else f"{len(problems)} model files"
        raise NotReadyError(
            f"this box is not ready: {what} cannot be used:{listing}",
            hint="Run `wan-train provision` to fetch what is missing or damaged, "
            "or `wan-train rehearse` to try the pipeline without models.",
        )
    found = {dtypes.get(str(path)) for path in models.dit.values()}
    if len(found) > 1:
        raise NotReadyError(
            f"the two experts' weights differ in precision: {', '.join(sorted(map(str, found)))}",
            hint="Take both in fp16 or both in bf16; `wan-train provision` fetches a pair.",
        )
    return next(iter(found), None)


def usable_gpus(reading: GpuReading, gpus: str | None, visible: str | None) -> tuple[Gpu, ...]:
    """The GPUs this run may use; raises BadInputError for an unknown one, NotReadyError when there is none."""
    chosen = choose(reading, gpus, visible)
    if not chosen:
        raise NotReadyError(
            f"there is no GPU to train on: {why_none(reading, visible)}",
            hint=f"{selection.how_to_show(reading, visible)} `wan-train rehearse` needs no GPU.",
        )
    return chosen


def check_disk(need: DiskNeed, run_dir: Path, cache_dirs: Iterable[Path]) -> None:
    """Raises NotReadyError with the numbers when states, LoRAs and caches will not fit."""
    wanted: dict[int, int] = {}
    where: dict[int, Path] = {}
    caches = [existing_parent(path) for path in cache_dirs]
    amounts: Mapping[Path, int] = {existing_parent(run_dir): need.states + need.loras}
    for path, amount in [*amounts.items(), *((path, need.caches // len(caches)) for path in caches)]:
        device = path.stat().st_dev
        where.setdefault(device, path)
        wanted[device] = wanted.get(device, 0) + amount
    for device, amount in wanted.items():
        free = shutil.disk_usage(where[device]).free
        if free < amount:
            raise NotReadyError(
                f"the disk of {where[device]} has {free / _GB:.1f} GB free and this run needs {amount / _GB:.1f} GB: "
                f"states {need.states / _GB:.1f}, LoRAs {need.loras / _GB:.1f}, caches {need.caches / _GB:.1f}",
                hint="Remove old runs (`wan-train runs` lists them), or choose another disk with --runs-dir.",
            )


def check_disk_to_go_on(run: RunDirectory, plan: Plan, trainings: int) -> None:
    """Raises NotReadyError with the numbers when a run that goes on would be stopped at its first state."""
    free = shutil.disk_usage(run.path).free
    needed = min(trainings, len(plan.gpu_uuids)) * disk_for_next_save(plan)
    if free < needed:
        raise NotReadyError(
            f"the disk of {run.path} has {free / _GB:.1f} GB free and the next states and LoRAs need "
            f"{needed / _GB:.1f} GB",
            hint=f"Remove old runs (`wan-train runs` lists them), then: wan-train resume {run.run_id}",
        )


def check_writable(directories: Iterable[Path], what: str) -> None:
    for directory in directories:
        parent = existing_parent(directory)
        if not parent.is_dir():
            raise NotReadyError(
                f"{what} {directory} cannot be made: {parent} is not a directory", hint="Choose another place."
            )
        if not os.access(parent, os.W_OK | os.X_OK):
            raise NotReadyError(
                f"{what} {directory} cannot be written: {parent} is read-only for you",
                hint="Choose another place with --cache-dir DIR or --runs-dir DIR.",
            )


def existing_parent(path: Path) -> Path:
    """The path itself or its nearest ancestor that exists."""
    while not path.exists():
        path = path.parent
    return path

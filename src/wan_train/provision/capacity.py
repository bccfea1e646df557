"""Checks of RAM and disk space, which refuse early and give the numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_train.base.files import existing_parent
from wan_train.base.host import available_ram, total_ram
from wan_train.base.units import GB
from wan_train.gpu.model import Gpu
from wan_train.provision.driver_checks import GpuFacts, adapted, card
from wan_train.provision.steps import Finding, State, Step, blocked, ready, warning
from wan_train.recipe.model import Recipe
from wan_train.run.disk import by_disk


def room(folder: Path, needed: int) -> Finding:
    """Whether `needed` bytes fit where `folder` is or will be; BLOCKED with the numbers if not."""
    place = existing_parent(folder)
    free = shutil.disk_usage(place).free
    numbers = f"{needed / GB:.1f} GB needed, {free / GB:.1f} GB free at {place}"
    if needed <= free:
        return ready(numbers)
    return blocked(
        f"the disk is too small: {numbers}",
        "Free some disk space, or rent a box with a larger disk; a rented box's disk cannot grow later.",
    )


LOAD_BYTES = 29_100_000_000
"""RAM of one trainer that loads with block swapping: the fp16 DiT of 28.6 GB, and 0.5 GB beside it.
Measured on a CPU with 8 of 40 blocks and scaled (docs/gpu.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ram:
    """RAM in bytes: what this container may use at most, and what is free for it now."""

    total: int
    available: int


def ram_now() -> Ram:
    return Ram(total=total_ram(), available=available_ram())


def ram_step(facts: GpuFacts, recipe: Recipe, python: Path, read: Callable[[], Ram] = ram_now) -> Step:
    def check() -> Finding:
        usable = facts.usable()
        swapping = [gpu for gpu in usable if adapted(recipe, gpu, python).experts[0].training.blocks_to_swap]
        return judge_ram(read(), usable, swapping)

    return Step("ram", "RAM", check)


def judge_ram(ram: Ram, usable: Sequence[Gpu], swapping: Sequence[Gpu]) -> Finding:
    """Whether the RAM is enough to load the DiT. `swapping` are the usable GPUs that need block swapping.

    With block swapping, the whole file is read into RAM and cast there. Without, it goes to the GPU tensor by tensor.
    """
    has = f"{ram.total / GB:.0f} GB of RAM, {ram.available / GB:.0f} GB of it free"
    needs = f"loading an expert takes {LOAD_BYTES / GB:.0f} GB"
    bigger = "Rent a box with more RAM: at least 32 GB, 64 GB to load both experts at once."
    if ram.total < LOAD_BYTES and not swapping:
        detail = f"{has}; {needs} on a card with less than 36 GB"
        return Finding(State.READY if usable else State.WARNING, detail, hint=None if usable else bigger)
    if ram.total < LOAD_BYTES:
        others = ",".join(gpu.number for gpu in usable if gpu not in swapping)
        detail = f"{has}; {needs}, since {card(swapping[0])} is too small for the whole DiT"
        if others:
            return warning(detail, f"Train where nothing is swapped: `wan-train --gpus {others}`. {bigger}")
        return blocked(detail, bigger)
    if swapping and ram.available < LOAD_BYTES:
        return warning(
            f"{has}; {needs}; a training started now would be killed",
            "Find what uses it: `ps aux --sort=-rss | head`. Wait for it or end it.",
        )
    if len(swapping) > 1 and ram.available < 2 * LOAD_BYTES:
        return ready(f"{has}; {needs}, so the two experts are loaded one after the other")
    return ready(has)


def rooms(needs: Mapping[Path, int]) -> Finding:
    """Whether the downloads fit, counted for each file system. `needs` maps each place to bytes."""
    found = [room(folder, amount) for folder, amount in by_disk(needs.items()).items()]
    chosen = [finding for finding in found if finding.state is State.BLOCKED] or found
    return Finding(chosen[0].state, "; ".join(finding.detail for finding in chosen), hint=chosen[0].hint)


def judge_spare(folder: Path, needs: Mapping[Path, int], run: int) -> Finding:
    """Whether a run of `run` bytes fits in `folder` once everything in `needs` is downloaded."""
    place = existing_parent(folder)
    device = place.stat().st_dev
    fetched = sum(size for path, size in needs.items() if existing_parent(path).stat().st_dev == device)
    free = shutil.disk_usage(place).free - fetched
    detail = f"{max(0, free) / GB:.1f} GB will be free at {place}; a run of both experts takes up to {run / GB:.1f} GB"
    if free >= run:
        return ready(f"{detail} plus its caches")
    return warning(
        detail, "Remove old runs (`wan-train runs` lists them), or `export WAN_TRAIN_RUNS_DIR=DIR` on another disk."
    )

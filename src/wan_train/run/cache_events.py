"""The cache manager of one run, and its findings as events."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

from wan_train.base.clock import Clock
from wan_train.caching.locks import CacheLock
from wan_train.caching.manager import CacheManager, CachingStep, Cleared, Disturbed, Finding, Refused, UpToDate
from wan_train.caching.survey import CacheInputs
from wan_train.run.directory import RunDirectory
from wan_train.run.events import CachesCleared, CachesDisturbed, CachesUpToDate, Event, StepRefused
from wan_train.run.plan import CACHE_KINDS, Plan


def cache_manager(run: RunDirectory, plan: Plan, clock: Clock, lock_dir: Path) -> CacheManager:
    inputs = CacheInputs(config=run.dataset_config, trainer=plan.trainer, models=plan.models, task=plan.recipe.task)
    folders = [Path(directory) for directory in plan.dataset.cached_items]
    steps = [
        CachingStep(id=step.id, kind=CACHE_KINDS[step.kind], record=run.caches(step.id))
        for step in plan.steps
        if step.kind in CACHE_KINDS and folders
    ]
    lock = CacheLock(lock_dir, plan.run_id, folders)
    return CacheManager(inputs=inputs, steps=steps, clock=clock, lock=lock)


def event_of(finding: Finding, at: float) -> Event:
    """`at` in seconds since 1970."""
    match finding:
        case UpToDate():
            return CachesUpToDate(at=at, step=finding.step, items=finding.items, removed=finding.removed)
        case Cleared():
            return CachesCleared(
                at=at,
                step=finding.step,
                items=finding.items,
                keep=finding.items - finding.make,
                make=finding.make,
                made=finding.made,
                removed=finding.removed,
            )
        case Disturbed():
            return CachesDisturbed(at=at, step=finding.step, what=finding.what)
        case Refused():
            return StepRefused(at=at, step=finding.step, diagnosis=finding.diagnosis)
        case _:
            assert_never(finding)

"""How long a run will take, from what the same work took on this box: a pure sum."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wan_train.recipe.model import ExpertSpec
from wan_train.run.plan import Plan, Quote, StepKind
from wan_train.run.speeds import Expected, Speed, expected, key_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Cards:
    """The cards that a run can begin on: the name of the first, how many are free, whether one holds both cachings."""

    name: str
    free: int
    hold_both: bool


def quote(plan: Plan, speeds: Sequence[Speed], cards: Cards) -> Quote | None:
    """Seconds from the first process to the end, loading, caching, saving and samples included.

    None where a batch was never timed with this card, trainer and settings. What else was never timed is left out and
    named. Waiting for a GPU is not in it.
    """
    lanes = max(1, cards.free)
    at_once = min(lanes, len(plan.recipe.experts))
    found = [(spec, _training(plan, speeds, cards, spec, at_once)) for spec in plan.recipe.experts]
    known = [(spec, speed) for spec, speed in found if speed is not None]
    batches = plan.dataset.batches_per_epoch
    if len(known) < len(found) or batches is None:
        return None
    missing = dict.fromkeys(_missing(plan, [speed for _, speed in known]))
    trainings = [_seconds(plan, spec, speed, batches) for spec, speed in known]
    caching = [_caching(plan, speeds, cards, kind) for kind in (StepKind.CACHE_LATENTS, StepKind.CACHE_TEXT)]
    if None in caching:
        missing["caching"] = None
    cached = [each or 0.0 for each in caching]
    first = known[0][1]
    return Quote(
        seconds=(max(cached) if lanes > 1 or cards.hold_both else sum(cached)) + _in_turn(trainings, lanes),
        seconds_per_batch=first.per_unit,
        measured=first.at,
        scaled_from=first.scaled_from,
        without=tuple(missing),
    )


def _training(plan: Plan, speeds: Sequence[Speed], cards: Cards, spec: ExpertSpec, at_once: int) -> Expected | None:
    if plan.batch_cost is None:
        return None
    key = key_of(plan.trainer, StepKind.TRAIN, spec.training, card=cards.name, at_once=at_once)
    return expected(speeds, key, cost=plan.batch_cost, units=plan.steps_of(spec.expert) or 0)


def _seconds(plan: Plan, spec: ExpertSpec, speed: Expected, batches: int) -> float:
    epochs = plan.epochs_of(spec.expert)
    samples = 0
    if plan.samples is not None:
        rounds = epochs // plan.samples.every_epochs + plan.samples.at_first
        samples = rounds * len(plan.samples.prompts)
    return (speed.beside or 0.0) + batches * epochs * speed.per_unit + samples * (speed.per_sample or 0.0)


def _missing(plan: Plan, speeds: Sequence[Expected]) -> Iterator[str]:
    if any(speed.beside is None for speed in speeds):
        yield "loading"
    if plan.samples is not None and any(speed.per_sample is None for speed in speeds):
        yield "samples"


def _caching(plan: Plan, speeds: Sequence[Speed], cards: Cards, kind: StepKind) -> float | None:
    """Seconds of one caching step, 0 where there is nothing to make; None where it was never timed."""
    step = next((step for step in plan.steps if step.kind is kind), None)
    need = plan.dataset.caches.get(step.id) if step is not None else None
    if step is None or need is None or not need.make:
        return 0.0
    cost = (plan.batch_cost or 1.0) if kind is StepKind.CACHE_LATENTS else 1.0
    at_once = 2 if cards.free > 1 or cards.hold_both else 1
    key = key_of(plan.trainer, kind, None, card=cards.name, at_once=at_once)
    found = expected(speeds, key, cost=cost, units=need.make)
    return None if found is None or found.beside is None else found.beside + need.make * found.per_unit


def _in_turn(seconds: Sequence[float], lanes: int) -> float:
    """When the last of them ends, each begun on the lane that is free first."""
    free = [0.0] * lanes
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def dollars_of(found: Quote, per_hour: float) -> float:
    """What a quoted run costs alone on its box."""
    return found.seconds / 3600 * per_hour

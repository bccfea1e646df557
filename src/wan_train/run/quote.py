"""The expected time of a run, as a pure sum of times measured for the same work."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from wan_train.recipe.measured import Tuned
from wan_train.recipe.model import ExpertSpec
from wan_train.run.plan import Plan, Quote, QuoteBasis, StepKind
from wan_train.run.speeds import SAME_COST, Expected, Speed, expected, item_cost, key_of, settings_text

_AROUND_SECONDS = 1.0
"""Overhead before the first program and after the last: start the supervisor, read caches and GPUs, check results.
Measured with the default intervals on a box with two cores: 0.8 to 1.2."""
_RANGE = 0.1
"""If trainings with the same work differ by more than this fraction, the quote shows a range."""

_Pick = Callable[[Sequence[float]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cards:
    """The cards a run can start on: the first one's name, how many are free, whether one fits both caching steps."""

    name: str
    free: int
    hold_both: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """The expected speed of one expert, and where it comes from."""

    spec: ExpertSpec
    speed: Expected
    basis: QuoteBasis


def quote(plan: Plan, speeds: Sequence[Speed], cards: Cards) -> Quote | None:
    """Return the expected seconds of the whole run, including loading, caching, saving and samples.

    The speed of a batch comes from earlier trainings on this box, else from `tune` (`plan.tuned`); None if neither
    timed one. Other parts that were never timed are left out and named. Waiting for a GPU is not included.
    """
    found = _quoted(plan, speeds, cards, statistics.median)
    if found is None or found.trainings == 1:
        return found
    least, most = _quoted(plan, speeds, cards, min), _quoted(plan, speeds, cards, max)
    if least is None or most is None or most.seconds <= least.seconds * (1 + _RANGE):
        return found
    return replace(found, least=least.seconds, most=most.seconds)


def _quoted(plan: Plan, speeds: Sequence[Speed], cards: Cards, pick: _Pick) -> Quote | None:
    lanes = max(1, cards.free)
    at_once = min(lanes, len(plan.recipe.experts))
    found = [_training(plan, speeds, cards, spec, at_once=at_once, pick=pick) for spec in plan.recipe.experts]
    known = [each for each in found if each is not None]
    batches = plan.dataset.batches_per_epoch
    if len(known) < len(found) or batches is None:
        return None
    missing = dict.fromkeys(_missing(plan, known))
    trainings = [_seconds(plan, each, batches) for each in known]
    caching = [_caching(plan, speeds, cards, kind, pick) for kind in (StepKind.CACHE_LATENTS, StepKind.CACHE_TEXT)]
    if None in caching:
        missing["caching"] = None
    cached = [each or 0.0 for each in caching]
    first = known[0]
    return Quote(
        seconds=_AROUND_SECONDS
        + (max(cached) if lanes > 1 or cards.hold_both else sum(cached))
        + _in_turn(trainings, lanes),
        seconds_per_batch=first.speed.per_unit,
        measured=first.speed.at,
        scaled_from=first.speed.scaled_from,
        without=tuple(missing),
        basis=first.basis,
        trainings=first.speed.of,
        after_steps=first.speed.after or 0.0,
    )


def _training(
    plan: Plan, speeds: Sequence[Speed], cards: Cards, spec: ExpertSpec, *, at_once: int, pick: _Pick
) -> _Known | None:
    if plan.batch_cost is None:
        return None
    key = key_of(plan.trainer, StepKind.TRAIN, spec.training, card=cards.name, at_once=at_once)
    found = expected(speeds, key, cost=plan.batch_cost, units=plan.steps_of(spec.expert) or 0, pick=pick)
    if found is not None:
        return _Known(spec=spec, speed=found, basis=QuoteBasis.RUNS)
    measured = _tuned(plan, plan.batch_cost, spec)
    return None if measured is None else _Known(spec=spec, speed=measured, basis=QuoteBasis.TUNE)


def _tuned(plan: Plan, cost: float, spec: ExpertSpec) -> Expected | None:
    """Return the speed `tune` measured, if this expert has the first one's settings: `tune` measured those."""
    found = plan.tuned
    if found is None or settings_text(spec.training) != settings_text(plan.recipe.experts[0].training):
        return None
    ratio, scaled_from = _scale(found, cost)
    starts = found.epoch_seconds * plan.epochs_of(spec.expert)
    return Expected(
        per_unit=found.seconds_per_step / plan.batches_of_step(spec.expert) * ratio,
        beside=None if found.load_seconds is None else found.load_seconds + starts,
        per_sample=None,
        at=found.at,
        scaled_from=scaled_from,
    )


def _scale(found: Tuned, cost: float) -> tuple[float, str | None]:
    """Return the factor from the measured bucket's time to a mean batch's, and the bucket's size if the two differ."""
    if found.shape is None:
        return 1.0, None
    measured = found.batch_size * item_cost(found.shape.width, found.shape.height, found.shape.frames)
    ratio = cost / measured
    return (ratio, str(found.shape)) if abs(ratio - 1) > SAME_COST else (1.0, None)


def _seconds(plan: Plan, known: _Known, batches: int) -> float:
    speed, epochs = known.speed, plan.epochs_of(known.spec.expert)
    samples = 0
    if plan.samples is not None:
        rounds = epochs // plan.samples.every_epochs + plan.samples.at_first
        samples = rounds * len(plan.samples.prompts)
    return (speed.beside or 0.0) + batches * epochs * speed.per_unit + samples * (speed.per_sample or 0.0)


def _missing(plan: Plan, known: Sequence[_Known]) -> Iterator[str]:
    if any(each.speed.beside is None for each in known):
        yield "loading"
    if any(each.basis is QuoteBasis.TUNE for each in known):
        yield "saving"
    if plan.samples is not None and any(each.speed.per_sample is None for each in known):
        yield "samples"


def _caching(plan: Plan, speeds: Sequence[Speed], cards: Cards, kind: StepKind, pick: _Pick) -> float | None:
    """Return the seconds of one caching step: 0 if there is nothing to make, None if it was never timed."""
    step = next((step for step in plan.steps if step.kind is kind), None)
    need = plan.dataset.caches.get(step.id) if step is not None else None
    if step is None or need is None or not need.make:
        return 0.0
    cost = (plan.batch_cost or 1.0) if kind is StepKind.CACHE_LATENTS else 1.0
    at_once = 2 if cards.free > 1 or cards.hold_both else 1
    key = key_of(plan.trainer, kind, None, card=cards.name, at_once=at_once)
    found = expected(speeds, key, cost=cost, units=need.make, pick=pick)
    return None if found is None or found.beside is None else found.beside + need.make * found.per_unit


def _in_turn(seconds: Sequence[float], lanes: int) -> float:
    """Return when the last one ends, if each starts on the first free lane."""
    free = [0.0] * lanes
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def dollars_of(found: Quote, per_hour: float, *, runs: int = 1) -> float:
    """Return what a quoted run costs on a box that `runs` runs share until it ends, itself included."""
    return found.seconds / 3600 * per_hour / runs

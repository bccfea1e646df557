"""The caching steps of a plan: what there is to make, and whether it is split over the GPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from wan_train.base.errors import NotReadyError
from wan_train.base.host import available_ram
from wan_train.caching.decide import Reason, Wanted
from wan_train.caching.split import MOST_SHARDS, NO_WORK, Shares, Stem, Workload, choose, share_out
from wan_train.dataset.model import Inventory
from wan_train.engine import caches, commands, sizes
from wan_train.engine.caches import CacheKind
from wan_train.engine.commands import Addition, ModelPaths
from wan_train.engine.trainer import Trainer
from wan_train.recipe.model import Recipe
from wan_train.recipe.terms import EngineKind
from wan_train.run.caching import KINDS, Survey, Surveyed, maker_of, survey
from wan_train.run.directory import RunDirectory
from wan_train.run.plan import CacheNeed, Shard, Step, StepKind
from wan_train.run.readahead import RESERVE_BYTES

_IDS = {StepKind.CACHE_LATENTS: "cache-latents", StepKind.CACHE_TEXT: "cache-text"}
"""Ids of the steps; a shard's has its number besides."""
_USUAL_SIZE = (960, 960)
_USUAL_FRAMES = 81
"""Of a clip that nothing here can look into: five seconds, as Wan makes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachingPlan:
    """What there is to make: one need for each step of a kind, and the shares of the kinds that have several."""

    needs: Mapping[StepKind, tuple[CacheNeed, ...]]
    shares: Mapping[StepKind, Shares]

    def shards(self, kind: StepKind) -> tuple[Shard | None, ...]:
        of = len(self.needs[kind])
        return tuple(Shard(number=number, of=of) for number in range(1, of + 1)) if of > 1 else (None,)

    def part_to_make(self, kind: StepKind) -> float:
        """From 0, when everything is cached already, to 1."""
        needs = self.needs[kind]
        return sum(need.make for need in needs) / max(1, sum(need.items for need in needs))

    @property
    def by_step(self) -> dict[str, CacheNeed]:
        return {
            step_id(kind, shard): need
            for kind, needs in self.needs.items()
            for shard, need in zip(self.shards(kind), needs, strict=True)
        }


def step_id(kind: StepKind, shard: Shard | None) -> str:
    return _IDS[kind] if shard is None else f"{_IDS[kind]}-{shard.number}"


def plan_caching(
    inventory: Inventory, trainer: Trainer, recipe: Recipe, models: ModelPaths, *, gpus: int, wanted: int | None
) -> CachingPlan:
    """Look at the caches and decide; raises NotReadyError when the dataset cannot be read.

    `wanted` shards are made whether that pays or not, None leaves it to the decision.
    """
    try:
        latents, text = (
            survey(inventory, maker_of(kind, trainer, recipe, models), hash_all=False) for kind in KINDS.values()
        )
    except OSError as error:
        raise NotReadyError(
            f"{error.filename or 'the dataset'} cannot be read: {error.strerror or error}",
            hint="Wait until nothing writes into the dataset any more, then start again.",
        ) from error
    shares: dict[CacheKind, Shares] = {}
    if gpus > 1:
        in_ram = text_encoders_in_ram(models)
        shares = split(latents, text, engine=trainer.kind, gpus=gpus, texts_in_ram=in_ram, wanted=wanted)
    found = {CacheKind.LATENTS: latents, CacheKind.TEXT: text}
    return CachingPlan(
        needs={
            step: needs(found[kind], shares[kind]) if kind in shares else (found[kind].need,)
            for step, kind in KINDS.items()
        },
        shares={step: shares[kind] for step, kind in KINDS.items() if kind in shares},
    )


def caching_steps(
    planned: CachingPlan,
    run: RunDirectory,
    trainer: Trainer,
    recipe: Recipe,
    *,
    models: ModelPaths,
    workers: int,
    env: Mapping[str, str],
) -> Iterator[Step]:
    """The steps with their commands, latents first: they take longer. `workers` threads serve all shards of a kind."""
    for kind in KINDS:
        for shard in planned.shards(kind):
            name = step_id(kind, shard)
            config = run.dataset_config if shard is None else run.shard_config(name)
            each = workers if shard is None else max(1, workers // shard.of)
            if kind is StepKind.CACHE_LATENTS:
                command = commands.cache_latents(trainer, recipe, models, config, workers=each, env=env)
            else:
                command = commands.cache_text(trainer, models, config, workers=each, env=env)
            if shard is not None:
                part = Addition(
                    what=f"--dataset_config {config}",
                    reason=f"part {shard.number} of {shard.of} of what is to be made, listed when the step starts; "
                    "the caches get the same names",
                )
                command = replace(command, additions=(part, *command.additions))
            yield Step(id=name, kind=kind, command=command, shard=shard)


def split(
    latents: Survey,
    text: Survey,
    *,
    engine: EngineKind,
    gpus: int,
    texts_in_ram: int,
    wanted: int | None = None,
) -> dict[CacheKind, Shares]:
    """The shares of each kind that is split.

    `texts_in_ram`: how many text programs the RAM holds at once.
    """
    pace = sizes.caching_pace(engine)
    of_latents, of_text = costs_of(latents), costs_of(text)
    jobs = (
        _workload(of_latents, pace.latents_load, pace.pixels_a_second, gpus),
        _workload(of_text, pace.text_load, pace.captions_a_second, texts_in_ram),
    )
    if wanted is not None:
        counts = (min(wanted, gpus, jobs[0].most), min(wanted, gpus, jobs[1].most))
    else:
        counts = choose(*jobs, gpus=gpus)
    chosen = {CacheKind.LATENTS: (of_latents, counts[0]), CacheKind.TEXT: (of_text, counts[1])}
    return {kind: share_out(costs, of=count) for kind, (costs, count) in chosen.items() if count > 1}


def _workload(costs: Mapping[Stem, int], load: float, pace: float, most: int) -> Workload:
    if not costs:
        return NO_WORK
    return Workload(load=load, work=sum(costs.values()) / pace, most=min(most, len(costs)))


def text_encoders_in_ram(models: ModelPaths) -> int:
    """How many programs can load the text encoder at once: each has it in RAM until it is on its GPU."""
    try:
        size = models.t5.stat().st_size
    except OSError:  # a rehearsal has none
        size = 0
    return max(1, (available_ram() - RESERVE_BYTES) // size) if size else MOST_SHARDS


def costs_of(found: Survey) -> dict[Stem, int]:
    """What each stem costs whose caches are to be made: pixels times frames, or one for a caption."""
    costs: Counter[Stem] = Counter()
    for one in found.folders:
        for item in one.folder.items:
            if item.key in one.decision.make:
                costs[str(one.folder.path), item.stem] += _cost(found.kind, one, item)
    return dict(costs)


def _cost(kind: CacheKind, one: Surveyed, item: Wanted) -> int:
    match kind:
        case CacheKind.TEXT:
            return 1
        case CacheKind.LATENTS:
            width, height = item.bucket or _USUAL_SIZE
            frames = _frames(item) if one.folder.is_clip else 1
            # Image-to-video encodes as much once more, for the first frame alone.
            return width * height * max(1, frames) * (2 if one.folder.image_to_video else 1)
        case _:
            assert_never(kind)


def _frames(item: Wanted) -> int:
    """Frames of all that is cut from a clip."""
    if item.cuts is None:
        return _USUAL_FRAMES
    cuts = (caches.parse(name, is_clip=True) for name in item.cuts)
    return sum(cut.frames or 0 for cut in cuts if cut is not None)


def needs(found: Survey, shares: Shares) -> tuple[CacheNeed, ...]:
    """What each shard has to do, in order. Files of no item go before any starts and are counted with the first."""
    items: Counter[int] = Counter()
    make: dict[int, Counter[str]] = {number: Counter() for number in range(1, shares.of + 1)}
    remove: dict[int, Counter[str]] = {number: Counter() for number in range(1, shares.of + 1)}
    for one in found.folders:
        for item in one.folder.items:
            number = shares.number(one.folder.path, item.stem)
            items[number] += 1
            if item.key in one.decision.make:
                make[number][one.decision.make[item.key].value] += 1
        for name, reason in one.decision.remove.items():
            number = 1 if reason is Reason.NO_ITEM else shares.number(one.folder.path, _stem(one, name))
            remove[number][reason.value] += 1
    return tuple(
        CacheNeed(
            items=items[number],
            make=make[number].total(),
            remove=remove[number].total(),
            reasons={**dict(remove[number].most_common()), **dict(make[number].most_common())},
        )
        for number in make
    )


def _stem(one: Surveyed, name: str) -> str:
    parsed = caches.parse(name, is_clip=one.folder.is_clip)
    return parsed.stem if parsed is not None else name

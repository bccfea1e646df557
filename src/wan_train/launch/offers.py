"""Which offers may be rented, what a job costs on each, and which comes first. Pure functions."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from wan_train.base.units import GB
from wan_train.launch.gpu_names import same_card
from wan_train.launch.model import Offer, Part, Wants, Work
from wan_train.provision.capacity import LOAD_BYTES
from wan_train.provision.driver_checks import BLACKWELL_DRIVER, driver_version
from wan_train.provision.models import wanted
from wan_train.recipe.terms import Task
from wan_train.run.plan import StepKind
from wan_train.run.speeds import Key, Speed, expected

LEAST_RELIABILITY = 0.95
"""The provider's own figure. Below it, a box is likely to be lost while it trains."""
LEAST_MBPS = 100.0
"""Below this, the model files alone take more than an hour and a half of rent."""
EXPERTS_AT_ONCE = 2
MEGABIT = 1_000_000 / 8
_BLACKWELL = ("RTX 50", "RTX PRO", "B100", "B200", "GB200")
"""Name prefixes of Blackwell cards, which need a newer driver."""
_ADAPTED = ("attention", "blocks_to_swap", "fp8_base", "gradient_checkpointing", "max_data_loader_n_workers")
"""Settings that each box chooses for its card (recipe.adaptation). A measurement on a card includes its choice."""


class Unfit(StrEnum):
    """Why an offer is not rented. The values are counted and shown."""

    PRICE = "over the price"
    BUDGET = "over the budget before it trains"
    AVOIDED = "failed before"
    RELIABILITY = f"reliability below {LEAST_RELIABILITY:.0%}"
    NETWORK = f"download below {LEAST_MBPS:.0f} Mbit/s"
    DRIVER = "driver too old"
    RAM = f"RAM below {LOAD_BYTES / GB:.0f} GB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """An offer with a job's seconds and dollars on it; None if nothing similar was measured on this card.

    `without` names what the seconds leave out because it was never timed.
    """

    offer: Offer
    prepare_seconds: float | None
    traffic: float = 0.0
    """Dollars for what the job downloads, is sent and brings home at its end."""
    checkpoint_traffic: float = 0.0
    """More dollars for checkpoints that come home while it trains; 0 if its time is unknown."""
    train_seconds: float | None = None
    measured: float | None = None
    """When the newest measurement used was made."""
    scaled_from: str | None = None
    home_seconds: float = 0.0
    without: tuple[str, ...] = ()

    @property
    def seconds(self) -> float | None:
        """Seconds from renting until the job is home."""
        if self.train_seconds is None or self.prepare_seconds is None:
            return None
        return self.prepare_seconds + self.train_seconds + self.home_seconds

    @property
    def least_cost(self) -> float:
        """Dollars for everything but training: preparation, its traffic and the way home."""
        return ((self.prepare_seconds or 0.0) + self.home_seconds) / 3600 * self.offer.per_hour + self.traffic

    @property
    def cost(self) -> float | None:
        """Dollars for the job as the first of this box, traffic included. A second job finds the models there."""
        return None if self.seconds is None else self.seconds / 3600 * self.offer.per_hour + self.all_traffic

    @property
    def all_traffic(self) -> float:
        """Dollars for all that goes to the box and comes from it, as far as it is known."""
        return self.traffic + self.checkpoint_traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The offers that may be rented, best first, and how many others fail for each reason."""

    fit: tuple[Priced, ...]
    unfit: tuple[tuple[str, int], ...] = ()
    nearest: Priced | None = None
    """The cheapest offer excluded only by its price; None if any offer fits."""


def choose(
    offers: Sequence[Offer],
    wants: Wants,
    *,
    work: Work | None = None,
    speeds: Sequence[Speed] = (),
    set_up_seconds: float | None = None,
    avoided: Collection[str] = (),
) -> Choice:
    """Filter and sort offers: first by the job's cost where it is known, then the others by price."""
    priced = [priced_on(offer, wants, work, speeds, set_up_seconds) for offer in offers]
    why = {each.offer.id: unfit(each, wants, avoided=avoided) for each in priced}
    fit = sorted((each for each in priced if not why[each.offer.id]), key=_rank)
    dear = [each for each in priced if why[each.offer.id] == (Unfit.PRICE,)]
    counted = Counter(reason for reasons in why.values() for reason in reasons)
    nearest = min(dear, key=lambda each: each.offer.per_hour) if dear and not fit else None
    return Choice(fit=tuple(fit), unfit=tuple(counted.most_common()), nearest=nearest)


def unfit(priced: Priced, wants: Wants, *, avoided: Collection[str] = ()) -> tuple[str, ...]:
    """Every reason against an offer. A missing figure is not one: the box itself is checked."""
    offer = priced.offer
    found = []
    if wants.max_per_hour is not None and offer.per_hour > wants.max_per_hour:
        found.append(Unfit.PRICE)
    if wants.budget is not None and priced.least_cost >= wants.budget:
        found.append(Unfit.BUDGET)
    if offer.machine in avoided:
        found.append(Unfit.AVOIDED)
    if offer.reliability is not None and offer.reliability < LEAST_RELIABILITY:
        found.append(Unfit.RELIABILITY)
    if offer.down_mbps is not None and offer.down_mbps < LEAST_MBPS:
        found.append(Unfit.NETWORK)
    if offer.ram_bytes is not None and offer.ram_bytes < LOAD_BYTES:
        found.append(Unfit.RAM)
    driver = driver_version(offer.driver)
    if driver is not None and driver < driver_for(offer, wants):
        found.append(Unfit.DRIVER)
    return tuple(found)


def driver_for(offer: Offer, wants: Wants) -> tuple[int, ...]:
    """The oldest driver that works on an offer's card."""
    is_blackwell = offer.gpu.upper().startswith(_BLACKWELL)
    return max(wants.least_driver, BLACKWELL_DRIVER) if is_blackwell else wants.least_driver


@functools.cache
def models_bytes(tasks: tuple[str, ...]) -> int:
    """Bytes of the models that a box for these tasks downloads. A file that both tasks use counts once."""
    return round(sum(model.gb for model in wanted([task for task in Task if task.word in tasks])) * GB)


def priced_on(
    offer: Offer, wants: Wants, work: Work | None, speeds: Sequence[Speed], set_up_seconds: float | None = None
) -> Priced:
    """A job's time and cost on an offer, from measurements on the same kind of card.

    `set_up_seconds` is the time until a box is ready, without the download of the models.
    """
    if work is None:
        return Priced(offer=offer, prepare_seconds=None)
    models = models_bytes(wants.tasks)
    prepare = None
    if offer.down_mbps:
        # The dataset comes over the same line. The laptop's own is often slower, but its speed is unknown here.
        prepare = (models + work.dataset_bytes) / (offer.down_mbps * MEGABIT) + (set_up_seconds or 0.0)
    traffic = (models + work.dataset_bytes) / GB * offer.per_gb_down
    traffic += work.result_bytes / GB * offer.per_gb_up
    home = work.result_bytes / (offer.up_mbps * MEGABIT) if offer.up_mbps else 0.0
    known = Priced(offer=offer, prepare_seconds=prepare, traffic=traffic, home_seconds=home)
    here = [each for each in speeds if same_card(offer.gpu, each.key.card)]
    at_once = min(offer.gpus, len(work.parts), EXPERTS_AT_ONCE)
    without = [] if set_up_seconds is not None else ["installation"]
    if work.result_bytes and not offer.up_mbps:
        without.append("the way home of the results")
    seconds: list[float] = []
    newest, scaled = None, None
    for part in work.parts:
        found = _training(here, work, part, at_once)
        if found is None:
            return known
        took, at, scaled_from = found
        seconds.append(took)
        newest = at if newest is None else max(newest, at)
        scaled = scaled or scaled_from
    caching = _caching(here, work, offer.gpus)
    if caching is None:
        without.append("caching")
    train = max(seconds) if at_once > 1 else sum(seconds)
    states = sum(took / wants.fetch_seconds * part.state_bytes for took, part in zip(seconds, work.parts, strict=True))
    return replace(
        known,
        checkpoint_traffic=max(0.0, states - work.result_bytes) / GB * offer.per_gb_up,
        train_seconds=train + (caching or 0.0),
        measured=newest,
        scaled_from=scaled,
        without=tuple(without),
    )


def _rank(priced: Priced) -> tuple[bool, float, float, str]:
    cost = priced.cost
    return cost is None, cost if cost is not None else math.inf, priced.offer.per_hour, priced.offer.id


def _training(speeds: Sequence[Speed], work: Work, part: Part, at_once: int) -> tuple[float, float, str | None] | None:
    """Seconds of one expert, when they were measured, and the sizes from which they are scaled."""
    if work.batch_cost is None:
        return None
    wanted = _chosen(part.settings)
    keys = {
        each.key
        for each in speeds
        if each.key.kind is StepKind.TRAIN and each.key.trainer == work.trainer and _chosen(each.key.settings) == wanted
    }
    found = []
    for key in keys:
        units = part.batches * part.epochs
        one = expected(speeds, _at_once(key, at_once), cost=work.batch_cost, units=units)
        if one is not None:
            found.append(((one.beside or 0.0) + units * one.per_unit, one.at, one.scaled_from))
    # If a card has measurements of several settings, the newest is what a box would choose today.
    return max(found, key=lambda each: each[1]) if found else None


def _caching(speeds: Sequence[Speed], work: Work, gpus: int) -> float | None:
    """Seconds of both caching steps, in parallel on two GPUs; None if one was never timed."""
    took: list[float] = []
    for kind, cost in ((StepKind.CACHE_LATENTS, work.batch_cost or 1.0), (StepKind.CACHE_TEXT, 1.0)):
        cards = {each.key.card for each in speeds}
        found = [
            one
            for card in sorted(cards)
            if (one := expected(speeds, _caching_key(kind, work, card, gpus), cost=cost, units=work.items)) is not None
            and one.beside is not None
        ]
        if not found:
            return None
        newest = max(found, key=lambda each: each.at)
        took.append((newest.beside or 0.0) + work.items * newest.per_unit)
    return max(took) if gpus > 1 else sum(took)


def _caching_key(kind: StepKind, work: Work, card: str, gpus: int) -> Key:
    return Key(kind=kind, trainer=work.trainer, card=card, at_once=min(gpus, 2))


def _at_once(key: Key, count: int) -> Key:
    return Key(kind=key.kind, trainer=key.trainer, card=key.card, settings=key.settings, at_once=count)


def _chosen(settings: str) -> tuple[str, ...]:
    """The settings that a box does not choose itself."""
    return tuple(word for word in settings.split() if word.partition("=")[0] not in _ADAPTED)

"""The measured settings that fit a training: its buckets, settings, card and software."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from wan_train.dataset.layout import DatasetSummary
from wan_train.engine.capabilities import Script
from wan_train.engine.trainer import Trainer, package_version
from wan_train.gpu.model import Gpu
from wan_train.recipe.levers import LEVERS, OPTIONS, Lever, Settings, levers_for
from wan_train.recipe.measured import Basis, Length, Measurement, Shape, Tuning, Workload, others_of, serving
from wan_train.recipe.model import Recipe, Training
from wan_train.run.end_epochs import steps_per_epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """The bucket that decides speed and the one that decides memory use, each with the number of its dataset.

    `shapes` counts the distinct shapes, `batch_size` is that of the commonest bucket.
    """

    commonest: tuple[int, Shape]
    largest: tuple[int, Shape]
    shapes: int
    batch_size: int


def buckets_of(counted: DatasetSummary) -> Buckets | None:
    """Return the buckets, None for a dataset of clips of unknown length."""
    batches: Counter[tuple[int, Shape]] = Counter()
    sizes = {subset.index: subset.batch_size for subset in counted.subsets}
    for subset in counted.subsets:
        for bucket in subset.buckets:
            shape = Shape(width=bucket.width, height=bucket.height, frames=bucket.frames)
            batches[subset.index, shape] += -(-bucket.items * subset.num_repeats // subset.batch_size)
    if not batches:
        return None
    commonest = max(batches, key=lambda key: (batches[key], key))
    largest = max(batches, key=lambda key: (key[1].tokens * sizes[key[0]], batches[key], key))
    return Buckets(
        commonest=commonest,
        largest=largest,
        shapes=len({shape for _, shape in batches}),
        batch_size=sizes[commonest[0]],
    )


def workload_of(recipe: Recipe, training: Training, *, commonest: Shape, largest: Shape, batch_size: int) -> Workload:
    return Workload(
        task=recipe.task,
        precision=training.mixed_precision,
        commonest=commonest,
        largest=largest,
        batch_size=batch_size,
        others=others_of(training),
    )


def length_of(training: Training, counted: DatasetSummary, shapes: int) -> Length:
    """Return how long one expert is trained."""
    steps = (steps_per_epoch(training, counted.batches_per_epoch) or 1) * training.max_train_epochs
    return Length(steps=steps, epochs=training.max_train_epochs, shapes=shapes)


def tuning_for(
    measurements: Sequence[Measurement], recipe: Recipe, trainer: Trainer, counted: DatasetSummary
) -> Tuning:
    """Return the measurements that apply to a recipe already adapted to the machine. Its first expert decides."""
    training = recipe.experts[0].training
    buckets = buckets_of(counted)
    if buckets is None:
        return Tuning()
    wanted = workload_of(
        recipe,
        training,
        commonest=buckets.commonest[1],
        largest=buckets.largest[1],
        batch_size=buckets.batch_size,
    )
    possible = [each for each in measurements if is_possible(each.settings, trainer)]
    return Tuning(measurements=serving(possible, wanted), length=length_of(training, counted, buckets.shapes))


def levers_of(
    training: Training, trainer: Trainer, *, chosen: Collection[str], blackwell: bool = False
) -> tuple[Lever, ...]:
    """Return the levers to try on a training with this trainer. None of them changes the `chosen` settings."""
    return levers_for(
        training,
        chosen=chosen,
        options=[name[2:] for name in trainer.capabilities.options[Script.TRAIN]],
        packages={lever.package for lever in LEVERS if lever.package and trainer.has_package(lever.package)},
        version=trainer.version,
        blackwell=blackwell,
    )


def is_possible(settings: Settings, trainer: Trainer) -> bool:
    """Whether the trainer has every option of these settings, and its environment the package they need."""
    own = trainer.capabilities.options[Script.TRAIN]
    package = next(
        (lever.package for lever in LEVERS if lever.changes.get("attention") == settings.get("attention")), None
    )
    has_options = all(f"--{name}" in own for name in settings if name in OPTIONS)
    return has_options and (package is None or trainer.has_package(package))


def basis_of(trainer: Trainer, gpus: Sequence[Gpu], driver: str | None) -> Basis | None:
    """Return what measurements must share with a run; None for cards of several kinds or an unknown driver."""
    kinds = {(gpu.name, gpu.total_bytes) for gpu in gpus}
    if len(kinds) != 1 or driver is None:
        return None
    ((card, total_bytes),) = kinds
    torch = package_version(trainer.python, "torch") or "unknown"
    return Basis(card=card, total_bytes=total_bytes, driver=driver, trainer=trainer.version, torch=torch)

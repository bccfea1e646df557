"""What will be trained, as one value: every item's size and crop, the sizes' counts, the steps."""

from __future__ import annotations

from dataclasses import dataclass

from wan_train.dataset.counts import DatasetSummary, SubsetSummary, summary
from wan_train.dataset.model import Inventory, Subset
from wan_train.dataset.trained import Trained, trained

NOTABLE_LOSS = 0.1
"""The share of a picture's area from which on its crop is named; buckets alone take a few hundredths at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Everything of a dataset that is trained at one (width, height) in pixels, files in the order of the inventory.

    None for files whose size or fate is unknown.
    """

    pixels: tuple[int, int] | None
    files: tuple[Trained, ...]

    @property
    def largest_loss(self) -> float:
        return max((one.crop.share_lost for one in self.files if one.crop), default=0.0)

    @property
    def largest_scale(self) -> float:
        return max((one.crop.scale for one in self.files if one.crop), default=0.0)

    @property
    def enlarged(self) -> int:
        return sum(is_enlarged(one) for one in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetOutlook:
    """One dataset."""

    subset: Subset
    summary: SubsetSummary
    files: tuple[Trained, ...]

    @property
    def sizes(self) -> tuple[Size, ...]:
        """By trained size, the fullest first; what has no size comes last."""
        found: dict[tuple[int, int] | None, list[Trained]] = {}
        for one in self.files:
            found.setdefault(one.crop.bucket if one.crop is not None and one.cuts else None, []).append(one)
        order = sorted(found, key=lambda pixels: (pixels is None, -len(found[pixels]), pixels or ()))
        return tuple(Size(pixels=pixels, files=tuple(found[pixels])) for pixels in order)

    @property
    def enlarged(self) -> tuple[Trained, ...]:
        """The files that are made larger, the most first."""
        return tuple(sorted(filter(is_enlarged, self.files), key=lambda one: -one.crop.scale if one.crop else 0))

    @property
    def cropped(self) -> tuple[Trained, ...]:
        """The files that lose a notable share of their area, the most first."""
        return tuple(sorted(filter(is_cropped, self.files), key=lambda one: -one.crop.share_lost if one.crop else 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The whole dataset under a recipe's `epochs` and gradient `accumulation` (batches of one step)."""

    subsets: tuple[SubsetOutlook, ...]
    summary: DatasetSummary
    epochs: int
    accumulation: int

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of one expert, rounded up as the trainer does; None where a video's length is unknown."""
        batches = self.summary.batches_per_epoch
        return None if batches is None else -(-batches // self.accumulation)

    @property
    def steps(self) -> int | None:
        """Optimizer steps of one expert in all."""
        return None if self.steps_per_epoch is None else self.steps_per_epoch * self.epochs


def outlook(inventory: Inventory, *, epochs: int, accumulation: int, image_to_video: bool) -> Outlook:
    """What a training of this inventory will be made of."""
    counted = summary(inventory, image_to_video=image_to_video)
    return Outlook(
        subsets=tuple(
            SubsetOutlook(subset=found.subset, summary=each, files=trained(found))
            for found, each in zip(inventory.subsets, counted.subsets, strict=True)
        ),
        summary=counted,
        epochs=epochs,
        accumulation=accumulation,
    )


def is_enlarged(one: Trained) -> bool:
    return one.crop is not None and one.crop.is_enlarged


def is_cropped(one: Trained) -> bool:
    return one.crop is not None and one.crop.share_lost >= NOTABLE_LOSS

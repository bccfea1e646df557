"""The epochs that are worth a picture: pure choices over the distances of their LoRAs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from wan_train.base.units import fine_percent
from wan_train.preview.model import LeftOut
from wan_train.recipe.terms import Expert

NEAR = 0.01
"""Two LoRAs that differ by less than 1 % draw the same picture: latents differ by a third of that (measured with
the trainer's own scripts on ten epochs of one training)."""
MOST = 6
"""Epochs that `auto` draws at most: about one screen of rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Epochs to draw, in order, and those that are not, each with its reason."""

    epochs: tuple[int, ...]
    left_out: tuple[LeftOut, ...] = ()


def choose(epochs: Sequence[int], differ: Callable[[int, int], float], *, most: int = MOST) -> Chosen:
    """The newest epoch, then again and again the one that differs most from all that are chosen.

    `differ(earlier, later)` is the distance of two epochs' LoRAs, 0.01 for 1 %; what it raises is not caught. No two
    chosen epochs differ by less than `NEAR`.
    """
    rest = sorted(set(epochs))
    if not rest:
        return Chosen(epochs=())
    last = rest.pop()
    chosen = [last]
    nearest = {epoch: (differ(epoch, last), last) for epoch in rest}
    while nearest and len(chosen) < most:
        farthest = max(nearest, key=lambda epoch: (nearest[epoch][0], epoch))
        if nearest[farthest][0] < NEAR:
            break
        del nearest[farthest]
        chosen.append(farthest)
        nearest = {
            epoch: min(found, (differ(*sorted((epoch, farthest))), farthest)) for epoch, found in nearest.items()
        }
    left_out = (LeftOut(epoch=epoch, reason=_reason(*nearest[epoch], most)) for epoch in sorted(nearest))
    return Chosen(epochs=tuple(sorted(chosen)), left_out=tuple(left_out))


def _reason(distance: float, epoch: int, most: int) -> str:
    if distance < NEAR:
        return f"differs from epoch {epoch} by {fine_percent(distance)}"
    return f"the {most} most different epochs are drawn"


def too_near(epochs: Sequence[int], differ: Callable[[int, int], float]) -> tuple[str, ...]:
    """Sentences about neighbours among named epochs that will look the same."""
    ordered = sorted(set(epochs))
    return tuple(
        f"Epochs {earlier} and {later} differ by {fine_percent(distance)}: expect the same picture."
        for earlier, later in pairwise(ordered)
        if (distance := differ(earlier, later)) < NEAR
    )


def drawable(kept: Mapping[Expert, Iterable[int]]) -> Mapping[int, Mapping[Expert, int]]:
    """By epoch, whose LoRA each expert draws with: its own of that epoch, or its last where its training ended before.

    An epoch that one expert trained and did not keep is not there.
    """
    own = {expert: sorted(set(epochs)) for expert, epochs in kept.items()}
    own = {expert: epochs for expert, epochs in own.items() if epochs}
    found = {}
    for epoch in sorted({epoch for epochs in own.values() for epoch in epochs}):
        pair = {
            expert: min(epoch, epochs[-1]) for expert, epochs in own.items() if epoch in epochs or epoch > epochs[-1]
        }
        if len(pair) == len(own):
            found[epoch] = pair
    return found

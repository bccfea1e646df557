"""The epoch after which each expert ends, computed from `until` when a plan is made and when a run is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from wan_train.base.errors import BadInputError
from wan_train.engine import schedule
from wan_train.engine.capabilities import Capabilities
from wan_train.engine.schedule import UnknownScheduleError
from wan_train.recipe.model import ExpertSpec, Recipe, Training
from wan_train.recipe.terms import Expert
from wan_train.recipe.until import AllEpochs, Epoch, Share, parse


class NoSuchEndError(ValueError):
    """A training cannot end after the requested epoch; `hint` says where it can."""

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why)
        self.hint = hint


_NAME_ONE = "Name an epoch instead, such as --until 50."
_READ_VIDEOS = f"Install PyAV, which reads lengths: pip install av\n{_NAME_ONE}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The epoch after which each expert ends, by the value of Expert; only for those that end before their schedule."""

    epochs: Mapping[str, int]
    notes: tuple[str, ...] = ()


def planned_ends(recipe: Recipe, batches_per_epoch: int | None, capabilities: Capabilities) -> Ends:
    """Return where the experts of a recipe end; raises BadInputError that lists every problem.

    `batches_per_epoch` is None if the length of a video is unknown.
    """
    epochs: dict[str, int] = {}
    notes: list[str] = []
    problems: list[str] = []
    hints: dict[str, None] = {}
    for spec in recipe.experts:
        total = spec.training.max_train_epochs
        try:
            end = end_of(
                spec.training.until,
                spec.training,
                total=total,
                steps_per_epoch=steps_per_epoch(spec.training, batches_per_epoch),
                capabilities=capabilities,
            )
        except NoSuchEndError as error:
            problems.append(f"{spec.expert.value}-noise expert: --until {spec.training.until}: {error}")
            hints[error.hint] = None
            continue
        if end < total:
            epochs[spec.expert.value] = end
            late = _beyond(spec, end)
            problems += late
            hints |= {f"Save and sample at least every {end} epochs, or end later.": None} if late else {}
        elif isinstance(parse(spec.training.until), Share):
            notes.append(
                f"{spec.expert.value}-noise expert: {spec.training.until} of the learning-rate integral is reached "
                "only with the last epoch, so --until saves nothing"
            )
    if problems:
        listing = "".join(f"\n  {problem}" for problem in problems)
        raise BadInputError(f"invalid end for this training:{listing}", hint="\n".join(hints))
    return Ends(epochs=epochs, notes=tuple(notes))


def end_of(
    until: str, training: Training, *, total: int, steps_per_epoch: int | None, capabilities: Capabilities
) -> int:
    """Return the epoch after which a training of `total` epochs ends; raises NoSuchEndError."""
    match parse(until):
        case AllEpochs():
            return total
        case Epoch(number=number):
            if number > total:
                raise NoSuchEndError(f"there are only {total} epochs", f"Use --until {total} or less.")
            return number
        case Share(part=part):
            if steps_per_epoch is None:
                raise NoSuchEndError(
                    "the number of steps is unknown, because the length of a video is unknown", _READ_VIDEOS
                )
            try:
                return schedule.epoch_reaching(part, training, total, steps_per_epoch, capabilities)
            except UnknownScheduleError as error:
                raise NoSuchEndError(str(error), _NAME_ONE) from None
        case other:
            assert_never(other)


def steps_per_epoch(training: Training, batches_per_epoch: int | None) -> int | None:
    """Optimizer steps of one epoch: batches / accumulation, rounded up as the trainer does."""
    if batches_per_epoch is None:
        return None
    return -(-batches_per_epoch // training.gradient_accumulation_steps)


def _beyond(spec: ExpertSpec, end: int) -> list[str]:
    """Return problems: what the user requested that would come after the end."""
    training, name = spec.training, f"{spec.expert.value}-noise expert"
    found = []
    # In recipes, saving every `max_train_epochs` means that no LoRA is kept before the end.
    if "save_every_n_epochs" in spec.sources and end < training.save_every_n_epochs < training.max_train_epochs:
        found.append(f"{name}: it ends after epoch {end}, before the first --save-every {training.save_every_n_epochs}")
    if training.sample_every_n_epochs is not None and training.sample_every_n_epochs > end:
        found.append(
            f"{name}: it ends after epoch {end}, before the first --sample-every {training.sample_every_n_epochs}"
        )
    return found


OFFERED = "99.65%"
"""The offered end. Under the guide's schedule it is epoch 50 of 100, whose LoRA measured 0.4 % from the last one's."""
_DISTANCE_PER_SHARE = 1.2
"""Relative distance of a LoRA to the finished one, divided by the remaining share of the integral. Measured with adamw
under the guide's schedule on the real trainer: 1.2 after 50 of 100 epochs, 1.2 after 40 and 60, 1.1 after 30."""
_WORTH_IT = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyEnd:
    """An early end that the user may choose: `epochs` by expert, and `saved`, the share of all steps it saves.

    `distance` is an estimate of the LoRAs' relative distance to the finished ones.
    """

    epochs: Mapping[Expert, int]
    saved: float
    distance: float


def early_end(recipe: Recipe, batches_per_epoch: int | None, capabilities: Capabilities) -> EarlyEnd | None:
    """Return the early end to offer; None if the user chose an end, or if it is unknown or saves little."""
    if any("until" in spec.sources for spec in recipe.experts):
        return None
    epochs: dict[Expert, int] = {}
    whole = left = trained = 0.0
    for spec in recipe.experts:
        training, total = spec.training, spec.training.max_train_epochs
        each = steps_per_epoch(training, batches_per_epoch)
        if each is None:
            return None
        try:
            end = end_of(OFFERED, training, total=total, steps_per_epoch=each, capabilities=capabilities)
            left = max(left, 1 - schedule.shares(training, total, each, capabilities)[end - 1])
        except (NoSuchEndError, UnknownScheduleError):
            return None
        epochs[spec.expert] = end
        whole += total * each
        trained += end * each
    saved = 1 - trained / whole
    return EarlyEnd(epochs=epochs, saved=saved, distance=_DISTANCE_PER_SHARE * left) if saved >= _WORTH_IT else None

"""Drawing times: an estimate from earlier drawings on the same kind of card, and the ETA during a drawing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from wan_train.engine.trainer import Trainer
from wan_train.preview.job import DrawingEvent
from wan_train.preview.model import Cell, Drawing, Precision, Preview, PreviewDirectory, Prompt, drawn
from wan_train.recipe.terms import Expert
from wan_train.run.plan import StepKind
from wan_train.run.speeds import Speed, item_cost, trainer_text

_PASSES_A_STEP = 3.0
"""A training step computes its batch three times: forward, forward again (gradient checkpointing), and backward
without gradients of the frozen weights. Counted, not measured."""


class Basis(StrEnum):
    """What an estimate is based on."""

    DRAWN = "drawn"
    """Pictures with the same settings, drawn on this kind of card."""
    SCALED = "scaled"
    """Pictures of another size or number of steps, drawn on this kind of card."""
    TRAINED = "trained"
    """The training speed on this kind of card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Everything that the time of a cell depends on."""

    card: str
    precision: Precision
    width: int
    height: int
    frames: int
    steps: int
    passes: int
    """Model calls in each step: two with guidance."""

    @property
    def units(self) -> float:
        return self.steps * self.passes * item_cost(self.width, self.height, self.frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Seconds of a drawing. `loading` is None if no loading time on this kind of card is known."""

    cells: float
    loading: float | None
    basis: Basis

    @property
    def seconds(self) -> float:
        return self.cells + (self.loading or 0.0)


def estimate(wanted: Sequence[Work], timed: Sequence[tuple[Work, float]], loads: Sequence[float]) -> Estimate | None:
    """Return the time of these cells. None if no cell with one of the cards and precisions was ever timed.

    `timed` holds earlier cells with their seconds. `loads` holds the seconds that drawings took besides their cells.
    """
    total, basis = 0.0, Basis.DRAWN
    for work in wanted:
        same = [seconds for other, seconds in timed if other == work]
        if same:
            total += statistics.median(same)
            continue
        rates = [
            seconds / other.units
            for other, seconds in timed
            if (other.card, other.precision) == (work.card, work.precision) and other.units
        ]
        if not rates:
            return None
        basis = Basis.SCALED
        total += statistics.median(rates) * work.units
    return Estimate(cells=total, loading=statistics.median(loads) if loads else None, basis=basis)


def from_training(wanted: Sequence[Work], speeds: Sequence[Speed], trainer: Trainer) -> Estimate | None:
    """Return the time of these cells, judged by the newest training on such a card. None if there was none."""
    if not wanted:
        return None
    mine = [each for each in speeds if (each.key.card, each.key.trainer) == (wanted[0].card, trainer_text(trainer))]
    trained = [each for each in mine if each.key.kind is StepKind.TRAIN and each.cost > 0 and each.per_unit > 0]
    if not trained:
        return None
    newest = max(trained, key=lambda each: each.at)
    texts = [each for each in mine if each.key.kind is StepKind.CACHE_TEXT and each.beside is not None]
    loading = None
    if newest.beside is not None and texts:
        # Both experts, as timed by training, and the text encoder, as timed by caching.
        loading = 2 * newest.beside + (max(texts, key=lambda each: each.at).beside or 0.0)
    rate = newest.per_unit / newest.cost / _PASSES_A_STEP
    return Estimate(cells=rate * sum(work.units for work in wanted), loading=loading, basis=Basis.TRAINED)


def work_of(preview: Preview, prompt: Prompt, card: str) -> Work:
    return Work(
        card=card,
        precision=preview.precision,
        width=prompt.width,
        height=prompt.height,
        frames=prompt.frames,
        steps=prompt.steps,
        passes=2 if preview.uses_guidance else 1,
    )


def timed_cells(previews: Iterable[tuple[PreviewDirectory, Preview]], card: str) -> list[tuple[Work, float]]:
    """Return earlier cells on this kind of card with their seconds."""
    found = []
    for directory, preview in previews:
        for (_, number), cell in drawn(directory, preview).items():
            if _is_timed(cell, card):
                found.append((work_of(preview, preview.prompts[number], card), cell.seconds))
    return found


def loads_of(drawings: Iterable[Drawing], card: str) -> list[float]:
    return [each.seconds - each.cell_seconds for each in drawings if each.card == card and each.cells]


def _is_timed(cell: Cell, card: str) -> bool:
    return cell.card == card and cell.seconds > 0


@dataclass(slots=True, kw_only=True)
class Eta:
    """The ETA of one attempt. `cells` maps the key of each cell to the index of its prompt."""

    preview: Preview
    cells: Mapping[str, int]
    _steps: dict[tuple[int, str], int] = field(default_factory=dict)
    """Steps by prompt and expert. A cell that reuses another cell's steps reports 0, which is not stored."""
    _stages: set[tuple[str, str]] = field(default_factory=set)
    _drawn: set[str] = field(default_factory=set)
    _units: float = 0.0
    _seconds: float = 0.0
    _load_seconds: float = 0.0
    _loads: int = 0

    def take(self, event: DrawingEvent) -> None:
        prompt = self.cells.get(event.key or "")
        match event.event:
            case "loaded":
                self._loads += 1
                self._load_seconds = event.seconds or 0.0
            case "stage" if prompt is not None and event.key is not None and event.expert is not None:
                self._stages.add((event.key, event.expert))
                if event.steps:
                    self._steps[prompt, event.expert] = event.steps
                    self._units += event.steps * self._cost(prompt)
                    self._seconds += event.seconds or 0.0
            case "cell" if prompt is not None and event.key is not None:
                self._drawn.add(event.key)
                if not self._stages:  # the trainer's own command reports no stages
                    self._units += self._whole(prompt) * self._cost(prompt)
                    self._seconds += event.seconds or 0.0
            case _:
                pass

    def left(self) -> float | None:
        """Return the seconds to the end. None before anything was timed."""
        if not self._units:
            return None
        rest = sum(self._rest(key, prompt) * self._cost(prompt) for key, prompt in self.cells.items())
        loads = self._load_seconds if self._loads == 1 and not self._has_begun(Expert.LOW) else 0.0
        return rest / self._units * self._seconds + loads

    def _rest(self, key: str, prompt: int) -> int:
        if key in self._drawn:
            return 0
        done = sum(self._steps.get((prompt, expert), 0) for expert in Expert if (key, expert.value) in self._stages)
        return max(0, self._whole(prompt) - done)

    def _has_begun(self, expert: Expert) -> bool:
        return any(own == expert.value for _, own in self._stages)

    def _whole(self, prompt: int) -> int:
        return self.preview.prompts[prompt].steps

    def _cost(self, prompt: int) -> float:
        wanted = self.preview.prompts[prompt]
        return item_cost(wanted.width, wanted.height, wanted.frames)

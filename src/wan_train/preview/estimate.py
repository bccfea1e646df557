"""How long a drawing will take, from what earlier ones took on the same kind of card: a pure sum."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wan_train.engine.generate import tokens_of
from wan_train.preview.model import Cell, Drawing, Precision, Preview, PreviewDirectory, Prompt, drawn


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
    """Calls of the model in each step: two with guidance."""

    @property
    def units(self) -> int:
        return self.steps * self.passes * tokens_of(self.width, self.height, self.frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Seconds of a drawing. `loading` is None where nothing was drawn on this kind of card before."""

    cells: float
    loading: float | None
    is_scaled: bool
    """From pictures of another size or number of steps."""

    @property
    def seconds(self) -> float:
        return self.cells + (self.loading or 0.0)


def estimate(wanted: Sequence[Work], timed: Sequence[tuple[Work, float]], loads: Sequence[float]) -> Estimate | None:
    """The time of these cells; None where no cell of one of these cards and precisions was ever timed.

    `timed` are earlier cells with their seconds, `loads` the seconds that drawings took beside their cells.
    """
    total, is_scaled = 0.0, False
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
        is_scaled = True
        total += statistics.median(rates) * work.units
    return Estimate(cells=total, loading=statistics.median(loads) if loads else None, is_scaled=is_scaled)


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
    """What earlier cells took on this kind of card."""
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

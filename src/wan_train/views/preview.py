"""A preview as people and programs see it: what will be drawn and how long it takes, what was drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from wan_train.base.units import dollars, duration, fine_percent
from wan_train.preview.estimate import Basis, Estimate
from wan_train.preview.model import BASE, Cell, Precision, Preview, PreviewDirectory, Prompt
from wan_train.recipe.terms import Expert
from wan_train.views.formatting import count, safe
from wan_train.views.json_records import Json
from wan_train.views.lines import Line, Row, line, table, wrapped

_MOST_ROWS = 12
_BASIS = {
    Basis.DRAWN: "from earlier pictures, drawn here",
    Basis.SCALED: "from pictures of another size, drawn here",
    Basis.TRAINED: "rough: from the speed of training here",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A preview with what is drawn of it. `per_hour` is the price of the box in dollars, None while unknown."""

    directory: PreviewDirectory
    preview: Preview
    cells: Mapping[tuple[str, int], Cell]
    notes: tuple[str, ...] = ()
    estimate: Estimate | None = None
    per_hour: float | None = None
    failed: Mapping[tuple[str, int], str] | None = None
    seconds: float | None = None
    """What this call took."""
    drawn_now: int = 0

    @property
    def total(self) -> int:
        return len(self.preview.rows) * len(self.preview.prompts)

    @property
    def left(self) -> int:
        return self.total - len(self.cells)


def before_lines(shown: Shown, width: int) -> Iterator[Line]:
    """What will be drawn, and the quote."""
    preview = shown.preview
    rows = [
        Row(label="Rows", value=_rows_text(preview)),
        Row(label="Prompts", value=_prompts_text(preview.prompts)),
        Row(label="Pictures", value=_pictures_text(shown)),
    ]
    if shown.left:
        rows.append(Row(label="Time", value=quote_text(shown)))
    if preview.is_fast:
        rows.append(Row(label="Fast", value="with Lightning: the pictures show it and your LoRAs together"))
    if preview.precision is Precision.FP8_SCALED:
        rows.append(Row(label="Precision", value="fp8, so that the experts fit this GPU"))
    rows.append(Row(label="Output", value=safe(shown.directory.path), whole=True))
    yield from table(rows, width)
    for note in shown.notes:
        yield from wrapped(safe(note), width, "yellow", indent=2)


def quote_text(shown: Shown) -> str:
    """The time of what is left, with its basis."""
    found = shown.estimate
    if found is None:
        return "known after the first picture: nothing was drawn on this card before"
    cost = f", about {dollars(found.seconds / 3600 * shown.per_hour)}" if shown.per_hour is not None else ""
    without = "" if found.loading is not None else ", without loading"
    return f"about {duration(found.seconds)}{cost} ({_BASIS[found.basis]}{without})"


def after_lines(shown: Shown, width: int) -> Iterator[Line]:
    """What came of it."""
    yield line()
    took = f" in {duration(shown.seconds)}" if shown.seconds is not None and shown.drawn_now else ""
    done = f"{count(shown.drawn_now, 'picture')} drawn{took}; {len(shown.cells)} of {shown.total} are there."
    yield from wrapped(done if shown.drawn_now else f"All {shown.total} pictures were there already.", width)
    for (row, number), reason in (shown.failed or {}).items():
        yield from wrapped(f"Row {safe(row)}, prompt {number + 1} is not usable: {reason}.", width, "yellow")
    for path in (shown.directory.sheet, shown.directory.path):
        if path.exists():
            yield line(f"  {safe(path)}", whole=True)
    run = shown.preview.run_id
    yield from wrapped(f"Choose one: wan-train pick {run} EPOCH, or HIGH:LOW", width)
    if shown.drawn_now and (shown.directory.path.parents[1] / "report.html").exists():
        yield from wrapped(f"Add the pictures to the report: wan-train report {run}", width)


def row_text(name: str, distance: float | None) -> str:
    """`60 (1.4 % from the last)`."""
    if name == BASE:
        return "base (no LoRA)"
    return safe(name) if distance is None else f"{safe(name)} ({fine_percent(distance)} from the last)"


def _rows_text(preview: Preview) -> str:
    shown = [row_text(row.name, row.distance) for row in preview.rows[:_MOST_ROWS]]
    more = len(preview.rows) - len(shown)
    return ", ".join(shown) + (f", {more} more" if more > 0 else "")


def _prompts_text(prompts: Sequence[Prompt]) -> str:
    sizes = dict.fromkeys(
        f"{prompt.width}x{prompt.height}" + (f", {prompt.frames} frames" if prompt.frames > 1 else "")
        for prompt in prompts
    )
    steps = dict.fromkeys(f"{prompt.steps} steps" for prompt in prompts)
    return f"{len(prompts)} at {' and '.join(sizes)}, {' and '.join(steps)}"


def _pictures_text(shown: Shown) -> str:
    if not shown.cells:
        return f"{shown.total}"
    return f"{shown.total}, of which {len(shown.cells)} are drawn already"


def preview_json(shown: Shown) -> Json:
    preview, found = shown.preview, shown.estimate
    return {
        "event": "preview",
        "run_id": preview.run_id,
        "name": preview.name,
        "directory": str(shown.directory.path),
        "sheet": _if_there(shown.directory, "sheet"),
        "workflow": _if_there(shown.directory, "workflow"),
        "task": preview.task.word,
        "precision": preview.precision.value,
        "prompts": [_prompt_json(prompt) for prompt in preview.prompts],
        "rows": [
            {
                "name": row.name,
                "high": str(row.loras[Expert.HIGH].path) if Expert.HIGH in row.loras else None,
                "low": str(row.loras[Expert.LOW].path) if Expert.LOW in row.loras else None,
                "distance": row.distance,
                "cells": [
                    cell_json(shown.directory, shown.cells.get((row.name, number)))
                    for number in range(len(preview.prompts))
                ],
            }
            for row in preview.rows
        ],
        "left_out": [{"epoch": each.epoch, "reason": each.reason} for each in preview.left_out],
        "notes": list(shown.notes),
        "total": shown.total,
        "drawn": len(shown.cells),
        "drawn_now": shown.drawn_now,
        "failed": [
            {"row": row, "prompt": number, "reason": reason} for (row, number), reason in (shown.failed or {}).items()
        ],
        "estimated_seconds": found.seconds if found is not None and shown.left else None,
        "seconds": shown.seconds,
    }


def cell_json(directory: PreviewDirectory, cell: Cell | None) -> Json | None:
    if cell is None:
        return None
    return {
        "files": [str(directory.path / file) for file in cell.files],
        "width": cell.width,
        "height": cell.height,
        "seconds": cell.seconds,
    }


def _prompt_json(prompt: Prompt) -> Json:
    return {
        "text": prompt.text,
        "negative": prompt.negative,
        "width": prompt.width,
        "height": prompt.height,
        "frames": prompt.frames,
        "steps": prompt.steps,
        "seed": prompt.seed,
    }


def _if_there(directory: PreviewDirectory, name: str) -> str | None:
    path = directory.sheet if name == "sheet" else directory.workflow
    return str(path) if path.is_file() else None

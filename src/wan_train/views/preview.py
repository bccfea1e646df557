"""A preview as text and JSON: what will be drawn, how long it takes, what was drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from wan_train.base.errors import WanTrainError
from wan_train.base.units import count, dollars, duration, fine_percent
from wan_train.preview.estimate import Basis, Estimate
from wan_train.preview.model import (
    BASE,
    Cell,
    Precision,
    Preview,
    PreviewDirectory,
    Prompt,
    drawn,
    is_being_drawn,
    previews_of,
)
from wan_train.recipe.terms import Expert
from wan_train.run.directory import RunDirectory
from wan_train.views.formatting import safe
from wan_train.views.json_records import Json
from wan_train.views.lines import Line, Row, Span, line, table, wrapped

_MOST_ROWS = 12
_BASIS = {
    Basis.DRAWN: "from earlier pictures, drawn here",
    Basis.SCALED: "from pictures of another size, drawn here",
    Basis.TRAINED: "rough: from the speed of training here",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A preview and its finished pictures. `per_hour` is the price of the box in dollars, None while unknown."""

    directory: PreviewDirectory
    preview: Preview
    cells: Mapping[tuple[str, int], Cell]
    have: int = 0
    """The number of pictures already drawn, here or as equal ones in other previews."""
    notes: tuple[str, ...] = ()
    estimate: Estimate | None = None
    per_hour: float | None = None
    failed: Mapping[tuple[str, int], str] | None = None
    seconds: float | None = None
    """The duration of this call."""
    drawing_seconds: float | None = None
    """The duration of this call without waiting for a GPU."""
    drawn_now: int = 0

    @property
    def total(self) -> int:
        return len(self.preview.rows) * len(self.preview.prompts)


def before_lines(shown: Shown, width: int) -> Iterator[Line]:
    """What will be drawn, and the quote."""
    preview = shown.preview
    rows = [
        Row(label="Rows", value=_rows_text(preview)),
        Row(label="Prompts", value=_prompts_text(preview.prompts)),
        Row(label="Pictures", value=_pictures_text(shown)),
    ]
    if shown.have < shown.total:
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
    """The time for the remaining pictures, with its basis."""
    found = shown.estimate
    if found is None:
        return "known after the first picture: nothing was drawn on this card before"
    cost = f", about {dollars(found.seconds / 3600 * shown.per_hour)}" if shown.per_hour is not None else ""
    without = "" if found.loading is not None else ", without loading"
    return f"about {duration(found.seconds)}{cost} ({_BASIS[found.basis]}{without})"


def after_lines(shown: Shown, width: int) -> Iterator[Line]:
    """The result: pictures, failures, files and next commands."""
    yield line()
    there = "All" if len(shown.cells) == shown.total else f"{len(shown.cells)} of"
    there += f" {count(shown.total, 'picture')} are ready."
    yield from wrapped(f"{_drawn_text(shown)} {there}" if shown.drawn_now else there, width)
    for (row, number), reason in (shown.failed or {}).items():
        yield from wrapped(f"Row {safe(row)}, prompt {number + 1} is not usable: {reason}.", width, "yellow")
    for path in (shown.directory.sheet, shown.directory.path):
        if path.exists():
            yield line(f"  {safe(path)}", whole=True)
    run = shown.preview.run_id
    if any(lora.epoch is not None for row in shown.preview.rows for lora in row.loras.values()):
        yield from wrapped(f"Choose one: wan-train pick {run} EPOCH, or HIGH:LOW", width)
    if shown.drawn_now and (shown.directory.path.parents[1] / "report.html").exists():
        yield from wrapped(f"Add the pictures to the report: wan-train report {run}", width)


def _drawn_text(shown: Shown) -> str:
    """`9 pictures drawn in 9 s (expected: 11 s).`"""
    took = f" in {duration(shown.drawing_seconds)}" if shown.drawing_seconds else ""
    expected = f" (expected: {duration(shown.estimate.seconds)})" if took and shown.estimate is not None else ""
    return f"{count(shown.drawn_now, 'picture')} drawn{took}{expected}."


def of_run(run: RunDirectory) -> Iterator[Line]:
    """What `status` shows about the newest preview of a run, or about one requested but never started."""
    command = f"wan-train preview {safe(run.run_id)}"
    try:
        directory = previews_of(run.path)[-1]
        preview = directory.read()
    except (IndexError, WanTrainError):
        if run.preview_prompts.is_file():
            yield from _titled("not drawn yet", "Draw it once the training has finished:", command)
        return
    command += " --fast" if preview.is_fast else ""
    total, have = len(list(preview.places())), len(drawn(directory, preview))
    text, then = f"{have} of {count(total, 'picture')}", None
    if is_being_drawn(run.path):
        text, then = f"{text}, being drawn", "Follow it:"
    elif have < total:
        then = "Draw the rest:"
    yield from _titled(text, then, command)
    if directory.sheet.is_file():
        yield line(f"    {safe(directory.sheet)}", whole=True)


def _titled(text: str, then: str | None, command: str) -> Iterator[Line]:
    yield line()
    yield line(Span("Preview", "bold"), f"  {text}")
    if then is not None:
        yield line(f"    {then}")
        yield line(f"    {command}", whole=True)


def row_text(name: str, distance: float | None) -> str:
    """`60 (1.4 %)`: the row and its distance to the last LoRA."""
    if name == BASE:
        return BASE
    return safe(name) if distance is None else f"{safe(name)} ({fine_percent(distance)})"


def _rows_text(preview: Preview) -> str:
    shown = [row_text(row.name, row.distance) for row in preview.rows[:_MOST_ROWS]]
    more = len(preview.rows) - len(shown)
    basis = "; in brackets: distance to the last LoRA" if any(row.distance for row in preview.rows) else ""
    return ", ".join(shown) + (f", {more} more" if more > 0 else "") + basis


def _prompts_text(prompts: Sequence[Prompt]) -> str:
    """`3: 832x480, 832x480 with 17 frames; 20 steps`."""
    sizes = dict.fromkeys(
        f"{prompt.width}x{prompt.height}" + (f" with {prompt.frames} frames" if prompt.frames > 1 else "")
        for prompt in prompts
    )
    steps = dict.fromkeys(f"{prompt.steps}" for prompt in prompts)
    return f"{len(prompts)}: {', '.join(sizes)}; {', '.join(steps)} steps"


def _pictures_text(shown: Shown) -> str:
    if not shown.have:
        return f"{shown.total}"
    return f"{shown.total}, {shown.have} already drawn"


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
        "estimated_seconds": found.seconds if found is not None and shown.have < shown.total else None,
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

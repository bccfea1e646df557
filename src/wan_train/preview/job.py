"""The job file of the drawing program, and the events that the program writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan_train.base import codec
from wan_train.base.files import NewLines, write_whole
from wan_train.engine import generate
from wan_train.engine.commands import DEVICE_VARIABLE, Command, trainer_environment
from wan_train.engine.generate import Memory
from wan_train.engine.trainer import Trainer
from wan_train.preview.model import Precision, Preview, PreviewDirectory, Row
from wan_train.preview.prepared import PreparedPreview
from wan_train.recipe.terms import Expert
from wan_train.run.directory import AttemptDirectory

_DRAWING = Path(__file__).parent / "drawing"
_DRIVER, _MUSUBI, _PLAIN = _DRAWING / "driver.py", _DRAWING / "musubi.py", _DRAWING / "plain.py"
_REHEARSAL = Path(__file__).parent.parent / "rehearsal" / "pairs.py"


def frames_of(directory: PreviewDirectory, preview: Preview, row: Row, number: int) -> tuple[Path, ...]:
    """Return the files of one cell: one picture, or a file for each frame of a clip in a folder."""
    stem, count = preview.stem(row, number), preview.prompts[number].frames
    if count == 1:
        return (directory.path / f"{stem}.png",)
    return tuple(directory.path / stem / f"{frame:03d}.png" for frame in range(count))


def latents_of(directory: PreviewDirectory, preview: Preview, row: Row, number: int) -> Mapping[Expert, Path]:
    """Return where each expert's result is kept until the cell is drawn.

    Rows with the same high-noise LoRA share the steps of that expert.
    """
    high = Row(name="", loras={expert: lora for expert, lora in row.loras.items() if expert is Expert.HIGH})
    folder = directory.work / "latents"
    return {
        Expert.HIGH: folder / f"{preview.key(high, number)[:32]}.high",
        Expert.LOW: folder / f"{preview.key(row, number)[:32]}.low",
    }


def write_job(
    ready: PreparedPreview,
    trainer: Trainer,
    cells: Iterable[tuple[Row, int]],
    *,
    attempt: AttemptDirectory,
    memory: Memory,
    env: Mapping[str, str],
) -> Command:
    """Write the job of one attempt and return the command that runs it. Raise OSError."""
    directory, preview = ready.directory, ready.preview
    path = attempt.path.with_name(f"{attempt.path.name}.job.json")
    path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    data = {
        "backend": str(_MUSUBI if trainer.is_real else _REHEARSAL),
        "settings": _settings(ready, memory, attempt),
        "strength": preview.strength,
        "decode": "each" if memory.decodes_each else "end",
        "events": str(events_of(attempt)),
        "python": str(trainer.python),
        "prompts": codec.to_data(preview.prompts),
        "cells": [
            {
                "key": preview.key(row, number),
                "prompt": number,
                "loras": {expert.value: str(lora.path) for expert, lora in row.loras.items()},
                "latents": {
                    expert.value: str(file) for expert, file in latents_of(directory, preview, row, number).items()
                },
                "frames": [str(frame) for frame in frames_of(directory, preview, row, number)],
            }
            for row, number in cells
        ],
    }
    write_whole(path, codec.dumps(data, indent=1) + "\n")
    program = _DRIVER if generate.is_known(trainer) else _PLAIN
    return Command(
        argv=(str(trainer.python), str(program), str(path)),
        cwd=str(trainer.root),
        env={**trainer_environment(trainer), **env},
    )


def _settings(ready: PreparedPreview, memory: Memory, attempt: AttemptDirectory) -> Mapping[str, Any]:
    preview = ready.preview
    if ready.models is None:
        return {"task": preview.task.value}
    words = generate.arguments(
        preview.task,
        ready.models,
        memory,
        fp8=preview.precision is Precision.FP8_SCALED,
        solver=preview.solver.value,
        uses_guidance=preview.uses_guidance,
    )
    return {
        "arguments": [*words, "--save_path", str(attempt.output)],
        "script": generate.SCRIPT,
        "text_on_cpu": memory.text_on_cpu,
        "merged": {expert.value: [str(lora.path)] for expert, lora in preview.merged.items()},
    }


def events_of(attempt: AttemptDirectory) -> Path:
    return attempt.path.with_name(f"{attempt.path.name}.events.jsonl")


def device_environment(uuid: str) -> Mapping[str, str]:
    return {DEVICE_VARIABLE: uuid}


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawingEvent:
    """One event of the drawing program; see `drawing/driver.py` for its kinds."""

    event: str
    key: str | None = None
    what: str | None = None
    expert: str | None = None
    number: int | None = None
    of: int | None = None
    steps: int | None = None
    seconds: float | None = None
    negative: str | None = None


class EventReader:
    """Reads each new event of an attempt once. It skips a line that a full disk cut off."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = NewLines(path)

    def new(self) -> list[DrawingEvent]:
        found: list[DrawingEvent] = []
        for line in self._lines.read():
            with suppress(codec.CorruptRecordError):
                found.append(codec.from_json(line, DrawingEvent, where=str(self._path)))
        return found

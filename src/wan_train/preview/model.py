"""One preview: its prompts, rows of LoRA pairs and drawn cells, and their records in `RUN/preview/NAME/`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from wan_train.base import codec, locks
from wan_train.base.errors import BadInputError
from wan_train.base.files import append_lines, write_whole
from wan_train.recipe.terms import Expert, Task

T = TypeVar("T")
SCHEMA = 1
BASE = "base"
"""The name of the row without LoRAs."""
_KEY_DIGITS = 8
_EPOCHS = re.compile(r"[0-9]+(:[0-9]+)?")


class Solver(StrEnum):
    """How a picture is computed from noise; the value is the trainer's `--sample_solver`."""

    UNIPC = "unipc"
    VANILLA = "vanilla"
    """Euler; Lightning was made for it."""


class Precision(StrEnum):
    """How the card stores the DiT weights. It changes pictures slightly, so all cells use the same precision."""

    AS_STORED = "as_stored"
    FP8_SCALED = "fp8_scaled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One column: a prompt with all settings of its picture except the LoRAs, defaults included.

    The text is untrusted: show it through `visible`. Width and height are in pixels. For image-to-video, the trainer
    keeps the area and takes the proportions of the start picture.
    """

    text: str
    negative: str | None
    """None: the model's own negative prompt."""
    width: int
    height: int
    frames: int
    steps: int
    seed: int
    guidance: Mapping[Expert, float]
    shift: float
    image: Path | None = None
    """The run's own copy of the start picture for image-to-video."""
    image_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A LoRA of one expert as it is drawn. `epoch` is None for a file from outside the run."""

    path: Path
    sha256: str
    epoch: int | None = None
    distance: float | None = None
    """Distance to the run's last LoRA of the same expert: 0.004 is 0.4 %. None for that LoRA, and if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row: the LoRAs that are drawn together. An expert missing from `loras` draws without one.

    `name` is `base`, an epoch such as `20`, a pair of epochs such as `20:60` (high-noise first), or a file's name
    (`file 20` if it would read as one of the others).
    """

    name: str
    loras: Mapping[Expert, Lora] = field(default_factory=dict)

    @property
    def distance(self) -> float | None:
        """The larger of the two LoRAs' distances to the last ones. None if unknown, and for the base."""
        known = [lora.distance for lora in self.loras.values() if lora.distance is not None]
        return max(known, default=None)

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epoch, or the two of a pair. Empty for the base and for files."""
        return tuple(map(int, self.name.split(":"))) if _EPOCHS.fullmatch(self.name) else ()

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in self.name)[:60]


def file_row_name(stem: str) -> str:
    """Return the name of a row of files. Rows are found by name, so it differs from every other row's."""
    return f"file {stem}" if stem == BASE or _EPOCHS.fullmatch(stem) else stem


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """An epoch that is not drawn, and why."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A preview with every choice made. `models` maps the role of each model file to its fingerprint.

    `strength` multiplies the LoRAs of the rows. `merged` holds LoRAs under all rows, such as Lightning's, by expert.
    """

    schema: int = SCHEMA
    name: str
    run_id: str
    created: float
    task: Task
    trainer: str
    """The trainer's commit, or its version if it has none."""
    models: Mapping[str, str]
    precision: Precision
    prompts: tuple[Prompt, ...]
    rows: tuple[Row, ...]
    strength: float = 1.0
    solver: Solver = Solver.UNIPC
    uses_guidance: bool = True
    """If off, only the positive prompt is computed, in half the time. Lightning needs no guidance."""
    merged: Mapping[Expert, Lora] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    model_negative: str | None = None
    """The model's own negative prompt, known once the trainer has reported it."""

    @property
    def is_fast(self) -> bool:
        return bool(self.merged)

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def places(self) -> Iterator[tuple[Row, int]]:
        """Every row with the index of every prompt, in the order of the sheet."""
        for row in self.rows:
            for number in range(len(self.prompts)):
                yield row, number

    def key(self, row: Row, number: int) -> str:
        """Return the SHA-256 of everything that decides the picture. Cells with the same key show the same picture."""
        prompt = codec.to_data(self.prompts[number])
        # The path of the start picture's copy does not affect the picture.
        prompt = {name: value for name, value in prompt.items() if name != "image"}
        decisive = {
            "prompt": prompt,
            "loras": {expert.value: lora.sha256 for expert, lora in row.loras.items()},
            "strength": self.strength if row.loras else None,
            "merged": {expert.value: lora.sha256 for expert, lora in self.merged.items()},
            "task": self.task,
            "trainer": self.trainer,
            "models": dict(self.models),
            "precision": self.precision,
            "solver": self.solver,
            "uses_guidance": self.uses_guidance,
        }
        return hashlib.sha256(codec.dumps(_sorted(decisive)).encode()).hexdigest()

    def stem(self, row: Row, number: int) -> str:
        """Return the name of a cell's files without extension: row, prompt number from 1, start of the key."""
        return f"{row.slug}_{number + 1:02d}_{self.key(row, number)[:_KEY_DIGITS]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One drawn picture or clip, opened and checked. `files` has one path a frame, relative to the preview's directory.

    `seconds` covers steps and decoding, not loading. `mean` and `deviation` describe the first frame's grey values,
    0 to 255.
    """

    key: str
    files: tuple[str, ...]
    width: int
    height: int
    seconds: float
    at: float
    mean: float
    deviation: float
    card: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One drawing attempt: its total seconds, and those spent on cells. The rest is loading."""

    at: float
    card: str
    seconds: float
    cells: int
    cell_seconds: float


@dataclass(frozen=True, slots=True)
class PreviewDirectory:
    """The records of one preview."""

    path: Path

    @property
    def preview(self) -> Path:
        return self.path / "preview.json"

    @property
    def prompts(self) -> Path:
        """The prompts in a separate file, for a later call that names none."""
        return self.path / "prompts.json"

    @property
    def cells(self) -> Path:
        return self.path / "cells.jsonl"

    @property
    def drawings(self) -> Path:
        return self.path / "drawings.jsonl"

    @property
    def sheet(self) -> Path:
        return self.path / "sheet.jpg"

    @property
    def workflow(self) -> Path:
        """For ComfyUI."""
        return self.path / "comfyui.json"

    @property
    def work(self) -> Path:
        """Attempts of the driver, with latents of unfinished cells."""
        return self.path / "work"

    def read(self) -> Preview:
        """Read the preview. Raise BadInputError if there is none, and CorruptRecordError."""
        try:
            text = self.preview.read_bytes()
        except FileNotFoundError:
            raise BadInputError(
                f"{self.path} is not a preview: it has no preview.json",
                hint="Draw one: `wan-train preview --prompts FILE`.",
            ) from None
        preview: Preview = codec.from_json(text, Preview, where=str(self.preview))
        return replace(preview, rows=tuple(map(_named, preview.rows)))

    def write(self, preview: Preview) -> None:
        """Write the preview. Raise OSError."""
        self.path.mkdir(parents=True, mode=0o700, exist_ok=True)
        write_whole(self.preview, codec.to_json(preview, indent=1) + "\n")

    def read_cells(self) -> Mapping[str, Cell]:
        """Return finished cells by key. Cells with missing files are left out."""
        cells: list[Cell] = _lines(self.cells, Cell)
        return {
            cell.key: cell for cell in cells if cell.files and all((self.path / file).is_file() for file in cell.files)
        }

    def read_drawings(self) -> Sequence[Drawing]:
        return _lines(self.drawings, Drawing)

    def keep(self, cell: Cell) -> None:
        """Append one finished cell and flush it to disk. Raise OSError."""
        append_lines(self.cells, codec.to_json(cell))

    def keep_drawing(self, drawing: Drawing) -> None:
        """Append one attempt. Raise OSError."""
        append_lines(self.drawings, codec.to_json(drawing))


def _named(row: Row) -> Row:
    """Return a recorded row under its name of today: older versions named rows of files `base` and `20` too."""
    is_of_files = any(lora.epoch is None for lora in row.loras.values()) or (row.name == BASE and row.loras)
    return replace(row, name=file_row_name(row.name)) if is_of_files else row


def _lines(path: Path, kind: type[T]) -> list[T]:
    """Return the records of a file, or an empty list if it cannot be read."""
    try:
        return codec.read_lines(path, kind)
    except OSError:
        return []


def previews_of(run_path: Path) -> tuple[PreviewDirectory, ...]:
    """Return the directory of every preview of a run, oldest first."""
    found = (PreviewDirectory(path.parent) for path in (run_path / "preview").glob("*/preview.json"))
    return tuple(sorted(found, key=lambda each: (each.preview.stat().st_mtime, each.path.name)))


def lock_of(run_path: Path) -> Path:
    """Return the lock file of a run's drawings, which prevents two at once."""
    return run_path / "preview" / "lock"


def is_being_drawn(run_path: Path) -> bool:
    return locks.is_locked(lock_of(run_path))


def drawn(directory: PreviewDirectory, preview: Preview) -> Mapping[tuple[str, int], Cell]:
    """Return the finished cells of a preview by row name and prompt index."""
    cells = directory.read_cells()
    found = {(row.name, number): cells.get(preview.key(row, number)) for row, number in preview.places()}
    return {place: cell for place, cell in found.items() if cell is not None}


def _sorted(data: object) -> object:
    match data:
        case dict():
            return {key: _sorted(data[key]) for key in sorted(data)}
        case list() | tuple():
            return [_sorted(each) for each in data]
        case _:
            return data

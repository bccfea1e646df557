"""Previews as a report shows them: pictures in rows of LoRAs and columns of prompts, small enough for one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_train.base.errors import WanTrainError
from wan_train.base.units import count
from wan_train.preview.model import Cell, Preview, PreviewDirectory, Prompt, Row, drawn, previews_of
from wan_train.preview.sheet import prompt_note, row_notes, row_title
from wan_train.preview.thumbnails import clip_file, is_clip, jpeg, strip
from wan_train.run.directory import RunDirectory
from wan_train.run.picks import Pick

MOST_SHOWN = 48
"""The most pictures, of all previews together."""
MOST_BYTES = 50_000
"""The most bytes of one picture, so that a phone can open the page."""
_MOST_CLIP_BYTES, _MOST_CLIPS_BYTES = 300_000, 4_000_000
"""The most bytes of one looping clip, and of all. Beyond, only its first, middle and last frame are shown."""
_SIDES = (640, 320)
_QUALITIES = (80, 60, 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCell:
    """A JPEG, or a WebP that loops, of this size in pixels."""

    data: bytes
    width: int
    height: int
    loops: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPreview:
    """A preview with the pictures that are shown; `cells` has None for a picture that cannot be read."""

    preview: Preview
    directory: Path
    rows: Sequence[Row]
    prompts: Sequence[Prompt]
    cells: Mapping[tuple[str, int], ShownCell | None]
    """By row name and prompt index, without pictures that are not drawn."""
    drawn: int
    """The number of pictures drawn, shown or not."""

    @property
    def more(self) -> str | None:
        """The rows and prompts that are not shown, in words."""
        left = [
            count(number, thing)
            for number, thing in (
                (len(self.preview.rows) - len(self.rows), "more row"),
                (len(self.preview.prompts) - len(self.prompts), "more prompt"),
            )
            if number
        ]
        return " and ".join(left) or None

    @property
    def columns(self) -> Sequence[tuple[Prompt, str]]:
        """Each prompt with its size, steps and seed."""
        return [(prompt, prompt_note(prompt)) for prompt in self.prompts]

    def labels(self, picks: Sequence[Pick]) -> Sequence[tuple[Row, str, Sequence[str]]]:
        """Each row with its title and its notes."""
        picked = {str(pick.epochs) for pick in picks}
        return [
            (row, row_title(row), [*row_notes(row), *(["picked"] if row.name in picked else [])]) for row in self.rows
        ]


def shown_previews(run: RunDirectory) -> tuple[ShownPreview, ...]:
    """The previews of a run, newest first, without records that cannot be read."""
    found, room, clips = [], MOST_SHOWN, _MOST_CLIPS_BYTES
    for directory in reversed(previews_of(run.path)):
        try:
            preview = directory.read()
        except (WanTrainError, OSError):
            continue
        cells = drawn(directory, preview)
        if not cells or not room:
            continue
        rows = preview.rows[:room]
        across = min(len(preview.prompts), max(1, room // len(rows)))
        room = max(0, room - len(rows) * across)
        shown: dict[tuple[str, int], ShownCell | None] = {}
        for row in rows:
            for number in range(across):
                cell = cells.get((row.name, number))
                if cell is not None:
                    made = shown[row.name, number] = _shown(directory, cell, clips)
                    clips -= len(made.data) if made is not None and made.loops else 0
        found.append(
            ShownPreview(
                preview=preview,
                directory=directory.path,
                rows=rows,
                prompts=preview.prompts[:across],
                cells=shown,
                drawn=len(cells),
            )
        )
    return tuple(found)


def _shown(directory: PreviewDirectory, cell: Cell, room: int) -> ShownCell | None:
    """The picture of a cell, None where it cannot be read; `room` bytes are left for clips."""
    try:
        clip = clip_file(directory, cell) if is_clip(cell) else None
        if clip is not None and clip.is_file() and clip.stat().st_size <= min(room, _MOST_CLIP_BYTES):
            return ShownCell(data=clip.read_bytes(), width=cell.width, height=cell.height, loops=True)
        for side in _SIDES:
            picture = strip(directory, cell, side // 2 if is_clip(cell) else side)
            for quality in _QUALITIES:
                data = jpeg(picture, quality)
                if len(data) <= MOST_BYTES:
                    return ShownCell(data=data, width=picture.width, height=picture.height)
    except (OSError, ValueError):
        pass
    return None

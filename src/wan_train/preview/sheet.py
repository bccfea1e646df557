"""The sheet of a preview: one picture with a row for each pair of LoRAs and a column for each prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from wan_train.base.files import write_whole
from wan_train.base.text import one_line
from wan_train.base.units import fine_percent
from wan_train.preview.model import BASE, Cell, Preview, PreviewDirectory, Prompt, Row, drawn
from wan_train.preview.thumbnails import FRAME_GAP, jpeg, strip, write_clip
from wan_train.recipe.terms import Expert

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as PlainFont

_MOST_WIDTH, _MOST_HEIGHT = 3200, 4000
_SIDES = (512, 160)
"""The maximum and minimum of a frame's longer side, in pixels."""
_LABEL, _GAP, _MARGIN = 190, 12, 16
_TEXT, _SMALL, _LINE, _SMALL_LINE = 20, 16, 26, 21
_PROMPT_LINES = 3
_HEAD = _LINE + _PROMPT_LINES * _LINE + 2 * _SMALL_LINE + _GAP
_MOST_PROMPT = 400
_QUALITY = 88
_NO_LETTER = "\U0010ffff"
_INK, _SOFT, _PAPER, _BLANK = "#1c1c1a", "#5d5d58", "#ffffff", "#e6e6e2"


def row_title(row: Row) -> str:
    """`base model`, `epoch 20`, `epochs 60:40`, or the names of files."""
    if row.name == BASE:
        return "base model"
    if row.epochs:
        return f"{'epoch' if len(row.epochs) == 1 else 'epochs'} {row.name}"
    return one_line(row.name.removesuffix(".safetensors"), 60)


def row_notes(row: Row) -> tuple[str, ...]:
    """Return the known distances of a row's LoRAs from the last ones. Each note fits one line."""
    if row.name == BASE:
        return ("no LoRA",)
    known = {expert: row.loras[expert].distance for expert in Expert if expert in row.loras}
    far = {expert: fine_percent(distance) for expert, distance in known.items() if distance is not None}
    if not far:
        return ()
    if len(set(far.values())) == 1 and len(far) == len(known):
        return (f"{next(iter(far.values()))} from the last",)
    return (*(f"{expert.value}-noise {distance}" for expert, distance in far.items()), "from the last")


def prompt_note(prompt: Prompt) -> str:
    """Size, frames, steps and seed of a column."""
    frames = f", {prompt.frames} frames" if prompt.frames > 1 else ""
    return f"{prompt.width}x{prompt.height}{frames}, {prompt.steps} steps, seed {prompt.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One prompt with its frame size in pixels. For image-to-video it is known once a frame was drawn."""

    number: int
    prompt: Prompt
    width: int
    height: int

    @property
    def frames(self) -> int:
        """How many frames are shown side by side."""
        return 3 if self.prompt.frames > 1 else 1

    def room(self, side: int) -> tuple[int, int]:
        """Width and height of a cell whose frames have this longer side."""
        longer = max(self.width, self.height)
        width, height = (max(1, round(length * side / longer)) for length in (self.width, self.height))
        return self.frames * width + FRAME_GAP * (self.frames - 1), height


def columns_of(preview: Preview, cells: Mapping[tuple[str, int], Cell]) -> tuple[Column, ...]:
    """Return the prompts with the sizes of their drawn cells."""
    sizes = {number: (cell.width, cell.height) for (_, number), cell in cells.items()}
    return tuple(
        Column(number=number, prompt=prompt, width=width, height=height)
        for number, prompt in enumerate(preview.prompts)
        for width, height in [sizes.get(number, (prompt.width, prompt.height))]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The rows and columns of one page, and the longer side of a frame on it, in pixels."""

    rows: Sequence[Row]
    columns: Sequence[Column]
    side: int


def pages(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[Page, ...]:
    """Divide rows and columns into few pages. The scale keeps every label and frame readable."""
    room = _MOST_WIDTH - _LABEL - 2 * _MARGIN
    across: list[list[Column]] = [[]]
    for column in columns:
        if across[-1] and _width([*across[-1], column], _SIDES[1]) > room:
            across.append([])
        across[-1].append(column)
    # Enlarged frames would show no more detail.
    most = max(max(column.width, column.height) for column in columns)
    sides = range(_SIDES[1], max(_SIDES[1], min(_SIDES[0], most)) + 1)
    side = max((side for side in sides if all(_width(group, side) <= room for group in across)), default=_SIDES[1])
    tallest = max(column.room(side)[1] for column in columns)
    down = max(1, (_MOST_HEIGHT - _HEAD - 2 * _MARGIN) // (tallest + _GAP))
    return tuple(
        Page(rows=rows[top : top + down], columns=group, side=side)
        for group in across
        for top in range(0, len(rows), down)
    )


def _width(columns: Sequence[Column], side: int) -> int:
    return sum(column.room(side)[0] + _GAP for column in columns)


def draw_sheet(directory: PreviewDirectory, preview: Preview) -> tuple[Path, ...]:
    """Write the sheet of the cells drawn so far, and a looping WebP for each clip. Return the paths of its pages.

    Raise OSError if a file cannot be written. An unreadable cell is shown as missing.
    """
    cells = drawn(directory, preview)
    for cell in cells.values():
        write_clip(directory, cell)
    made = []
    every = pages(preview.rows, columns_of(preview, cells))
    for number, page in enumerate(every, start=1):
        path = directory.sheet if number == 1 else directory.sheet.with_name(f"sheet-{number}.jpg")
        write_whole(path, jpeg(_page(directory, preview, page, cells, (number, len(every))), _QUALITY))
        made.append(path)
    for old in set(directory.path.glob("sheet-*.jpg")) - set(made):
        old.unlink(missing_ok=True)
    return tuple(made)


def wrapped(text: str, width: float, lines: int, measure: Callable[[str], float]) -> list[str]:
    """Wrap a text into at most `lines` lines, between words if possible. A truncated text ends with an ellipsis."""
    found: list[str] = []
    left = text.strip()
    while left and len(found) < lines:
        fits = next((end for end in range(len(left), 0, -1) if measure(left[:end]) <= width), 1)
        if fits < len(left):
            space = left.rfind(" ", 1, fits + 1)
            fits = space if space > 0 else fits
        found.append(left[:fits].rstrip())
        left = left[fits:].lstrip()
    if left:
        last = found[-1]
        while last and measure(last + "…") > width:
            last = last[:-1]
        found[-1] = last.rstrip() + "…"
    return found


def _page(
    directory: PreviewDirectory,
    preview: Preview,
    page: Page,
    cells: Mapping[tuple[str, int], Cell],
    place: tuple[int, int],
) -> Image:
    from PIL import Image, ImageDraw

    widths = [column.room(page.side)[0] for column in page.columns]
    height = max(column.room(page.side)[1] for column in page.columns)
    size = (
        2 * _MARGIN + _LABEL + sum(widths) + _GAP * (len(widths) - 1),
        2 * _MARGIN + _HEAD + len(page.rows) * (height + _GAP),
    )
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    number, of = place
    title = one_line(preview.run_id, 120) + (", with Lightning" if preview.is_fast else "")
    draw.text((_MARGIN, _MARGIN), title, _SOFT, _font(_SMALL))
    if of > 1:
        draw.text((size[0] - _MARGIN, _MARGIN), f"page {number} of {of}", _SOFT, _font(_SMALL), anchor="ra")
    lefts = [_MARGIN + _LABEL + sum(widths[:at]) + _GAP * at for at in range(len(widths))]
    for column, left, width in zip(page.columns, lefts, widths, strict=True):
        _prompt(draw, column, (left, _MARGIN + _LINE), width)
    top = _MARGIN + _HEAD
    for row in page.rows:
        _label(draw, row, (_MARGIN, top))
        for column, left, width in zip(page.columns, lefts, widths, strict=True):
            picture = _picture(directory, cells.get((row.name, column.number)), page.side)
            if picture is None:
                own = column.room(page.side)[1]
                draw.rectangle((left, top, left + width - 1, top + own - 1), _BLANK)
                middle = (left + width / 2, top + own / 2)
                draw.text(middle, "not drawn", _SOFT, _font(_SMALL), anchor="mm")
            else:
                canvas.paste(picture, (left, top))
        top += height + _GAP
    return canvas


def _picture(directory: PreviewDirectory, cell: Cell | None, side: int) -> Image | None:
    if cell is None:
        return None
    try:
        return strip(directory, cell, side)
    except (OSError, ValueError):
        return None


def _prompt(draw: ImageDraw, column: Column, at: tuple[int, int], width: int) -> None:
    left, top = at
    font, small = _font(_TEXT), _font(_SMALL)
    text = one_line(column.prompt.text, _MOST_PROMPT)
    if not _has(font, text):
        text = f"prompt {column.number + 1}"
    for line in wrapped(text, width, _PROMPT_LINES, lambda piece: draw.textlength(piece, font)):
        draw.text((left, top), line, _INK, font)
        top += _LINE
    for line in wrapped(prompt_note(column.prompt), width, 2, lambda piece: draw.textlength(piece, small)):
        draw.text((left, top), line, _SOFT, small)
        top += _SMALL_LINE


def _has(font: FreeTypeFont | PlainFont, text: str) -> bool:
    """Whether the font has most letters of a text. Chinese and Japanese would be a row of empty boxes."""
    empty = bytes(font.getmask(_NO_LETTER))
    return 2 * sum(bytes(font.getmask(letter)) == empty for letter in text) < max(1, len(text))


def _label(draw: ImageDraw, row: Row, at: tuple[int, int]) -> None:
    left, top = at
    font, small = _font(_TEXT), _font(_SMALL)
    for line in wrapped(row_title(row), _LABEL - _GAP, _PROMPT_LINES, lambda piece: draw.textlength(piece, font)):
        draw.text((left, top), line, _INK, font)
        top += _LINE
    for note in row_notes(row):
        for line in wrapped(note, _LABEL - _GAP, 2, lambda piece: draw.textlength(piece, small)):
            draw.text((left, top), line, _SOFT, small)
            top += _SMALL_LINE


@cache
def _font(size: int) -> FreeTypeFont | PlainFont:
    """Return matplotlib's DejaVu Sans, which has Greek, Cyrillic and more. Fall back to Pillow's own font."""
    from PIL import ImageFont

    found = find_spec("matplotlib")
    if found is not None and found.origin is not None:
        path = Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(path, size)
    return ImageFont.load_default(size)

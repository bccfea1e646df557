"""Lines of styled text, laid out here; rich renders them only at the very end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from wan_train.views.formatting import columns, cut, pad, to_ascii, wrap

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

_LONGEST_BAR = 60


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a line. `style` is rich's; the text is never read as markup."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One line. A `whole` one (a path, a command to copy) is never cut or wrapped here."""

    spans: tuple[Span, ...] = ()
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A label and its value; an empty label continues the row above. A `whole` value (a path) is never wrapped."""

    label: str = ""
    value: str = ""
    style: str = ""
    whole: bool = False


class Keep(IntEnum):
    """The priority of a line on a live screen. When space is short, the lowest goes first."""

    BLANK = 0
    TAIL = 1
    DISK = 2
    EVENT = 3
    GPU = 4
    WARNING = 5
    DETAIL = 6
    LOSS = 7
    ALWAYS = 9


@dataclass(frozen=True, slots=True)
class ScreenLine:
    """A line of a live screen."""

    line: Line
    keep: Keep


def lowered(rows: Sequence[ScreenLine], height: int) -> list[ScreenLine]:
    """Return the rows that fit. Drop the least important first, the upper one of equals; then cut the end."""
    kept = list(rows)
    while len(kept) > height and (least := min(row.keep for row in kept)) < Keep.ALWAYS:
        kept.remove(next(row for row in kept if row.keep is least))
    return kept[:height]


def line(*parts: Span | str, whole: bool = False) -> Line:
    return Line(tuple(part if isinstance(part, Span) else Span(part) for part in parts), whole)


def wrapped(text: str, width: int, style: str = "", *, indent: int = 0) -> Iterator[Line]:
    """A paragraph, wrapped by words."""
    for piece in wrap(text, width - indent):
        yield line(" " * indent, Span(piece, style))


def hanging(head: Sequence[Span], text: str, width: int, style: str = "") -> Iterator[Line]:
    """A paragraph beside its head; further lines are indented to where it starts."""
    start = width_of(head)
    for number, piece in enumerate(wrap(text, width - start)):
        yield line(*([Span(" " * start)] if number else head), Span(piece, style))


def width_of(spans: Iterable[Span]) -> int:
    return sum(columns(span.text) for span in spans)


def plain(lines: Iterable[Line]) -> str:
    """The lines as text without styles, each with its line end."""
    return "".join("".join(span.text for span in one.spans).rstrip() + "\n" for one in lines)


def table(rows: Sequence[Row], width: int, *, indent: int = 2) -> Iterator[Line]:
    """Rows with their labels in one column and wrapped values in the other."""
    label_width = max((columns(row.label) for row in rows), default=0)
    for row in rows:
        label = Span(" " * indent + pad(row.label, label_width + 2), "dim")
        if row.whole:
            yield line(label, Span(row.value, row.style), whole=True)
        elif row.label or row.value:
            yield from hanging([label], row.value, width, row.style)
        else:
            yield line()


def labelled(label: str, values: Iterable[str]) -> Iterator[Row]:
    """One row for each value; only the first has the label."""
    for number, value in enumerate(values):
        yield Row(label="" if number else label, value=value)


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, indent: int = 0) -> Iterator[Line]:
    """Columns under dim headings. The first and last are left-aligned, the others (numbers) right-aligned."""
    last = len(heads) - 1
    widths = [max(columns(row[column]) for row in (heads, *rows)) for column in range(last)]
    for number, row in enumerate((heads, *rows)):
        cells = [pad(row[0], widths[0])]
        cells += [" " * (widths[column] - columns(row[column])) + row[column] for column in range(1, last)]
        style = "" if number else "dim"
        yield from hanging([Span(" " * indent + "  ".join(cells) + "  ", style)], row[last], width, style)


def to_rich(one: Line, width: int, *, ascii_only: bool = False) -> Text:
    """A line for the screen, at most `width` columns wide unless it is `whole`."""
    from rich.text import Text

    text = Text(end="\n") if one.whole else Text(no_wrap=True, overflow="crop", end="\n")
    for span in one.spans if one.whole else _cropped(one.spans, width):
        text.append(to_ascii(span.text) if ascii_only else span.text, style=span.style or None)
    if not one.whole:
        # Rich measures rare characters differently, and its measure decides on wrapping.
        text.truncate(width, overflow="crop")
    return text


def _cropped(spans: Iterable[Span], width: int) -> Iterator[Span]:
    left = width
    for span in spans:
        if left <= 0:
            return
        text = cut(span.text, left)
        yield Span(text, span.style)
        left -= columns(span.text)


def bar(done: int, total: int, room: int) -> tuple[Span, ...]:
    """A progress bar, `room` columns wide, but at least 4 and at most 60."""
    length = max(4, min(_LONGEST_BAR, room))
    full = max(0, min(length, length * done // total))
    return (Span("█" * full, "cyan"), Span("░" * (length - full), "dim"))


class Screenful:
    """Lines laid out for the width of the console, in ASCII if the console shows nothing else."""

    def __init__(self, layout: Callable[[int], Iterable[Line]], *, ascii_only: bool = False) -> None:
        self._layout = layout
        self._ascii_only = ascii_only

    def in_ascii(self) -> Screenful:
        """The same in ASCII, whatever the console claims to support."""
        return Screenful(self._layout, ascii_only=True)

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[Text]:
        width = options.max_width
        for one in self._layout(width):
            yield to_rich(one, width, ascii_only=options.ascii_only or self._ascii_only)

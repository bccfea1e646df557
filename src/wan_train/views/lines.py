"""Lines of styled text, laid out without the rendering library and handed to it at the very end."""

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
    """A piece of a line. `style` is rich's; the text is shown as it is, never read as markup."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One line. A `whole` one (a path, a command to copy) is never cut: the terminal wraps it."""

    spans: tuple[Span, ...] = ()
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A label and what it labels; an empty label continues the row above."""

    label: str = ""
    value: str = ""
    style: str = ""


class Keep(IntEnum):
    """What goes first when a live screen is too low."""

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
    """The rows that fit: the least important go first, of equals the upper ones; at last the end is cut."""
    kept = list(rows)
    while len(kept) > height and (least := min(row.keep for row in kept)) < Keep.ALWAYS:
        kept.remove(next(row for row in kept if row.keep is least))
    return kept[:height]


def line(*parts: Span | str, whole: bool = False) -> Line:
    return Line(tuple(part if isinstance(part, Span) else Span(part) for part in parts), whole)


def width_of(spans: Iterable[Span]) -> int:
    return sum(columns(span.text) for span in spans)


def plain(lines: Iterable[Line]) -> str:
    """The lines as text without styles, each with its line end."""
    return "".join("".join(span.text for span in one.spans).rstrip() + "\n" for one in lines)


def table(rows: Sequence[Row], width: int, *, indent: int = 2) -> Iterator[Line]:
    """Rows with their labels in one column and wrapped values in the other."""
    label_width = max((columns(row.label) for row in rows), default=0)
    start = indent + label_width + 2
    for row in rows:
        if not row.label and not row.value:
            yield line()
            continue
        label = Span(" " * indent + pad(row.label, label_width + 2), "dim")
        for number, piece in enumerate(wrap(row.value, width - start)):
            yield line(label if number == 0 else Span(" " * start), Span(piece, row.style))


def to_rich(one: Line, width: int, *, ascii_only: bool = False) -> Text:
    """A line for the screen, never wider than `width` columns unless it is a whole one."""
    from rich.text import Text

    text = Text(end="\n") if one.whole else Text(no_wrap=True, overflow="crop", end="\n")
    for span in one.spans if one.whole else _cropped(one.spans, width):
        text.append(to_ascii(span.text) if ascii_only else span.text, style=span.style or None)
    if not one.whole:
        # Rich's own measure of rare characters may differ from ours, and it is the one that decides on wrapping.
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
    """How much of `total` is there, in at most `room` columns."""
    length = max(4, min(_LONGEST_BAR, room))
    full = max(0, min(length, length * done // total))
    return (Span("█" * full, "cyan"), Span("░" * (length - full), "dim"))


class Screenful:
    """Lines laid out for the width of whatever console prints them, in ASCII where it can show nothing else."""

    def __init__(self, layout: Callable[[int], Iterable[Line]], *, ascii_only: bool = False) -> None:
        self._layout = layout
        self._ascii_only = ascii_only

    def in_ascii(self) -> Screenful:
        """The same for a terminal of which only a person, or the locale, says that it shows nothing else."""
        return Screenful(self._layout, ascii_only=True)

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[Text]:
        width = options.max_width
        for one in self._layout(width):
            yield to_rich(one, width, ascii_only=options.ascii_only or self._ascii_only)

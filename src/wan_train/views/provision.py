"""The live view of a provision as a pure function of its steps' rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from wan_train.provision.status_table import Phase, Row
from wan_train.views import formatting
from wan_train.views.lines import Keep, Line, ScreenLine, Span, bar, line, lowered, to_rich, width_of

if TYPE_CHECKING:
    from rich.console import Group

MARKS: dict[Phase, tuple[str, str, str]] = {
    Phase.READY: ("✓", "ready", "dim"),
    Phase.WAITING: ("○", "wait", "dim"),
    Phase.RUNNING: ("▶", "run", "cyan"),
    Phase.DONE: ("✓", "done", "green"),
    Phase.FAILED: ("✗", "FAILED", "bold red"),
    Phase.SKIPPED: ("✗", "skipped", "yellow"),
    Phase.ENDED: ("✗", "ended", "yellow"),
}
_WARNS = ("!", "warning", "yellow")
_WORD_WIDTH = 9
_TITLES_FROM = 140
"""Narrower screens name steps by their short ids."""
_NARROW = 72
_SILENT_SECONDS = 15.0
_FAILURE_LINES = 6
_WAIT_LINES = 3
_LEFT_WIDTH = len("59 min 59 s left")
_TOTAL = "all downloads"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What is made ready: `what` in words, `engine` with its commit, `began` by the monotonic clock."""

    what: str
    engine: str
    workspace: str
    began: float


@dataclass(frozen=True, slots=True)
class _Layout:
    width: int
    name: Callable[[Row], str]
    names: int
    titles: dict[str, str]

    @property
    def start(self) -> int:
        return 2 + _WORD_WIDTH + self.names + 2

    @property
    def room(self) -> int:
        return max(8, self.width - self.start)

    @property
    def indent(self) -> int:
        """Where lines about a step begin: under its bar, or further left where there is no room for that."""
        return self.start if self.width >= _NARROW else 4


def render(
    rows: Sequence[Row],
    now: float,
    width: int,
    *,
    heading: Heading,
    height: int | None = None,
    ascii_only: bool = False,
    ending: bool = False,
) -> Group:
    """The steps at `now` (monotonic seconds) in at most `width` columns and `height` lines.

    `ending`: the user has asked for the end, and programs are being ended.
    """
    from rich.console import Group

    lines = list(_screen(rows, now, width, heading, ending=ending))
    if height is not None:
        lines = lowered(lines, max(1, height))
    return Group(*(to_rich(each.line, width, ascii_only=ascii_only) for each in lines))


def is_download(row: Row) -> bool:
    return row.total > 0


def names_at(width: int) -> Callable[[Row], str]:
    """How steps are called on a screen of this width."""
    return (lambda row: formatting.safe(row.title)) if width >= _TITLES_FROM else (lambda row: formatting.safe(row.id))


def _screen(rows: Sequence[Row], now: float, width: int, heading: Heading, *, ending: bool) -> Iterator[ScreenLine]:
    yield ScreenLine(_title(heading, now, width, ending=ending), Keep.ALWAYS)
    yield ScreenLine(_subtitle(heading, width), Keep.DETAIL)
    yield ScreenLine(line(), Keep.BLANK)
    name = names_at(width)
    longest = max((formatting.columns(name(row)) for row in rows), default=0)
    layout = _Layout(width, name, max(longest, 0), {row.id: name(row) for row in rows})
    for row in rows:
        first, *more = _step(row, now, layout)
        yield ScreenLine(first, Keep.DISK if row.phase is Phase.READY else Keep.ALWAYS)
        yield from (ScreenLine(each, Keep.DETAIL) for each in more)
        for remark in row.remarks:
            pieces = formatting.wrap(formatting.safe(remark), width - layout.indent)
            yield from (ScreenLine(line(" " * layout.indent, Span(each, "yellow")), Keep.WARNING) for each in pieces)
    yield from _total([row for row in rows if is_download(row)], layout)
    yield ScreenLine(line(), Keep.BLANK)
    out = "Ending what is at work; what is complete is kept." if ending else "Ctrl-C: stop; what is complete is kept"
    yield ScreenLine(line(Span(formatting.cut(out, width), "yellow" if ending else "dim")), Keep.ALWAYS)


def _title(heading: Heading, now: float, width: int, *, ending: bool) -> Line:
    since = formatting.duration(now - heading.began)
    right = Span(f"ending, {since}", "yellow") if ending else Span(f"running {since}", "cyan")
    title = formatting.cut(f"Making ready: {formatting.safe(heading.what)}", max(4, width - width_of([right]) - 2))
    return line(Span(title, "bold"), " " * max(2, width - width_of([right]) - formatting.columns(title)), right)


def _subtitle(heading: Heading, width: int) -> Line:
    parts = [formatting.safe(heading.engine), formatting.safe(heading.workspace)]
    while len(parts) > 1 and formatting.columns(" · ".join(parts)) > width:
        parts.pop()
    return line(Span(" · ".join(parts), "dim"))


def _step(row: Row, now: float, layout: _Layout) -> Iterator[Line]:
    mark, word, style = _WARNS if row.warns else MARKS[row.phase]
    quiet = row.phase in {Phase.WAITING, Phase.READY}
    head = (
        Span(f"{mark} {formatting.pad(word, _WORD_WIDTH)}", style),
        Span(formatting.pad(layout.name(row), layout.names + 2), "dim" if quiet else "bold"),
    )
    match row.phase:
        case Phase.READY:
            yield line(*head, Span(formatting.cut(formatting.safe(row.detail), layout.room), "dim"))
        case Phase.WAITING:
            yield from _wrapped(head, _waits_for(row, layout), layout, style="dim", most=_WAIT_LINES)
        case Phase.RUNNING:
            yield from _running(row, now, head, layout)
        case Phase.DONE:
            yield line(*head, formatting.cut(" · ".join(outcome(row, now)), layout.room))
        case Phase.FAILED:
            reason = " ".join(piece.strip() for piece in row.detail.removeprefix("failed: ").split("\n"))
            text = f"{formatting.safe(reason)} (after {formatting.duration(row.seconds(now))})"
            yield from _wrapped(head, text, layout, style="red", most=_FAILURE_LINES)
        case Phase.SKIPPED | Phase.ENDED:
            yield from _wrapped(head, formatting.safe(row.detail), layout, style="", most=_WAIT_LINES)
        case _:
            assert_never(row.phase)


def _wrapped(head: tuple[Span, ...], text: str, layout: _Layout, *, style: str, most: int) -> Iterator[Line]:
    pieces = list(formatting.wrap(text, layout.room))
    if len(pieces) > most:
        pieces = [*pieces[: most - 1], formatting.cut(" ".join(pieces[most - 1 :]), layout.room)]
    yield line(*head, Span(pieces[0], style))
    yield from (line(" " * layout.start, Span(piece, style)) for piece in pieces[1:])


def _waits_for(row: Row, layout: _Layout) -> str:
    size = f"{formatting.file_size(row.total)}, " if is_download(row) else ""
    if row.turn_after is not None:
        return f"{size}after {layout.titles.get(row.turn_after, formatting.safe(row.turn_after))}"
    names = ", ".join(layout.titles.get(need, formatting.safe(need)) for need in row.needs)
    return f"{size}needs {names}" if names else f"{size}not begun yet"


def _running(row: Row, now: float, head: tuple[Span, ...], layout: _Layout) -> Iterator[Line]:
    spent = formatting.duration(row.seconds(now))
    if not is_download(row) or not 0 < row.done < row.total:
        yield line(*head, formatting.cut(f"{formatting.safe(row.detail) or 'starting'} …  {spent}", layout.room))
        return
    yield _progress(head, row.done, row.total, row.seconds_left, layout)
    figures = [amount(row.done, row.total), _pace(row, now), f"{spent} so far"]
    for text in formatting.flow(
        [*figures, *([formatting.safe(row.detail)] if row.detail else [])], layout.width - layout.indent
    ):
        yield line(" " * layout.indent, Span(formatting.cut(text, layout.width - layout.indent), "dim"))


def _pace(row: Row, now: float) -> str:
    return speed(row.rate) or ("no rate yet" if row.seconds(now) < _SILENT_SECONDS else "almost nothing comes")


def _progress(head: tuple[Span, ...], done: int, total: int, left: float | None, layout: _Layout) -> Line:
    # The same room for every bar, so that they can be compared by eye.
    time_left = f"{formatting.duration(left)} left" if left is not None else ""
    tail = f"  {100 * done // total:>3} %  {formatting.pad(time_left, _LEFT_WIDTH)}"
    return line(*head, *bar(done, total, layout.room - formatting.columns(tail)), tail)


def _total(downloads: Sequence[Row], layout: _Layout) -> Iterator[ScreenLine]:
    """All bytes of this call together. Installs tell none, so the time left is that of the downloads alone."""
    if len(downloads) < 2 or all(row.phase not in {Phase.WAITING, Phase.RUNNING} for row in downloads):  # noqa: PLR2004  one is its own total
        return
    done, total, rate = totals(downloads)
    left = (total - done) / rate if rate > 0 else None
    label = Span(formatting.pad(formatting.cut(_TOTAL, layout.start - 2), layout.start), "bold")
    yield ScreenLine(line(), Keep.BLANK)
    yield ScreenLine(_progress((label,), done, total, left, layout), Keep.GPU)
    figures = formatting.cut(" · ".join(filter(None, (amount(done, total), speed(rate)))), layout.width - layout.indent)
    yield ScreenLine(
        line(" " * layout.indent, Span(formatting.cut(figures, layout.width - layout.indent), "dim")), Keep.DISK
    )


def totals(downloads: Sequence[Row]) -> tuple[int, int, float]:
    """Bytes there, of all, and a second. A download that is over counts as nothing left to come."""
    open_ = [row for row in downloads if row.phase in {Phase.WAITING, Phase.RUNNING, Phase.DONE}]
    done = sum(row.total if row.phase is Phase.DONE else row.done for row in open_)
    return done, sum(row.total for row in open_), sum(row.rate for row in open_)


def amount(done: int, total: int) -> str:
    """`5.1 of 11.4 GB`, `120 of 508 MB`."""
    whole = formatting.file_size(total)
    part = formatting.file_size(done)
    unit = whole.rpartition(" ")[2]
    return f"{part.removesuffix(f' {unit}')} of {whole}"


def speed(rate: float) -> str:
    """`112 MB/s`, `4.5 MB/s`, `80 kB/s`; empty when there is none."""
    if rate <= 0:
        return ""
    return f"{rate / 1e6:.1f} MB/s" if 1e6 <= rate < 10e6 else f"{formatting.file_size(round(rate))}/s"  # noqa: PLR2004  below, one digit is too few


def outcome(row: Row, now: float) -> Iterator[str]:
    """What a step took."""
    yield formatting.duration(row.seconds(now))
    if row.fetched:
        yield f"{formatting.file_size(row.fetched)} fetched"

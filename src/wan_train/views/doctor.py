"""What the doctor found, as lines for people and as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from wan_train import __version__
from wan_train.base.units import count
from wan_train.provision.doctor import Check, Group, Level, Report
from wan_train.views.formatting import columns, pad, safe, wrap
from wan_train.views.lines import Line, Span, line

_MARKS = {
    Level.OK: ("✓", "ok", "green"),
    Level.UNTESTED: ("○", "not tested", ""),
    Level.WARNING: ("!", "warning", "yellow"),
    Level.ERROR: ("✗", "ERROR", "bold red"),
}
_WORD_WIDTH = 11
_NARROW = 100
_COMMAND = re.compile(r"`[^`]+`")
_HELD_SPACE = "\u00a0"


def doctor_lines(report: Report, width: int) -> Iterator[Line]:
    """The table, one part for each group, then the conclusion."""
    titles = max(columns(safe(check.title)) for check in report.checks)
    for group in Group:
        checks = [check for check in report.checks if check.group is group]
        if not checks:
            continue
        yield line(Span(group.value, "bold"))
        for check, after in zip(checks, [*checks[1:], None], strict=True):
            yield from _rows(check, titles, width)
            # A fix for several checks in a row is shown once, below the last of them.
            if check.level is not Level.OK and check.next and not (after and after.next == check.next):
                yield from _next_lines(check.next, titles, width, _MARKS[check.level][2])
        yield line()
    yield from _conclusion(report, width)


def _rows(check: Check, titles: int, width: int) -> Iterator[Line]:
    mark, word, style = _MARKS[check.level]
    head = (Span(f"  {mark} {pad(word, _WORD_WIDTH)}", style), Span(pad(safe(check.title), titles + 2)))
    start = 4 + _WORD_WIDTH + titles + 2
    for number, piece in enumerate(wrap(safe(check.finding.detail), width - start)):
        yield line(*(head if number == 0 else (" " * start,)), Span(piece, "dim" if check.level is Level.OK else ""))


def _next_lines(hint: str, titles: int, width: int, style: str) -> Iterator[Line]:
    margin = (titles + 2 if width >= _NARROW else 0) + 4 + _WORD_WIDTH
    # A command must be copyable as a whole, so break it only if it does not fit.
    held = _COMMAND.sub(lambda command: command[0].replace(" ", _HELD_SPACE), safe(hint))
    for number, piece in enumerate(wrap(held, width - margin - 2)):
        mark = Span("→ " if number == 0 else "  ", style)
        yield line(" " * margin, mark, Span(piece.replace(_HELD_SPACE, " "), "cyan"))


def _conclusion(report: Report, width: int) -> Iterator[Line]:
    warnings = report.count(Level.WARNING)
    if report.is_ready:
        also = f", {count(warnings, 'warning')}" if warnings else ""
        yield line(Span(f"This box is ready to train{also}.", "bold green"))
        return
    errors = report.count(Level.ERROR)
    summary = f"This box is not ready to train: {count(errors, 'error')}, {count(warnings, 'warning')}."
    for piece in wrap(summary, width):
        yield line(Span(piece, "bold red"))
    errors_left = [check for check in report.checks if check.level is Level.ERROR]
    todo = f"`{report.provision}`"
    mine = [check for check in errors_left if check.next == todo]
    yours = [
        Group.MODELS.value if check.group is Group.MODELS else safe(check.title)
        for check in errors_left
        if check not in mine
    ]
    if yours:
        for piece in wrap(f"Fix these first: {', '.join(dict.fromkeys(yours))}.", width):
            yield line(piece)
    if mine:
        yield line(f"{'Then' if yours else 'Next'}: {report.provision}", whole=True)


def doctor_json(report: Report) -> dict[str, Any]:
    return {
        "event": "doctor",
        "version": __version__,
        "ready": report.is_ready,
        "errors": report.count(Level.ERROR),
        "warnings": report.count(Level.WARNING),
        "checks": [
            {
                "group": check.group.value,
                "id": check.id,
                "title": check.title,
                "level": check.level.value,
                "detail": check.finding.detail,
                "next": check.next if check.level is not Level.OK else None,
                "bytes": check.finding.size,
            }
            for check in report.checks
        ],
    }

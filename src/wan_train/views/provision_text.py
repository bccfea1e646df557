"""A provision in lines: what a box has, how a long step goes on, and what was done in the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from wan_train.provision.status_table import Phase, Row
from wan_train.provision.steps import Finding, State
from wan_train.views import formatting
from wan_train.views.lines import Line, Span, line
from wan_train.views.provision import MARKS, amount, is_download, speed

_MARKS: dict[State, tuple[str, str]] = {
    State.READY: ("✓", "green"),
    State.WARNING: ("!", "yellow"),
    State.UNVERIFIED: ("○", ""),
    State.UNTESTED: ("○", "dim"),
    State.MISSING: ("○", ""),
    State.BLOCKED: ("✗", "bold red"),
}
_STATE_WIDTH = max(len(state.value) for state in State)
_DOWNLOAD_SECONDS = 15.0
_OTHER_SECONDS = 60.0


def found_lines(found: Mapping[str, Finding], titles: Mapping[str, str], width: int) -> Iterator[Line]:
    """Each step with how it stands, its detail wrapped below its title."""
    start = 2 + _STATE_WIDTH + 2
    for name, finding in found.items():
        mark, style = _MARKS[finding.state]
        text = f"{formatting.safe(titles[name])}: {formatting.safe(finding.detail)}"
        for number, piece in enumerate(formatting.wrap(text, width - start)):
            head = Span(f"{mark} {formatting.pad(finding.state.value, _STATE_WIDTH)}  ", style)
            yield line(head if number == 0 else " " * start, piece)


@dataclass(slots=True)
class Heartbeat:
    """Signs of life where no screen is redrawn: every 15 s of a download, every minute of anything else."""

    _told: dict[str, float] = field(default_factory=dict)

    def due(self, rows: Sequence[Row], now: float) -> list[tuple[str, str]]:
        """(title, line) of each step at work that was silent for long enough; `now` in monotonic seconds."""
        lines: list[tuple[str, str]] = []
        for row in rows:
            if row.phase is not Phase.RUNNING:
                self._told.pop(row.id, None)
                continue
            counts = is_download(row) and 0 < row.done < row.total
            patience = _DOWNLOAD_SECONDS if counts else _OTHER_SECONDS
            if now - self._told.setdefault(row.id, now) >= patience:
                self._told[row.id] = now
                lines.append((row.title, _fetching(row) if counts else _still(row, now)))
        return lines


def _fetching(row: Row) -> str:
    left = f"{formatting.duration(row.seconds_left)} left" if row.seconds_left is not None else ""
    return ", ".join(filter(None, (amount(row.done, row.total), speed(row.rate) or "almost nothing comes", left)))


def _still(row: Row, now: float) -> str:
    return f"… still {row.detail or 'at work'}, {formatting.duration(row.seconds(now))} so far"


def summary_lines(rows: Sequence[Row], seconds: float, width: int) -> Iterator[Line]:
    """What this call did: seconds at work and bytes from the network of each step, and of all."""
    worked = [row for row in rows if row.phase is not Phase.READY]
    if not worked:
        return
    entries = [(*MARKS[row.phase], row.title, *_figures(row)) for row in worked]
    fetched = sum(row.fetched for row in rows)
    total = ("in all", formatting.duration(seconds), formatting.file_size(fetched) if fetched else "")
    times = max(len(total[1]), *(len(entry[4]) for entry in entries))
    sizes = max(len(total[2]), *(len(entry[5]) for entry in entries))
    start = 2 + max(len(entry[1]) for entry in entries) + 2
    names = max(formatting.columns(formatting.safe(entry[3])) for entry in entries)
    names = max(len(total[0]), min(names, width - start - times - sizes - 4))
    for mark, word, style, title, spent, size in entries:
        yield line(
            Span(formatting.pad(f"{mark} {word}", start), style),
            formatting.pad(formatting.cut(formatting.safe(title), names), names + 2),
            spent.rjust(times),
            "  ",
            size.rjust(sizes),
        )
    label, spent, size = total
    yield line(" " * start, Span(formatting.pad(label, names + 2), "bold"), spent.rjust(times), "  ", size.rjust(sizes))
    for row in rows:
        for remark in row.remarks:
            yield from (
                line(Span(piece, "yellow"))
                for piece in formatting.wrap(formatting.safe(f"{row.title}: {remark}"), width)
            )


def _figures(row: Row) -> tuple[str, str]:
    began = row.worked > 0
    return formatting.duration(row.worked) if began else "", formatting.file_size(row.fetched) if row.fetched else ""

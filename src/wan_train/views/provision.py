"""A provision as a live screen, as lines, and as one JSON document for scripts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

from wan_train.base import units
from wan_train.base.errors import ExitCode, WanTrainError
from wan_train.base.text import redact
from wan_train.base.units import MB
from wan_train.provision.status_table import Phase, Row
from wan_train.provision.steps import Finding, State, is_ready
from wan_train.views import formatting
from wan_train.views.lines import Line, Span, bar, line

Json = dict[str, Any]

_MARKS: Final[dict[Phase, tuple[str, str, str]]] = {
    Phase.READY: ("✓", "ready", "dim"),
    Phase.WAITING: ("○", "wait", "dim"),
    Phase.RUNNING: ("▶", "run", "cyan"),
    Phase.DONE: ("✓", "done", "green"),
    Phase.FAILED: ("✗", "FAILED", "bold red"),
    Phase.SKIPPED: ("✗", "skipped", "yellow"),
    Phase.ENDED: ("✗", "stopped", "yellow"),
}
_WARNS: Final = ("!", "warning", "yellow")
_STATES: Final[dict[State, tuple[str, str]]] = {
    State.READY: ("✓", "green"),
    State.WARNING: ("!", "yellow"),
    State.UNVERIFIED: ("○", ""),
    State.UNTESTED: ("○", "dim"),
    State.MISSING: ("○", ""),
    State.BLOCKED: ("✗", "bold red"),
}
_STATE_WIDTH: Final = max(len(state.value) for state in State)
_RATE_SECONDS: Final = 10.0
"""A rate covers this many seconds, not the whole download."""
_FIRST_RATE_SECONDS: Final = 2.0
"""No rate is shown before that: the first seconds of a download would give `14 h left`."""
_BAR_WIDTH: Final = 12
_DOWNLOAD_SECONDS: Final = 15.0
_OTHER_SECONDS: Final = 60.0
_OPEN: Final = frozenset({Phase.WAITING, Phase.RUNNING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What is being prepared: `what` in words, `engine` with its commit, `began` in monotonic seconds."""

    what: str
    engine: str
    workspace: str
    began: float


class Screen(Progress):
    """The steps with their progress. It measures rates even if nothing is drawn (`is_drawn` False)."""

    def __init__(
        self,
        console: Console,
        heading: Heading,
        *,
        is_drawn: bool,
        ascii_only: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._heading = heading
        self._ascii_only = ascii_only
        self._rows: dict[TaskID, Row] = {}
        self._ids: dict[str, TaskID] = {}
        self._spoken: dict[str, float] = {}
        self._ending = False
        self._clock = clock
        super().__init__(
            _Cell(self._mark, Column(no_wrap=True)),
            _Cell(self._name, Column(no_wrap=True)),
            _Cell(self._body, Column(ratio=1)),
            console=console,
            auto_refresh=False,
            transient=True,
            speed_estimate_period=_RATE_SECONDS,
            get_time=clock,
            disable=not is_drawn,
            expand=True,
        )

    def show(self, rows: Sequence[Row], *, ending: bool = False) -> None:
        """Update the rows. `ending`: the user asked to stop, and programs are being ended."""
        self._ending = ending
        # A short screen has no space for steps that were ready before.
        is_low = len(rows) + 6 > self.console.height
        for row in (*rows, *_total(rows)):
            if row.id not in self._ids:
                self._ids[row.id] = self.add_task(row.id, total=row.total or None, completed=row.done)
            number = self._ids[row.id]
            task = next(task for task in self.tasks if task.id == number)
            if row.done < task.completed or (row.done and not task.completed):  # it started or restarted: no rate
                self.reset(number, completed=row.done)
            hidden = is_low and row.phase is Phase.READY and not row.warns
            self.update(number, completed=row.done, total=row.total or None, visible=not hidden)
            self._rows[number] = row

    def draw(self) -> None:
        """Redraw the rows; raises OSError when the terminal is gone."""
        super().refresh()

    def refresh(self) -> None:
        """Do nothing: rich calls this at each change of a task, and `draw` draws all changes together."""

    def heartbeats(self, now: float) -> list[tuple[str, str]]:
        """Return (title, line) for each running step that is due; `now` in monotonic seconds.

        A download is due every 15 seconds, any other step every minute.
        """
        lines: list[tuple[str, str]] = []
        for task in self.tasks:
            row = self._rows[task.id]
            if row.phase is not Phase.RUNNING or row.id == _TOTAL:
                self._spoken.pop(row.id, None)
                continue
            counts = _counts(row)
            patience = _DOWNLOAD_SECONDS if counts else _OTHER_SECONDS
            if now - self._spoken.setdefault(row.id, now) >= patience:
                self._spoken[row.id] = now
                still = f"… still {row.detail or 'at work'}, {units.duration(row.seconds(now))} so far"
                lines.append((row.title, self._figures(task, row) if counts else still))
        return lines

    def get_renderables(self) -> Iterable[RenderableType]:
        heading = self._heading
        since = units.duration(self._clock() - heading.began)
        state = ("stopping, ", "yellow") if self._ending else ("running ", "cyan")
        title = Text.assemble(
            (f"Preparing: {formatting.safe(heading.what)}  ", "bold"), (f"{state[0]}{since}", state[1])
        )
        yield self._text(title)
        yield self._text(Text(f"{formatting.safe(heading.engine)} · {formatting.safe(heading.workspace)}", "dim"))
        yield Text()
        yield self.make_tasks_table([task for task in self.tasks if task.id in self._rows])
        yield Text()
        ending = "Stopping; completed work is kept."
        out = ending if self._ending else "Ctrl-C: stop; completed work is kept"
        yield self._text(Text(out, "yellow" if self._ending else "dim"))

    def _mark(self, task: Task) -> Text:
        row = self._rows[task.id]
        if row.id == _TOTAL:
            return Text()
        mark, word, style = _WARNS if row.warns else _MARKS[row.phase]
        return self._text(Text(f"{mark} {word}", style))

    def _name(self, task: Task) -> Text:
        row = self._rows[task.id]
        return self._text(Text(formatting.safe(row.id), "dim" if row.phase in {Phase.WAITING, Phase.READY} else "bold"))

    def _body(self, task: Task) -> Text:
        row = self._rows[task.id]
        now = self._clock()
        detail = formatting.safe(" ".join(piece.strip() for piece in row.detail.split("\n")))
        spent = units.duration(row.seconds(now))
        body = Text()
        match row.phase:
            case Phase.RUNNING if _counts(row):
                for span in bar(row.done, row.total, _BAR_WIDTH):
                    body.append(span.text, span.style)
                body.append(f" {100 * row.done // row.total:>2} %  {self._figures(task, row)}")
                body.append(f"; {detail}" if detail else "", "dim")
            case Phase.RUNNING:
                body.append(f"{detail or 'starting'} …  {spent}")
            case Phase.WAITING:
                size = f"{units.file_size(row.total)}, " if row.total else ""
                needs = f"needs {', '.join(map(formatting.safe, row.needs))}" if row.needs else "not started yet"
                body.append(f"{size}{needs}", "dim")
            case Phase.DONE:
                body.append(f"{spent} · {units.file_size(row.fetched)} fetched" if row.fetched else spent)
            case Phase.FAILED:
                body.append(f"{detail.removeprefix('failed: ')} (after {spent})", "red")
            case Phase.READY | Phase.SKIPPED | Phase.ENDED:
                body.append(detail, "dim" if row.phase is Phase.READY else "")
        for remark in row.remarks:
            body.append(f"\n{formatting.safe(remark)}", "yellow")
        if row.phase is Phase.READY and not row.remarks:
            body.no_wrap, body.overflow = True, "crop"
        return self._text(body)

    def _figures(self, task: Task, row: Row) -> str:
        """`5.1 of 11.4 GB, 112 MB/s, 56 s left`."""
        is_new = row.since is not None and self._clock() - row.since < _FIRST_RATE_SECONDS
        rate = 0.0 if is_new else task.speed or 0.0
        if rate < 1:
            return f"{_amount(row.done, row.total)}, {'no rate yet' if is_new else 'stalled'}"
        left = units.duration((row.total - row.done) / rate)
        return f"{_amount(row.done, row.total)}, {_speed(rate)}, {left} left"

    def _text(self, text: Text) -> Text:
        if self._ascii_only:
            text.plain = formatting.to_ascii(text.plain)
        return text


class _Cell(ProgressColumn):
    """A column whose cells are drawn by a method of the screen."""

    def __init__(self, draw: Callable[[Task], Text], column: Column) -> None:
        super().__init__(column)
        self._draw = draw

    def render(self, task: Task) -> Text:
        return self._draw(task)


_TOTAL: Final = "all downloads"


def _total(rows: Sequence[Row]) -> list[Row]:
    """All downloads together, where there are several. Installs count no bytes and are left out."""
    downloads = [row for row in rows if row.total and row.phase in {*_OPEN, Phase.DONE}]
    if len(downloads) < 2 or not any(row.phase in _OPEN for row in downloads):  # a single download is its own total
        return []
    done = sum(row.total if row.phase is Phase.DONE else min(row.done, row.total) for row in downloads)
    total = sum(row.total for row in downloads)
    return [Row(id=_TOTAL, title=_TOTAL, phase=Phase.RUNNING, done=done, total=total)]


def _counts(row: Row) -> bool:
    """Whether a step is in the middle of a download that reports bytes."""
    return 0 < row.done < row.total


def _amount(done: int, total: int) -> str:
    """`5.1 of 11.4 GB`, `120 of 508 MB`."""
    whole = units.file_size(total)
    return f"{units.file_size(done).removesuffix(' ' + whole.rpartition(' ')[2])} of {whole}"


def _speed(rate: float) -> str:
    """`112 MB/s`, `4.5 MB/s`, `80 kB/s`."""
    return f"{rate / MB:.1f} MB/s" if MB <= rate < 10 * MB else f"{units.file_size(round(rate))}/s"


def found_lines(found: Mapping[str, Finding], titles: Mapping[str, str], width: int) -> Iterator[Line]:
    """Each step with its state, title and detail; long text wraps below the title."""
    start = 2 + _STATE_WIDTH + 2
    for name, finding in found.items():
        mark, style = _STATES[finding.state]
        text = f"{formatting.safe(titles[name])}: {formatting.safe(finding.detail)}"
        for number, piece in enumerate(formatting.wrap(text, width - start)):
            head = Span(f"{mark} {formatting.pad(finding.state.value, _STATE_WIDTH)}  ", style)
            yield line(head if number == 0 else " " * start, piece)


def summary_lines(rows: Sequence[Row], seconds: float, width: int) -> Iterator[Line]:
    """What this call did: working time and downloaded bytes, for each step and in total."""
    worked = [row for row in rows if row.phase is not Phase.READY]
    if not worked:
        return
    entries = [(*_MARKS[row.phase], row.title, *_spent(row)) for row in worked]
    fetched = sum(row.fetched for row in rows)
    total = ("total", units.duration(seconds), units.file_size(fetched) if fetched else "")
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
            text = formatting.safe(f"{row.title}: {remark}")
            yield from (line(Span(piece, "yellow")) for piece in formatting.wrap(text, width))


def _spent(row: Row) -> tuple[str, str]:
    spent = units.duration(row.worked) if row.worked > 0 else ""
    return spent, units.file_size(row.fetched) if row.fetched else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The content of the JSON document (docs/provision.md).

    `rows` is empty and `seconds` None when the call only checked.
    """

    task: str
    engine: str
    workspace: str
    titles: Mapping[str, str]
    found: Mapping[str, Finding]
    exit_code: ExitCode
    rows: Sequence[Row] = ()
    failures: Mapping[str, WanTrainError]
    seconds: float | None = None
    log: str | None = None
    error: WanTrainError | None = None


def report_json(report: Report) -> Json:
    rows = {row.id: row for row in report.rows}
    return {
        "event": "provision",
        "ready": is_ready(report.found),
        "exit_code": int(report.exit_code),
        "task": report.task,
        "engine": report.engine,
        "workspace": report.workspace,
        "seconds": _rounded(report.seconds),
        "fetched_bytes": sum(row.fetched for row in report.rows),
        "log": report.log,
        "error": _error(report.error),
        "steps": [
            {
                "id": name,
                "title": report.titles[name],
                "state": finding.state.value,
                "detail": redact(finding.detail),
                "bytes": finding.size,
                "hint": finding.hint,
                "phase": rows[name].phase.value if name in rows else None,
                "seconds": _rounded(rows[name].worked) if name in rows else None,
                "fetched_bytes": rows[name].fetched if name in rows else 0,
                "remarks": [redact(remark) for remark in rows[name].remarks] if name in rows else [],
                "error": _error(report.failures.get(name)),
            }
            for name, finding in report.found.items()
        ],
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _error(error: WanTrainError | None) -> Json | None:
    if error is None:
        return None
    return {"message": redact(error.message), "hint": error.hint}

"""Pages that keys open over the live view: the logs of running steps, the help, and the stop question."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from wan_train.base.units import duration
from wan_train.views.formatting import columns, cut, cut_front, safe
from wan_train.views.lines import Line, Row, Span, line, table, width_of
from wan_train.views.model import LogEnd, RunView
from wan_train.views.run_status import next_states_in

BACK = line(Span("any key", "bold"), Span(" back", "dim"))


def stop_question(view: RunView, now: float, width: int) -> Line:
    """The question whether to stop after the next checkpoints, with the time until then if known."""
    due = next_states_in(view, now)
    when = f", in about {duration(due)}" if due else ""
    answers = (Span("y", "bold"), Span(" stop   "), Span("n", "bold"), Span(" continue"))
    asked = f"Stop after the next checkpoint{when}?  "
    for question in (f"{asked}Nothing is lost.  ", asked):
        if columns(question) + width_of(answers) <= width:
            return line(Span(question, "bold yellow"), *answers)
    return line(Span("Stop after the next checkpoint?  ", "bold yellow"), *answers)


def logs_page(logs: Sequence[LogEnd], width: int, height: int) -> tuple[Line, ...]:
    """The last lines of each log, one below the other, in equal shares of the screen."""
    if not logs:
        return _filled([line("Nothing has started yet.")], height)
    share = max(1, (height - 1) // len(logs) - 2)
    rows = []
    for log in logs:
        name = safe(log.step)
        path = cut_front(safe(log.path), width - columns(name) - 2)
        rows.append(line(Span(name, "bold"), "  ", Span(path, "dim")))
        rows += [line(cut(text, width)) for text in log.lines[-share:]]
        rows.append(line())
    return _filled(rows, height)


def help_page(view: RunView, width: int, height: int) -> tuple[Line, ...]:
    rows = [line(Span("Keys", "bold")), *table(list(_keys(view)), width), line()]
    rows += [line(Span("Figures", "bold")), *table([Row(label=what, value=text) for what, text in _FIGURES], width)]
    return _filled(rows, height)


def _keys(view: RunView) -> Iterator[Row]:
    yield Row(label="d", value="leave this view; training continues. Return with:")
    yield Row(value=f"wan-train attach {shlex.quote(safe(view.run.run_id))}")
    yield Row(label="s", value="stop after the next checkpoint, so that nothing is lost; asks first")
    yield Row(label="l", value="output of the trainers")
    yield Row(label="Ctrl-C", value="asks: leave, stop after the next checkpoint, or stop now")
    yield Row(label="Ctrl-Z", value="back to the shell; training continues. Return with: fg")


_FIGURES = (
    ("loss ▇▅▃▂", "from the first step to the newest; each block is the mean of equally many. ✗: not a number"),
    (
        "falling",
        "the newest quarter of steps is lower than the one before by over two standard errors; flat: no such change",
    ),
    ("per step", "the loss of each step, from the trainer's TensorBoard file"),
    ("moving average", "the trainer's own average over an epoch, from its progress line"),
    ("s/step, left", "measured over the last two minutes"),
    ("checkpoint", "where training resumes after a crash"),
    ("ends about", "when the last expert ends, waiting experts included"),
)


def _filled(rows: Sequence[Line], height: int) -> tuple[Line, ...]:
    """Fit the rows to a screen of `height` lines, with the back key on the last line."""
    room = max(0, height - 1)
    kept = list(rows)[:room]
    return (*kept, *[line()] * (room - len(kept)), BACK)

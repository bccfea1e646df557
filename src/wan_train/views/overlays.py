"""What keys bring up over the live view: the running steps' logs, help, and the question whether to stop."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_train.base.text import redact, visible
from wan_train.engine.log_parser import last_words
from wan_train.run.progress import read_tail
from wan_train.views import formatting
from wan_train.views.lines import Line, Row, Span, line, table, width_of
from wan_train.views.model import RunView
from wan_train.views.run_status import next_states_in

BACK = line(Span("any key", "bold"), Span(" back", "dim"))


def stop_question(view: RunView, now: float, width: int) -> Line:
    """Whether to stop after the next states, and how long that may take where it is known."""
    due = next_states_in(view, now)
    when = f", in about {formatting.duration(due)}" if due else ""
    answers = (Span("y", "bold"), Span(" stop   "), Span("n", "bold"), Span(" go on"))
    asked = f"Stop after the next checkpoint{when}?  "
    for question in (f"{asked}Nothing is lost.  ", asked):
        if formatting.columns(question) + width_of(answers) <= width:
            return line(Span(question, "bold yellow"), *answers)
    return line(Span("Stop after the next checkpoint?  ", "bold yellow"), *answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEnd:
    """The newest lines of a step's log, safe to print."""

    step: str
    path: Path
    lines: tuple[str, ...]


def read_logs(view: RunView, height: int) -> tuple[LogEnd, ...]:
    """The logs of the steps that run, else of the one that began last; at most `height` lines of each."""
    begun = [(job, job.attempt) for job in view.state.jobs.values() if job.attempt is not None]
    running = [(job, attempt) for job, attempt in begun if job.state.has_process]
    shown = running or sorted(begun, key=lambda pair: pair[1].started)[-1:]
    ends = []
    for job, attempt in shown:
        path = view.run.attempt(job.step, attempt.number).log
        lines = last_words(read_tail(path), max(1, height))
        ends.append(LogEnd(step=job.step, path=path, lines=tuple(visible(redact(text)) for text in lines)))
    return tuple(ends)


def logs_page(logs: Sequence[LogEnd], width: int, height: int) -> tuple[Line, ...]:
    """The ends of the logs one below the other, in equal shares of the screen."""
    if not logs:
        return _filled([line("Nothing has been started yet.")], height)
    share = max(1, (height - 1) // len(logs) - 2)
    rows = []
    for log in logs:
        name = formatting.safe(log.step)
        path = formatting.cut_front(formatting.safe(log.path), width - formatting.columns(name) - 2)
        rows.append(line(Span(name, "bold"), "  ", Span(path, "dim")))
        rows += [line(formatting.cut(text, width)) for text in log.lines[-share:]]
        rows.append(line())
    return _filled(rows, height)


def help_page(view: RunView, width: int, height: int) -> tuple[Line, ...]:
    """The keys, and what the figures mean."""
    rows = [line(Span("Keys", "bold")), *table(list(_keys(view)), width), line()]
    rows += [line(Span("Figures", "bold")), *table(list(_figures()), width)]
    return _filled(rows, height)


def _keys(view: RunView) -> Iterator[Row]:
    come_back = f"wan-train attach {shlex.quote(formatting.safe(view.run.run_id))}"
    yield Row(label="d", value=f"leave this view; the training goes on. Come back with: {come_back}")
    yield Row(label="s", value="stop after the next checkpoint, so that nothing is lost; asks first")
    yield Row(label="l", value="what the trainers print")
    yield Row(label="Ctrl-C", value="asks: leave, stop after the next checkpoint, or stop now")
    yield Row(label="Ctrl-Z", value="back to the shell for a while; the training goes on. `fg` comes back")


def _figures() -> Iterator[Row]:
    yield Row(
        label="loss ▇▅▃▂",
        value="from the first step to the newest, each block the mean of equally many; ✗: a loss that is no number",
    )
    yield Row(
        label="falling",
        value="the newest quarter of all steps is lower than the quarter before by more than the noise (two standard "
        "errors); flat: no difference beyond the noise",
    )
    yield Row(label="per step", value="the loss of each single step, from the trainer's TensorBoard file")
    yield Row(label="moving average", value="the trainer's own, over an epoch, from its progress line")
    yield Row(label="s/step, left", value="from the last two minutes")
    yield Row(label="state of epoch", value="where the training would go on after a crash")
    yield Row(label="ends about", value="when the last expert is done, one that still waits included")


def _filled(rows: Sequence[Line], height: int) -> tuple[Line, ...]:
    """The rows in a screen of `height` lines, with the way back at its bottom."""
    room = max(0, height - 1)
    kept = list(rows)[:room]
    return (*kept, *[line()] * (room - len(kept)), BACK)

"""Watching a run from its records, in a terminal, as plain lines or as JSON; and what signals to the watcher do."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from types import FrameType

from wan_train.cli import prompts
from wan_train.cli.sink import Sink
from wan_train.errors import ExitCode, WanTrainError
from wan_train.run.directory import RunDirectory
from wan_train.run.events import Event, StopMode
from wan_train.run.stopping import StopRequest, request_stop
from wan_train.views.model import RunReader, RunView

_LOOK_SECONDS = 0.25
_HANGUP_EXIT = 128 + signal.SIGHUP


class _Leave(Enum):
    """Why watching ends before the run does."""

    DETACHED = auto()
    HANGUP = auto()


@dataclass(slots=True)
class _Signals:
    """Signals that arrived and were not handled yet."""

    interrupted: bool = False
    terminated: bool = False
    hung_up: bool = False


def watch(run: RunDirectory, sink: Sink, *, owner: bool) -> int:
    """Follow a run to its end and return its exit code.

    `owner`: this is the command that started the run, so TERM (or INT without a terminal) stops the run itself. A
    mere watcher is only ended. HUP ends the watching in both cases: the run goes on.
    """
    reader = RunReader(run)
    with _caught() as signals:
        if sink.as_json:
            left = _follow_lines(reader, sink, signals, _json_line, owner=owner)
        elif sink.is_terminal:
            left = _follow_screen(reader, sink, signals, run, owner=owner)
        else:
            left = _follow_lines(reader, sink, signals, _plain_line, owner=owner)
    match left:
        case _Leave.DETACHED:
            sink.note(f"The training goes on. Watch it again with: wan-train attach {run.run_id}")
            return ExitCode.DONE
        case _Leave.HANGUP:
            return _HANGUP_EXIT
        case RunView() as view:
            return _finish(view, sink)


def _finish(view: RunView, sink: Sink) -> int:
    if view.state.finished is None:
        raise WanTrainError(
            f"the supervisor of {view.run.run_id} is gone and the run is not finished",
            hint=f"Its last words are in {view.run.supervisor_log}.",
        )
    if sink.as_json:
        from wan_train.views.as_json import result_json  # noqa: PLC0415  needed once, at the end

        sink.data(result_json(view))
    elif sink.is_terminal:
        from wan_train.views.summary import result_lines  # noqa: PLC0415  rich is needed at a terminal only

        sink.show(result_lines(view))
    else:
        from wan_train.views.summary import result_text  # noqa: PLC0415  see above

        sink.text(result_text(view))
    return view.state.finished.exit_code


def _follow_lines(
    reader: RunReader,
    sink: Sink,
    signals: _Signals,
    write: Callable[[Event, RunView, Sink], None],
    *,
    owner: bool,
) -> RunView | _Leave:
    run_over_since: float | None = None
    while True:
        view, events = reader.refresh()
        for event in events:
            write(event, view, sink)
        if view.state.is_over:
            return view
        if not view.supervisor_alive:
            # Its last events may be written between our two looks: look once more before believing it.
            if run_over_since is not None and time.monotonic() - run_over_since > 1:
                return view
            run_over_since = run_over_since or time.monotonic()
        if signals.hung_up:
            return _Leave.HANGUP
        if signals.terminated or signals.interrupted:
            number = signal.SIGTERM if signals.terminated else signal.SIGINT
            if not owner:
                return _Leave.DETACHED
            request_stop(view.run, StopRequest(mode=StopMode.NOW, signal=number))
            signals.terminated = signals.interrupted = False
        time.sleep(_LOOK_SECONDS)


def _follow_screen(
    reader: RunReader, sink: Sink, signals: _Signals, run: RunDirectory, *, owner: bool
) -> RunView | _Leave:
    from rich.live import Live as LiveDisplay  # noqa: PLC0415  needed at a terminal only

    from wan_train.views.dashboard import render  # noqa: PLC0415  the same

    gone_since: float | None = None
    while True:
        with LiveDisplay(console=sink.console, auto_refresh=False, transient=True, screen=False) as display:
            while not signals.interrupted:
                view, _ = reader.refresh()
                size = sink.console.size
                display.update(
                    render(view, time.time(), size.width, height=size.height, ascii_only=sink.ascii_only), refresh=True
                )
                if view.state.is_over:
                    return view
                gone_since = None if view.supervisor_alive else gone_since or time.monotonic()
                if gone_since is not None and time.monotonic() - gone_since > 1:
                    return view
                if signals.hung_up:
                    return _Leave.HANGUP
                if signals.terminated:
                    signals.terminated = False
                    if not owner:
                        return _Leave.DETACHED
                    request_stop(run, StopRequest(mode=StopMode.NOW, signal=signal.SIGTERM))
                time.sleep(_LOOK_SECONDS)
        signals.interrupted = False
        if _answer_interrupt(run, sink):
            return _Leave.DETACHED


def _answer_interrupt(run: RunDirectory, sink: Sink) -> bool:
    """Ask what Ctrl-C was meant to do; True to stop watching. Ctrl-C again means: stop the run now."""
    try:
        with _default_interrupt():
            answer = prompts.ask_on_interrupt()
    except KeyboardInterrupt:
        answer = prompts.OnInterrupt.STOP_NOW
    match answer:
        case prompts.OnInterrupt.DETACH:
            return True
        case prompts.OnInterrupt.STOP_AFTER_STATE:
            request_stop(run, StopRequest(mode=StopMode.AFTER_STATE, signal=signal.SIGINT))
            sink.note("Stopping after the next saved state.")
        case prompts.OnInterrupt.STOP_NOW:
            request_stop(run, StopRequest(mode=StopMode.NOW, signal=signal.SIGINT))
            sink.note("Stopping now.")
        case prompts.OnInterrupt.CONTINUE:
            pass
    return False


@contextmanager
def _caught() -> Iterator[_Signals]:
    """Collect INT, TERM and HUP instead of dying from them. One that was ignored at start stays ignored (nohup)."""
    signals = _Signals()

    def note(number: int, _frame: FrameType | None) -> None:
        match number:
            case signal.SIGINT:
                signals.interrupted = True
            case signal.SIGTERM:
                signals.terminated = True
            case _:
                signals.hung_up = True

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, note)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _default_interrupt() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _json_line(event: Event, _view: RunView, sink: Sink) -> None:
    from wan_train.views.as_json import event_json  # noqa: PLC0415  see `_finish`

    sink.data(event_json(event))


def _plain_line(event: Event, view: RunView, sink: Sink) -> None:
    from wan_train.views.plain import describe  # noqa: PLC0415  see `_finish`

    line = describe(event, view)
    if line is not None:
        sink.line(line)

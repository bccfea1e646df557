"""Watch a run from its records, in a terminal, as plain lines or as JSON; handle signals to the watcher."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, assert_never

from wan_train.base.errors import WanTrainError
from wan_train.base.settings import Settings
from wan_train.base.units import duration
from wan_train.cli import questions
from wan_train.cli.keys import KeyAction, Page, keys_in, press
from wan_train.cli.output import Result, Sink
from wan_train.cli.screen import Screen, TerminalGoneError
from wan_train.cli.signals import HANGUP_EXIT, Signals, caught
from wan_train.run.box_ending import Phase, ask_to_keep
from wan_train.run.control import StopRequest, request_stop, start_supervisor
from wan_train.run.directory import RunDirectory, report_of_end
from wan_train.run.duties import Then
from wan_train.run.events import Event, RunFinished, StopMode
from wan_train.run.guardian_process import is_guarded
from wan_train.views import dashboard, overlays
from wan_train.views.box_end import box_end_texts, footer
from wan_train.views.lines import Line
from wan_train.views.model import RunReader, RunView, read_logs, view_of
from wan_train.views.run_status import next_states_in

TIMEOUT_EXIT = 124
"""As for timeout(1): the time is up, the run is still running."""
_LOOK_SECONDS = 0.25
_BELIEVE_SECONDS = 1.0
_UNBORN_SECONDS = 5.0
_MOST_REVIVALS = 3
_REPORT_SECONDS = 30.0


class _Leave(Enum):
    """Why watching ends before the run does."""

    DETACHED = auto()
    HANGUP = auto()
    TIMEOUT = auto()


def watch(run: RunDirectory, settings: Settings, sink: Sink, *, owner: bool, timeout: float | None = None) -> Result:
    """Follow a run to its end; the result has the run's exit code.

    `owner`: this command started the run, so TERM (or INT without a terminal) stops the run itself. Otherwise they
    only end the watching. HUP never stops the run. A supervisor that dies is replaced; the new one adopts the live
    trainers. After `timeout` seconds the watching ends, not the run.
    """
    on_screen = sink.can_ask and not sink.quiet
    about = {"run_id": run.run_id, "run_dir": str(run.path)}
    sink.render(Result(data=lambda: {"event": "watching", **about}))
    until = None if timeout is None else time.monotonic() + timeout
    with caught() as signals:
        reader = RunReader(run, curves=on_screen, lease_dir=settings.lease_dir)
        watcher = _Watcher(
            run=run, settings=settings, sink=sink, owner=owner, signals=signals, reader=reader, until=until
        )
        left = watcher.follow_screen() if on_screen else watcher.follow_lines()
    match left:
        case _Leave.DETACHED:
            sink.note("The training continues. Watch it again with:")
            sink.note(f"  wan-train attach {run.run_id}")
            return Result()
        case _Leave.HANGUP:
            return Result(exit_code=HANGUP_EXIT)
        case _Leave.TIMEOUT:
            sink.note(f"{run.run_id} is still running. Watch it again with: wan-train attach {run.run_id}")
            return Result(data=lambda: {"event": "still_running", **about}, exit_code=TIMEOUT_EXIT)
        case RunView() as view:
            return _finish(view, settings)


def _finish(view: RunView, settings: Settings) -> Result:
    assert view.state.finished is not None, "followed to its end"
    reader = RunReader(view.run, curves=True, lease_dir=settings.lease_dir)
    draws = view.run.draws_preview(view.state.finished.exit_code)
    report = None if draws else _wait_for_report(view, view.state.finished)

    def data() -> dict[str, Any]:
        from wan_train.views.json_records import result_json

        return result_json(reader.refresh()[0])

    def text(sink: Sink) -> None:
        from wan_train.views.result import result_lines, result_text

        if sink.is_terminal and not sink.quiet:
            sink.show(result_lines(view))
        else:
            sink.text(result_text(view))
        if report is not None:
            sink.text(f"\nReport, for any browser: {report}")
        if draws:
            sink.text("\nThe preview is drawn now, then the report is made. Follow it:")
            sink.text(f"    wan-train preview {view.run.run_id}")
        texts = [text for text, _ in box_end_texts(reader.refresh()[0])]
        if texts and not (sink.is_terminal and not sink.quiet):  # there the last screen shows it
            sink.text("\n" + "\n".join(texts))

    return Result(data=data, text=text, exit_code=view.state.finished.exit_code)


def _wait_for_report(view: RunView, finished: RunFinished) -> Path | None:
    """Wait for the final report, which the supervisor writes last. Ctrl-C only ends the waiting."""
    deadline = time.monotonic() + _REPORT_SECONDS
    with suppress(KeyboardInterrupt):
        while view.state.supervisor is not None and view.state.supervisor.is_alive() and time.monotonic() < deadline:
            report = report_of_end(view.run, finished)
            if report is not None:
                return report
            time.sleep(_LOOK_SECONDS)
    return report_of_end(view.run, finished)


@dataclass(slots=True, kw_only=True)
class _Watcher:
    """Watches one run."""

    run: RunDirectory
    settings: Settings
    sink: Sink
    owner: bool
    signals: Signals
    reader: RunReader
    until: float | None = None
    """Deadline of the watching, on the monotonic clock."""
    view: RunView | None = None
    """The latest view of the run."""
    gone_since: float | None = None
    revivals: int = 0

    def follow_lines(self) -> RunView | _Leave:
        """Print events as they come, until the run is over or a signal ends the watching."""
        while True:
            view, events = self.reader.refresh()
            for event in events:
                self._write(event, view)
            left = self._react(view, interrupt_stops=True)
            if left is not None:
                return left
            time.sleep(_LOOK_SECONDS)

    def follow_screen(self) -> RunView | _Leave:
        """Show the run until it is over, a signal ends the watching or the person leaves; the last screen stays."""
        while True:
            with Screen(self.sink.console, ascii_only=self.sink.ascii_only) as screen:
                try:
                    left = self._show(screen)
                    if isinstance(left, RunView):
                        left = self._show_end(screen, left)
                except TerminalGoneError:
                    return _Leave.HANGUP
            if left is None:
                self.signals.interrupted = False
                left = _Leave.DETACHED if _answer_interrupt(self.run, self.sink) else None
            if left is not None:
                if left is not _Leave.HANGUP and self.view is not None:
                    self._leave_behind(self.view)
                return left

    def _leave_behind(self, view: RunView) -> None:
        """Leave the last screen in the terminal's scrollback."""
        self.sink.show("")
        self.sink.show(dashboard.run_lines(view, time.time()))
        self.sink.show("")

    def _show(self, screen: Screen) -> RunView | _Leave | None:
        """Draw and handle keys until the watching ends; None after Ctrl-C."""
        page = Page.RUN
        while not self.signals.interrupted:
            self.view, _ = self.reader.refresh()
            screen.paint(_lines(self.view, page, *screen.size))
            left = self._react(self.view, interrupt_stops=False)
            if left is not None:
                return left
            for key in keys_in(screen.keys(_LOOK_SECONDS)):
                page, action = press(page, key)
                match action:
                    case KeyAction.LEAVE:
                        return _Leave.DETACHED
                    case KeyAction.STOP:
                        request_stop(self.run, StopRequest(mode=StopMode.AFTER_STATE, signal=signal.SIGINT))
                    case KeyAction.KEEP:
                        self._keep_box_on(self.view)
                    case None:
                        pass
        return None

    def _show_end(self, screen: Screen, view: RunView) -> RunView | _Leave:
        """Show the ending of the box after the run, until it is decided or the person leaves."""
        while not self.signals.interrupted and _is_open(view, self.settings):
            screen.paint(
                dashboard.screen(view, time.time(), screen.size[0], height=screen.size[1], footer=footer(view))
            )
            if self.signals.hung_up:
                return _Leave.HANGUP
            if self.signals.terminated or (self.until is not None and time.monotonic() >= self.until):
                break
            for key in keys_in(screen.keys(_LOOK_SECONDS)):
                match press(Page.RUN, key)[1]:
                    case KeyAction.LEAVE:
                        return view
                    case KeyAction.KEEP:
                        self._keep_box_on(view)
                    case _:
                        pass
            self.view = view = self.reader.refresh()[0]
        self.signals.interrupted = False
        return view

    def _keep_box_on(self, view: RunView) -> None:
        """Ask the guardian to keep the box on; its next round cancels the ending."""
        if view.ending is not None and view.ending.phase in {Phase.COUNTDOWN, Phase.ENDING}:
            with suppress(OSError):
                ask_to_keep(self.settings.lease_dir, view.ending, by="the key k")

    def _react(self, view: RunView, *, interrupt_stops: bool) -> RunView | _Leave | None:
        """Check the run and the signals once; None to continue watching.

        Without `interrupt_stops` the caller asks about a Ctrl-C, even one that arrives during this check.
        """
        if view.state.is_over:
            return view
        if self.signals.hung_up:
            return _Leave.HANGUP
        if self.until is not None and time.monotonic() >= self.until:
            return _Leave.TIMEOUT
        if self.signals.terminated or (interrupt_stops and self.signals.interrupted):
            number = signal.SIGTERM if self.signals.terminated else signal.SIGINT
            self.signals.terminated = self.signals.interrupted = False
            if not self.owner:
                return _Leave.DETACHED
            request_stop(self.run, StopRequest(mode=StopMode.NOW, signal=number))
        self._revive(view)
        return None

    def _revive(self, view: RunView) -> None:
        """Replace a dead supervisor, but only a few times: one that keeps dying has a bug."""
        if view.has_supervisor:
            self.gone_since = None
            return
        # The command that made the run may have been killed before a supervisor took over.
        patience = _BELIEVE_SECONDS if view.state.supervisor is not None else _UNBORN_SECONDS
        # Its last events may have been written between our two reads, so wait and read again.
        self.gone_since = self.gone_since or time.monotonic()
        if time.monotonic() - self.gone_since < patience:
            return
        if self.revivals == _MOST_REVIVALS:
            raise WanTrainError(
                f"the supervisor of {view.run.run_id} died {self.revivals + 1} times",
                hint=f"Its last messages are in {view.run.supervisor_log}; please report them.",
            )
        self.revivals += 1
        self.gone_since = None
        start_supervisor(self.run, self.settings)

    def _write(self, event: Event, view: RunView) -> None:
        if self.sink.quiet:
            return

        def data() -> dict[str, Any]:
            from wan_train.views.json_records import event_json

            return event_json(event)

        def text(sink: Sink) -> None:
            from wan_train.views.event_lines import event_line

            line = event_line(event, view)
            if line is not None:
                sink.line(line)

        self.sink.render(Result(data=data, text=text))


def _is_open(view: RunView, settings: Settings) -> bool:
    """Whether a guardian has yet to decide about the ending of the box."""
    if view.duties is None or view.duties.then is Then.NOTHING or not view.awaits_ending:
        return False
    return is_guarded(settings.lease_dir) and (view.ending is None or view.ending.phase is not Phase.CANCELLED)


def _lines(view: RunView, page: Page, width: int, height: int) -> Sequence[Line]:
    """Return the lines of a page."""
    now = time.time()
    match page:
        case Page.RUN:
            return dashboard.screen(view, now, width, height=height)
        case Page.STOP:
            question = overlays.stop_question(view, now, width)
            return dashboard.screen(view, now, width, height=height, footer=question)
        case Page.LOGS:
            return overlays.logs_page(read_logs(view, height), width, height)
        case Page.HELP:
            return overlays.help_page(view, width, height)
        case _:
            assert_never(page)


def _answer_interrupt(run: RunDirectory, sink: Sink) -> bool:
    """Ask what Ctrl-C should do; True to stop watching. A second Ctrl-C detaches."""
    try:
        with _default_interrupt():
            answer = questions.ask_on_interrupt()
    except (KeyboardInterrupt, EOFError):
        answer = questions.OnInterrupt.DETACH
    match answer:
        case questions.OnInterrupt.DETACH:
            return True
        case questions.OnInterrupt.STOP_AFTER_STATE:
            request_stop(run, StopRequest(mode=StopMode.AFTER_STATE, signal=signal.SIGINT))
            due = next_states_in(view_of(run), time.time())
            when = f", in about {duration(due)}" if due is not None else ", at an unknown time"
            sink.note(f"Stopping after the next checkpoint{when}.")
        case questions.OnInterrupt.STOP_NOW:
            request_stop(run, StopRequest(mode=StopMode.NOW, signal=signal.SIGINT))
            sink.note("Stopping now.")
        case questions.OnInterrupt.CONTINUE:
            pass
    return False


@contextmanager
def _default_interrupt() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

"""Watching a launch from its records: one live table, plain lines or JSON. The launch itself needs no watcher."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

import uv

from wan_train.base.errors import ExitCode, NotReadyError, WanTrainError
from wan_train.base.settings import Settings
from wan_train.cli.keys import keys_in
from wan_train.cli.output import Result, Sink
from wan_train.cli.screen import Screen, TerminalGoneError
from wan_train.cli.signals import HANGUP_EXIT, Signals, caught
from wan_train.engine.checkpoints import lora_file
from wan_train.launch import background
from wan_train.launch.change_lines import change_lines
from wan_train.launch.infra import VAST
from wan_train.launch.last_seen import LastSeen, read_last_seen
from wan_train.launch.launch_directory import LaunchDirectory
from wan_train.launch.market import account_key
from wan_train.launch.model import Halt, Job, JobState, Launch
from wan_train.launch.sky_home import folder_of, make
from wan_train.run.directory import RunDirectory
from wan_train.views.formatting import clock
from wan_train.views.launch import launch_json, launch_lines, launch_screen
from wan_train.views.lines import Screenful, plain

_LOOK_SECONDS = 0.5
_BELIEVE_SECONDS = 3.0
_MOST_REVIVALS = 3


class _Leave(Enum):
    """Why watching ends before the launch does."""

    DETACHED = auto()
    HANGUP = auto()


def watch_launch(directory: LaunchDirectory, settings: Settings, sink: Sink) -> Result:
    """Follow a launch to its end, and return its exit code. Ctrl-C ends only the watching."""
    with caught() as signals:
        watcher = _Watcher(
            directory=directory, sink=sink, signals=signals, revive=lambda: carry_on(directory, settings, sink)
        )
        left = watcher.follow_screen() if sink.can_ask and not sink.quiet else watcher.follow_lines()
    launch_id = directory.path.name
    match left:
        case _Leave.DETACHED:
            sink.note("The launch continues. Watch it with:")
            sink.note(f"  wan-train launch attach {launch_id}")
            return Result()
        case _Leave.HANGUP:
            return Result(exit_code=HANGUP_EXIT)
        case Launch() as launch:
            return finished(directory, launch)


def carry_on(directory: LaunchDirectory, settings: Settings, sink: Sink) -> None:
    """Start the program of a launch. Fetch a missing SkyPilot first: the wait for the program is too short for that.

    Raises NotReadyError.
    """
    infra = directory.read().wants.infra
    if infra == VAST:
        account_key(os.environ, Path.home())  # reports a missing key more clearly than the end of the program's log
    make(folder_of(infra), uv=uv.find_uv_bin(), say=sink.note, infra=infra)
    background.start(directory, settings)


def finished(directory: LaunchDirectory, launch: Launch) -> Result:
    """The result of a launch that is over."""

    def text(sink: Sink) -> None:
        show_launch(directory, launch, sink)
        for job in launch.jobs:
            for path in _results(job):
                sink.line(str(path))

    return Result(
        data=lambda: launch_json(launch, time.time(), read_last_seen(directory)),
        text=text,
        exit_code=exit_code_of(directory, launch),
    )


def _results(job: Job) -> Sequence[Path]:
    """The LoRAs of a job that are home, else its run directory."""
    if job.home is None:
        return ()
    try:
        steps = RunDirectory(job.home).read_plan().steps
    except (OSError, WanTrainError):
        return (job.home,)
    loras = [lora_file(job.home, step.produces) for step in steps if step.produces is not None]
    return [path for path in loras if path.is_file()] or (job.home,)


def show_launch(directory: LaunchDirectory, launch: Launch, sink: Sink) -> None:
    """Show the table once."""
    seen, now = read_last_seen(directory), time.time()
    if sink.is_screen:
        sink.show(Screenful(lambda width: launch_lines(launch, now, seen, width)))
    else:
        sink.text(plain(launch_lines(launch, now, seen)))


def exit_code_of(directory: LaunchDirectory, launch: Launch) -> ExitCode:
    """The exit code, as of a run: done, failed, partly failed, over its budget or hours, stopped, or gave up."""
    states = [job.state for job in launch.jobs]
    if all(state is JobState.DONE for state in states):
        return ExitCode.DONE
    if JobState.STOPPED in states:
        if launch.gave_up:
            return ExitCode.NOT_READY
        return ExitCode.INTERRUPTED if directory.requested() is not None else ExitCode.OVER_BUDGET
    return ExitCode.PARTLY_FAILED if JobState.DONE in states else ExitCode.TRAINING_FAILED


@dataclass(slots=True, kw_only=True)
class _Watcher:
    """Watches one launch. `revive` starts the program that carries it out."""

    directory: LaunchDirectory
    sink: Sink
    signals: Signals
    revive: Callable[[], None]
    gone_since: float | None = None
    revivals: int = 0
    shown: Launch | None = field(default=None)

    def follow_lines(self) -> Launch | _Leave:
        """Print changes as they happen."""
        while True:
            launch = self._look()
            self._write(launch)
            left = self._react(launch)
            if left is not None:
                return left
            time.sleep(_LOOK_SECONDS)

    def follow_screen(self) -> Launch | _Leave:
        """Show a live table until the launch is over or the user leaves. The last table stays in the terminal."""
        launch = self._look()
        with Screen(self.sink.console, ascii_only=self.sink.ascii_only) as screen:
            try:
                left = self._show(screen)
            except TerminalGoneError:
                return _Leave.HANGUP
        if left is _Leave.DETACHED:
            launch = self._look()
            show_launch(self.directory, launch, self.sink)
        return left

    def _show(self, screen: Screen) -> Launch | _Leave:
        asks = False
        while True:
            launch, seen = self._look(), read_last_seen(self.directory)
            screen.paint(launch_screen(launch, time.time(), seen, screen.size, asks_to_stop=asks))
            left = self._react(launch)
            if left is not None:
                return left
            for key in keys_in(screen.keys(_LOOK_SECONDS)):
                match key.lower():
                    case "y" if asks:
                        self.directory.ask(Halt.SAVE)
                    case "q" | "d" if not asks:
                        return _Leave.DETACHED
                    case _:
                        pass
                asks = not asks and key.lower() == "s"

    def _look(self) -> Launch:
        return self.directory.read()

    def _react(self, launch: Launch) -> Launch | _Leave | None:
        if self.signals.hung_up:
            return _Leave.HANGUP
        if launch.is_over and not self.directory.is_held:
            return launch
        if self.signals.interrupted or self.signals.terminated:
            return _Leave.DETACHED
        self._see_to_it(launch)
        return None

    def _see_to_it(self, launch: Launch) -> None:
        """Start another program if the last one died, but only a few times: one that keeps dying has a reason."""
        if launch.is_over or self.directory.is_held:
            self.gone_since = None
            return
        # It may have finished after the record was read.
        self.gone_since = self.gone_since or time.monotonic()
        if time.monotonic() - self.gone_since < _BELIEVE_SECONDS:
            return
        if self.revivals == _MOST_REVIVALS:
            raise NotReadyError(
                f"the program of launch {launch.id} ended {self.revivals} times",
                hint=f"Its last messages: {self.directory.log}\nThen: `wan-train launch attach {launch.id}`",
            )
        self.revivals += 1
        self.gone_since = None
        self.revive()

    def _write(self, launch: Launch) -> None:
        before, self.shown = self.shown, launch
        if self.sink.quiet:
            return
        if self.sink.as_json:
            if before is None or _told(before) != _told(launch):
                self.sink.data(launch_json(launch, time.time(), self._seen()))
            return
        for text in change_lines(before, launch):
            self.sink.line(f"{clock(time.time())} {text}")

    def _seen(self) -> LastSeen:
        return read_last_seen(self.directory)


def _told(launch: Launch) -> object:
    """The parts of a record whose changes are worth a line."""
    boxes = [(box.name, box.state, box.job) for box in launch.boxes]
    return boxes, [(job.name, job.state) for job in launch.jobs], launch.halted_because

"""What the guardian starts and ends: supervisors, uploads, the box itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol, assert_never

from wan_train.base import process
from wan_train.base.errors import WanTrainError
from wan_train.base.settings import Settings
from wan_train.base.text import one_line
from wan_train.box.vast import ID_VARIABLE, KEY_VARIABLE, Power, Vast, VastError
from wan_train.run.box_ending import Ending
from wan_train.run.control import StopRequest, request_stop, start_supervisor
from wan_train.run.directory import RunDirectory
from wan_train.run.duties import Then
from wan_train.run.events import StopMode

_COMMAND_SECONDS = 600.0
_PROOF_SECONDS = 60.0
_LOOK_SECONDS = 3.0
_ORDER_SECONDS = 20.0


class Effects(Protocol):
    """No method raises, or blocks longer than starting a supervisor takes."""

    def restart(self, run: RunDirectory) -> str | None:
        """Start a supervisor; return why it did not start, or None."""

    def stop(self, run: RunDirectory, mode: StopMode) -> None: ...

    def upload(self, run: RunDirectory) -> None: ...

    def is_uploading(self, run: RunDirectory) -> bool: ...

    def end(self, ending: Ending) -> None:
        """Start ending the box; `answer` returns the outcome."""

    @property
    def is_acting(self) -> bool: ...

    def answer(self) -> str | None:
        """Return the outcome of `end` once: why it failed, or "" if it was accepted. None while unknown."""

    def by_hand(self, then: Then) -> str | None:
        """The command a person can use to end the box."""


class BoxEffects:
    """The effects on this box."""

    def __init__(self, settings: Settings, environ: Mapping[str, str], *, before_the_end: Callable[[], None]) -> None:
        """`before_the_end` waits for messages to be sent; it may take seconds."""
        self._settings = settings
        self._before_the_end = before_the_end
        self._vast = Vast.of_this_box(environ, settings.vast_url)
        self._uploads: dict[str, subprocess.Popen[bytes]] = {}
        self._supervisors: list[subprocess.Popen[bytes]] = []
        self._act: threading.Thread | None = None
        self._answer: str | None = None

    def restart(self, run: RunDirectory) -> str | None:
        self._supervisors = [child for child in self._supervisors if child.poll() is None]
        try:
            self._supervisors.append(start_supervisor(run, self._settings))
        except (WanTrainError, OSError) as error:
            return one_line(str(error))
        return None

    def stop(self, run: RunDirectory, mode: StopMode) -> None:
        try:
            request_stop(run, StopRequest(mode=mode, signal=signal.SIGTERM))
        except OSError as error:
            say(f"{run.run_id} cannot be asked to stop: {one_line(str(error))}")

    def upload(self, run: RunDirectory) -> None:
        argv = [sys.executable, "-m", "wan_train", "upload", str(run.path), "--json"]
        environ = {**os.environ, **self._settings.environment()}
        try:
            self._uploads[run.run_id] = subprocess.Popen(
                argv, cwd="/", env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            say(f"the upload of {run.run_id} cannot be started: {one_line(str(error))}")

    def is_uploading(self, run: RunDirectory) -> bool:
        child = self._uploads.get(run.run_id)
        return child is not None and child.poll() is None

    def end(self, ending: Ending) -> None:
        self._answer = None
        self._act = threading.Thread(target=self._end, args=(ending,), name="ending", daemon=True)
        self._act.start()

    @property
    def is_acting(self) -> bool:
        return self._act is not None

    def answer(self) -> str | None:
        if self._act is None or self._act.is_alive():
            return None
        self._act = None
        return self._answer

    def by_hand(self, then: Then) -> str | None:
        instance = self._vast.instance if self._vast is not None else "ID"
        match then:
            case Then.STOP | Then.DESTROY:
                return f"vastai {then} instance {instance}"
            case Then.COMMAND | Then.NOTHING:
                return None
            case _:
                assert_never(then)

    def _end(self, ending: Ending) -> None:
        try:
            self._before_the_end()
            self._answer = end_box(ending, self._vast)
        except Exception as error:  # noqa: BLE001  a bug here must not silently leave the box running
            self._answer = f"a bug in wan-train: {type(error).__name__}"


def end_box(
    ending: Ending,
    vast: Vast | None,
    *,
    proof_seconds: float = _PROOF_SECONDS,
    pause: Callable[[float], None] = time.sleep,
) -> str:
    """End this box; return why that failed, or "" once it is known to go down."""
    if ending.then is Then.COMMAND:
        done = process.run(ending.command, seconds=_COMMAND_SECONDS)
        said = one_line(done.tail(1)) or f"exit code {done.code}"
        return "" if done.succeeded else f"{one_line(ending.command[0])} failed: {said}"
    if vast is None:
        return f"this box has no Vast API key: {ID_VARIABLE} or {KEY_VARIABLE} is missing"
    try:
        if ending.then is Then.DESTROY:
            vast.destroy(seconds=_ORDER_SECONDS)
        else:
            vast.stop(seconds=_ORDER_SECONDS)
    except VastError as error:
        return str(error)
    return _proof(ending.then, vast, proof_seconds, pause)


def _proof(then: Then, vast: Vast, seconds: float, pause: Callable[[float], None]) -> str:
    """Return why it is not certain that the box goes down, or "" if Vast says so. No answer proves nothing."""
    waited = 0.0
    while True:
        try:
            power = vast.power(seconds=_ORDER_SECONDS)
        except VastError as error:
            problem = f"Vast accepted the order, but does not say whether the box goes down: {error}"
        else:
            if power is Power.GONE or (power is Power.GOING and then is Then.STOP):
                return ""
            problem = f"Vast accepted the order ({then}), but the box still runs"
        if waited >= seconds:
            return problem
        pause(_LOOK_SECONDS)
        waited += _LOOK_SECONDS


def say(text: str) -> None:
    """Write a line to the guardian's log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)  # noqa: T201  stdout is the guardian's log

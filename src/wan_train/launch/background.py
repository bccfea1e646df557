"""The program that carries out a launch, in a session of its own: `python -m wan_train.launch.background DIR`."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uv

from wan_train.base import locks
from wan_train.base.clock import SystemClock
from wan_train.base.errors import ExitCode, NotReadyError, WanTrainError
from wan_train.base.settings import Settings, resolve, user_data_dir
from wan_train.launch.changes import changes
from wan_train.launch.conduct import carry_out
from wan_train.launch.engine import EngineError, SkyEngine
from wan_train.launch.hands import Hands
from wan_train.launch.market import KEY_VARIABLE, VastMarket
from wan_train.launch.model import Launch
from wan_train.launch.notice import end_of
from wan_train.launch.places import LaunchDirectory
from wan_train.launch.remote import SshRemote
from wan_train.launch.seen import Seen, progress_of, publish
from wan_train.launch.sky_home import make
from wan_train.launch.wheel import pack, provision_script
from wan_train.notify.dispatcher import send_now
from wan_train.notify.targets import read_targets

_START_SECONDS = 30.0
_LOOK_SECONDS = 0.1

log = logging.getLogger(__name__)


def start(directory: LaunchDirectory, settings: Settings) -> None:
    """Start the program and wait until it has taken over the launch. Raises NotReadyError with the end of its log."""
    descriptor = os.open(directory.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "wan_train.launch.background", str(directory.path)],
            cwd="/",
            env={**os.environ, **settings.environment()},
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        if directory.is_held:
            return
        time.sleep(_LOOK_SECONDS)
    if child.poll() == ExitCode.DONE:
        return
    last = directory.log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
    raise NotReadyError(
        f"the launch did not start: {last[0] if last else 'no reason given'}", hint=f"Log: {directory.log}"
    )


def hands_of(directory: LaunchDirectory, settings: Settings, say: Callable[[str], None]) -> tuple[Hands, SkyEngine]:
    """The hands of this machine on the market, SkyPilot and the boxes. Raises NotReadyError."""
    market = VastMarket.of(os.environ, Path.home(), settings.vast_url)
    home = make(user_data_dir() / "sky", uv=uv.find_uv_bin(), say=say)
    key = {KEY_VARIABLE: market.api.key, "VAST_URL": settings.vast_url}
    engine = SkyEngine.of(home, key, keys=directory.scratch, log=directory.engine_log)
    wheel = pack(directory.scratch)
    script = provision_script()
    hands = Hands(
        market=market,
        engine=engine,
        remote=SshRemote(scratch=directory.scratch, source=lambda: (wheel, script)),
        runs=directory.runs,
        clock=SystemClock(),
        pause=time.sleep,
    )
    return hands, engine


@dataclass(slots=True)
class _Record:
    """The log of a launch, and what it publishes."""

    directory: LaunchDirectory
    hands: Hands
    last: Launch

    def changed(self, launch: Launch) -> None:
        for line in changes(self.last, launch):
            log.info("%s", line)
        self.last = launch
        publish(self.directory, _seen(self.hands))


def _seen(hands: Hands) -> Seen:
    choice = hands.choice
    why = ""
    if choice is not None and not choice.fit:
        reasons = ", ".join(f"{number} {reason}" for reason, number in choice.unfit)
        why = f"none is what was wanted{f' ({reasons})' if reasons else ''}"
    return Seen(jobs={name: progress_of(training) for name, training in list(hands.seen.items())}, searching=why)


def _notify(launch: Launch) -> None:
    """Tell the services of the settings file that it is over; a message that is not sent changes nothing."""
    try:
        targets = read_targets(resolve(flags={}).notify)
        if targets:
            for outcome in send_now(end_of(launch, time.time()), targets):
                log.info("message to %s: %s", outcome.target, outcome.why or outcome.mark)
    except WanTrainError as error:
        log.warning("no message was sent: %s", error.message)


def main(path: str) -> ExitCode:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    directory = LaunchDirectory(Path(path))
    users = user_data_dir() / "sky/users"
    try:
        users.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locks.held(users, wait=True, shared=True) as held:
            hands, engine = hands_of(directory, resolve(flags={}), log.info)
            try:
                launch = carry_out(directory, hands, SystemClock(), _Record(directory, hands, directory.read()).changed)
                _notify(launch)
            finally:
                # The lock is shared by all launches of this user: alone with it, nobody else uses the server.
                if locks.try_once(held, users, shared=False):
                    _stop_server(engine)
                engine.close()
    except BlockingIOError:
        log.info("another program carries it out")
    except WanTrainError as error:
        log.error("%s", error.message)  # noqa: TRY400  a user's error has no traceback
        return error.exit_code
    return ExitCode.DONE


def _stop_server(engine: SkyEngine) -> None:
    try:
        engine.stop_server()
    except EngineError as error:
        log.warning("SkyPilot's server was not ended: %s", error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

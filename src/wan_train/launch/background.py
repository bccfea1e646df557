"""The program that carries out a launch, in its own session: `python -m wan_train.launch.background DIR`."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uv

from wan_train.base import locks, process
from wan_train.base.clock import SystemClock
from wan_train.base.errors import ExitCode, NotReadyError, WanTrainError
from wan_train.base.settings import Settings, resolve
from wan_train.launch.action_runner import ActionRunner
from wan_train.launch.change_lines import change_lines
from wan_train.launch.controller import carry_out
from wan_train.launch.end_message import end_message
from wan_train.launch.engine import EngineError, SkyEngine
from wan_train.launch.infra import VAST, variables_of
from wan_train.launch.last_seen import LastSeen, progress_of, publish
from wan_train.launch.launch_directory import LaunchDirectory
from wan_train.launch.market import KEY_VARIABLE, VastMarket
from wan_train.launch.model import Launch
from wan_train.launch.remote import SshRemote
from wan_train.launch.sky_home import folder_of, make
from wan_train.launch.sky_market import SkyMarket
from wan_train.launch.wheel import pack, provision_script
from wan_train.notify.dispatcher import send_now
from wan_train.notify.targets import read_targets

_START_SECONDS = 30.0
_LOOK_SECONDS = 0.1

log = logging.getLogger(__name__)


def start(directory: LaunchDirectory, settings: Settings) -> None:
    """Start the program and wait until it has taken over the launch. Raises NotReadyError with the end of its log."""
    argv: list[str | Path] = [sys.executable, "-m", "wan_train.launch.background", directory.path]
    child = process.start_detached(argv, env=settings.environment(), log=directory.log)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        if directory.is_held:
            return
        time.sleep(_LOOK_SECONDS)
    if child.poll() == ExitCode.DONE:
        return
    child.kill()  # a program that was reported as not started must not rent later
    last = directory.log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
    raise NotReadyError(
        f"the launch did not start: {last[0] if last else 'no reason given'}", hint=f"Log: {directory.log}"
    )


@contextmanager
def sky_engine(
    infra: str, key: Mapping[str, str], *, keys: Path, log: Path, say: Callable[[str], None]
) -> Iterator[SkyEngine]:
    """SkyPilot for an infrastructure. This user's last program to leave ends its server. Raises NotReadyError."""
    folder = folder_of(infra)
    users = folder / "users"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locks.held(users, wait=True, shared=True) as held:
        engine = SkyEngine.of(make(folder, uv=uv.find_uv_bin(), say=say, infra=infra), key, keys=keys, log=log)
        try:
            yield engine
        finally:
            # All programs that use the server share the lock. An exclusive lock means that no other program uses it.
            if locks.try_once(held, users, shared=False):
                _stop_server(engine)
            engine.close()


@contextmanager
def open_runner(directory: LaunchDirectory, settings: Settings, say: Callable[[str], None]) -> Iterator[ActionRunner]:
    """A runner with the market, SkyPilot and the boxes of this launch. Raises NotReadyError."""
    infra = directory.read().wants.infra
    vast = VastMarket.of(os.environ, Path.home(), settings.vast_url) if infra == VAST else None
    key = variables_of(infra, os.environ)
    if vast is not None:
        key = {KEY_VARIABLE: vast.api.key, "VAST_URL": settings.vast_url}
    wheel, script = pack(directory.scratch), provision_script()
    with sky_engine(infra, key, keys=directory.scratch, log=directory.engine_log, say=say) as engine:
        yield ActionRunner(
            market=vast or SkyMarket(engine, infra),
            engine=engine,
            remote=SshRemote(scratch=directory.scratch, source=lambda: (wheel, script)),
            runs=directory.runs,
            clock=SystemClock(),
            pause=time.sleep,
        )


@dataclass(slots=True)
class Reporter:
    """Reports a launch: changes to its log, and the last seen trainings to watchers."""

    directory: LaunchDirectory
    seen: Callable[[], LastSeen]
    last: Launch

    def changed(self, launch: Launch) -> None:
        for line in change_lines(self.last, launch):
            log.info("%s", line)
        self.last = launch
        publish(self.directory, self.seen())


def _seen(runner: ActionRunner) -> LastSeen:
    jobs = {name: progress_of(training) for name, training in list(runner.seen.items())}
    return LastSeen(jobs=jobs, searching=runner.searching)


def _notify(launch: Launch, *, is_swept: bool) -> None:
    """Notify the services in the settings file that the launch is over. A failed message changes nothing."""
    try:
        targets = read_targets(resolve(flags={}).notify)
        if targets:
            for outcome in send_now(end_message(launch, time.time(), is_swept=is_swept), targets):
                log.info("message to %s: %s", outcome.target, outcome.why or outcome.mark)
    except WanTrainError as error:
        log.warning("no message was sent: %s", error.message)


def main(path: str) -> ExitCode:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    directory = LaunchDirectory(Path(path))
    try:
        with open_runner(directory, resolve(flags={}), log.info) as runner:
            launch, is_swept = carry_out(
                directory, runner, SystemClock(), Reporter(directory, lambda: _seen(runner), directory.read()).changed
            )
            _notify(launch, is_swept=is_swept)
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

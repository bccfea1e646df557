"""SkyPilot's environment and home: made once, only for us, with exactly the versions that our plugin supports."""

from __future__ import annotations

import random
import shutil
import socket
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from wan_train.base import locks, process
from wan_train.base.errors import NotReadyError
from wan_train.base.files import write_whole
from wan_train.base.settings import user_data_dir
from wan_train.base.text import one_line
from wan_train.launch.engine import SkyHome
from wan_train.launch.infra import VAST
from wan_train.launch.skypilot.vast_plugin import VERSIONS

INSTALLED_BYTES = 600_000_000
"""Announced before anything is fetched. Measured with the pinned versions in November 2026: 437 MB and 601 MB."""
_PYTHON = "3.11"
_INSTALL_SECONDS = 1800.0
_PORTS = range(46600, 49900)
_QUEUE_BASE, _QUEUE_PORT, _SERVER_PORT, _QUEUE_RANGE = 50000, 50011, 46580, 10000
"""SkyPilot computes its second port from these (sky/server/requests/queues/mp_queue.py)."""
PROGRAMS = ("ssh", "rsync")
"""Programs that a laptop must have. SkyPilot needs both as well."""


def missing_programs() -> tuple[str, ...]:
    return tuple(name for name in PROGRAMS if shutil.which(name) is None)


def folder_of(infra: str) -> Path:
    """SkyPilot's folder for an infrastructure. Each has its own environment, home and server."""
    return user_data_dir() / ("sky" if infra == VAST else f"sky-{infra}")


def stamp(infra: str = VAST) -> str:
    """The mark of an environment with these versions."""
    if infra != VAST:
        return f"skypilot[{infra}]=={VERSIONS['skypilot']}"
    return " ".join(f"{package}=={version}" for package, version in VERSIONS.items())


def is_made(folder: Path, infra: str = VAST) -> bool:
    """Whether the environment is complete and has the pinned versions."""
    try:
        return (folder / "env/ready").read_text(encoding="utf-8") == stamp(infra)
    except OSError:
        return False


def make(folder: Path, *, uv: str, say: Callable[[str], None], infra: str = VAST) -> SkyHome:
    """Install the environment if it is missing, and write the home beside it. Raises NotReadyError.

    May be killed at any moment: an environment counts only once its mark is there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locks.held(folder / "lock", wait=True):
            if not is_made(folder, infra):
                say(f"fetching SkyPilot ({INSTALLED_BYTES / 1e6:.0f} MB on disk) into {folder}")
                _install(folder / "env", uv, stamp(infra).replace("skypilot==", "skypilot[vast]==").split(), infra)
            python, port = folder / "env/bin/python", _port(folder / "port")
            home = SkyHome(python=python, folder=folder / "home", port=port, infra=infra)
            home.write()
    except OSError as error:
        raise NotReadyError(
            f"{error.filename or folder} cannot be written: {error.strerror}",
            hint="Free some disk space, then try again.",
        ) from error
    return home


def _install(environment: Path, uv: str, wanted: Sequence[str], infra: str) -> None:
    shutil.rmtree(environment, ignore_errors=True)
    for words in (
        ["venv", "--quiet", "--python", _PYTHON, str(environment)],
        ["pip", "install", "--quiet", "--python", str(environment / "bin/python"), *wanted],
    ):
        outcome = process.run([uv, *words], seconds=_INSTALL_SECONDS)
        if not outcome.succeeded:
            told = one_line(outcome.tail(2).replace("\n", "; "))
            raise NotReadyError(f"installing SkyPilot failed: {told}", hint="Check the network, then try again.")
    write_whole(environment / "ready", stamp(infra))


def _port(path: Path) -> int:
    """Our API server's port, the same at every start; a new one if the file is missing or damaged."""
    try:
        port = int(path.read_text(encoding="utf-8"))
        if port in _PORTS:
            return port
    except (OSError, ValueError):
        pass
    for port in random.sample(_PORTS, len(_PORTS)):
        if _is_free(port) and _is_free(_queue_port(port)):
            write_whole(path, str(port))
            return port
    raise NotReadyError("no free port was found for SkyPilot's server", hint="End programs that listen on ports.")


def _queue_port(port: int) -> int:
    return _QUEUE_BASE + (_QUEUE_PORT - _QUEUE_BASE + port - _SERVER_PORT) % _QUEUE_RANGE


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as made:
        try:
            made.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

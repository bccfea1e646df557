"""Renting boxes until they answer ssh: a protocol, and SkyPilot behind it as a program that speaks JSON lines."""

from __future__ import annotations

import functools
import itertools
import json
import os
import secrets
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from wan_train.base.files import write_whole
from wan_train.base.text import one_line
from wan_train.launch.box_check import timer
from wan_train.launch.infra import IDLE_MINUTES, VAST, keeper, link_credentials
from wan_train.launch.model import Address, Offer, Wants
from wan_train.launch.skypilot import sky_driver, vast_plugin

RUN_SECONDS = 900.0
"""A box that is not running after this long is destroyed."""
_RENT_SECONDS = RUN_SECONDS + 1800.0
"""Renting, and SkyPilot's own set-up on the box, which downloads about 0.8 GB."""
_ANSWER_SECONDS = 300.0
_END_SECONDS = 10.0
_ENDED = "SkyPilot's driver has ended"


class EngineError(Exception):
    """A box was not rented or not ended. The message may be shown and recorded."""


class EngineDownError(EngineError):
    """SkyPilot itself ended or did not answer. The box may still exist: repeating the request finds it."""


class Engine(Protocol):
    """Rents and ends boxes by name. Methods raise EngineError."""

    def rent(self, name: str, offer: Offer, wants: Wants) -> Address:
        """Return once the box answers ssh. An existing box of this name is reused."""
        ...

    def down(self, name: str) -> None:
        """Request the end of a box. Only the provider's list shows whether it is gone."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SkyHome:
    """Our SkyPilot: `python` of its environment, `folder` as its home, `port` of its API server."""

    python: Path
    folder: Path
    port: int
    infra: str = VAST

    def environ(self, key: Mapping[str, str]) -> dict[str, str]:
        """The environment of the driver and of the API server that it starts. `key` has the account's key variables."""
        kept = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE", "HTTPS_PROXY", "NO_PROXY", "VAST_URL")
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            **key,
            "HOME": str(self.folder),
            "PYTHONPATH": str(self.programs),
            "SKYPILOT_API_SERVER_LOCAL_PORT": str(self.port),
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        }

    @property
    def programs(self) -> Path:
        """Folder of our two programs, with nothing else of ours in it."""
        return self.folder / "programs"

    def write(self) -> None:
        """Write our programs. On Vast, add the plugin's configuration and a catalogue; elsewhere, link credentials."""
        for module in (sky_driver, vast_plugin):
            source = Path(str(module.__file__))
            self.programs.mkdir(parents=True, exist_ok=True)
            write_whole(self.programs / source.name, source.read_bytes())
        if self.infra != VAST:
            link_credentials(self.infra, Path.home(), self.folder)
            return
        sky = self.folder / ".sky"
        for path, text in {"plugins.yaml": _PLUGINS, **catalogue()}.items():
            (sky / path).parent.mkdir(parents=True, exist_ok=True)
            write_whole(sky / path, text)
        if not (sky / "user_hash").exists():
            # SkyPilot would use the hash of the user's own SkyPilot, and their connections would look the same.
            write_whole(sky / "user_hash", secrets.token_hex(4))


_PLUGINS = "plugins:\n  - class: vast_plugin.VastPlugin\n"
_MOST_GPUS = 16
_REGION = "anywhere"


def catalogue() -> dict[str, str]:
    """SkyPilot's Vast catalogue by file name: one kind of box for each number of GPUs, because we choose the offer.

    SkyPilot never refreshes its own (skypilot 0.14.1), so its prices would stay those of the first day.
    """
    rows = ["InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,HostingType"]
    for count in range(1, _MOST_GPUS + 1):
        info = f"{{'Gpus': [{{'Name': 'CARD', 'Count': {count}, 'MemoryInfo': {{'SizeInMiB': 24576}}}}]}}"
        rows.append(f'{kind_of(count)},CARD,{count},1,1,"{info}",0.01,0.01,{_REGION},0')
    return {
        "catalogs/v8/vast/vms.csv": "\n".join([*rows, ""]),
        "catalogs/v8/common/accelerators.csv": "AcceleratorName,Clouds\nCARD,\"['Vast']\"\n",
        "catalogs/v8/common/metadata.csv": "GPU,MemoryGB,Manufacturer\nCARD,24,NVIDIA\n",
    }


def kind_of(gpus: int) -> str:
    """SkyPilot's name for the kind of box."""
    return f"{gpus}x-CARD-1-1024"


def task_for(offer: Offer, wants: Wants) -> dict[str, Any]:
    """Return the SkyPilot task: on Vast for exactly this offer, elsewhere for this kind of box, which ends itself."""
    if wants.infra != VAST:
        card, count, kind = offer.id.split(":", 2)
        return {
            "run": keeper(wants.max_hours),
            "resources": {
                "infra": wants.infra,
                "accelerators": {card: int(count)},
                **({"instance_type": kind} if kind else {}),
                "use_spot": wants.spot,
                "disk_size": round(wants.disk_gb),
                "autostop": {"idle_minutes": IDLE_MINUTES, "down": True, "wait_for": "jobs"},
            },
        }
    options: dict[str, Any] = {
        vast_plugin.OFFER: offer.id,
        vast_plugin.SECONDS: RUN_SECONDS,
        # Set from the start: a box whose rental was never recorded must end itself too.
        vast_plugin.TIMER: timer(wants.max_hours),
    }
    if offer.bid is not None:
        options[vast_plugin.PRICE] = offer.bid
    return {
        "resources": {
            "infra": VAST,
            "instance_type": kind_of(offer.gpus),
            "disk_size": round(wants.disk_gb),
        },
        "config": {"vast": {"create_instance_kwargs": options}},
    }


class SkyEngine:
    """SkyPilot's driver as a child process, usable from any thread. The next request restarts a driver that died."""

    def __init__(self, argv: Sequence[str | Path], environ: Mapping[str, str], keys: Path, log: Path) -> None:
        self._start = functools.partial(_Driver, argv, environ, log)
        self._keys = keys
        self._lock = threading.Lock()
        self._driver = self._start()

    def rent(self, name: str, offer: Offer, wants: Wants) -> Address:
        found = self._ask({"do": "rent", "name": name, "task": task_for(offer, wants)}, _RENT_SECONDS)
        try:
            host, port, user = str(found["host"]), int(found["port"]), str(found["user"])
        except (KeyError, TypeError, ValueError):
            raise EngineError("SkyPilot did not say how the box is reached") from None
        proxy = str(found.get("proxy") or "")
        return Address(name=name, host=host, port=port, user=user, key=self._key(name, found), proxy=proxy)

    def down(self, name: str) -> None:
        self._ask({"do": "down", "name": name}, _ANSWER_SECONDS)

    def boxes(self) -> Mapping[str, str]:
        """SkyPilot's boxes with their states: INIT, UP or STOPPED. Raises EngineError."""
        found = self._ask({"do": "boxes"}, _ANSWER_SECONDS).get("boxes")
        if not isinstance(found, dict):
            raise EngineError("SkyPilot did not list its boxes")
        return {str(name): str(word) for name, word in found.items()}

    def offers(self, infra: str, *, spot: bool) -> list[dict[str, Any]]:
        """SkyPilot's catalogue. Raises EngineError for an infrastructure that is not enabled or cannot end a box."""
        found = self._ask({"do": "offers", "infra": infra, "spot": spot}, _ANSWER_SECONDS).get("offers")
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise EngineError("SkyPilot did not list what can be rented")
        return found

    @classmethod
    def of(cls, home: SkyHome, key: Mapping[str, str], *, keys: Path, log: Path) -> SkyEngine:
        """The driver in SkyPilot's environment. `keys` is a folder for the ssh keys of boxes."""
        return cls([home.python, home.programs / "sky_driver.py"], home.environ(key), keys, log)

    def stop_server(self) -> None:
        """End the API server of our home and everything that it started. Raises EngineError."""
        self._ask({"do": "stop"}, _ANSWER_SECONDS)

    def close(self) -> None:
        """End the driver. Boxes stay, and so does the API server, for the next one."""
        self._driver.close()

    def _key(self, name: str, found: Mapping[str, Any]) -> Path:
        text = found.get("key")
        if not isinstance(text, str) or not text:
            return Path(str(found.get("key_path"))).expanduser()
        path = self._keys / name
        write_whole(path, text if text.endswith("\n") else f"{text}\n")
        return path

    def _ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        with self._lock:
            if self._driver.has_ended:
                self._driver.close()
                self._driver = self._start()
            driver = self._driver
        return driver.ask(request, seconds)


class _Driver:
    """One process of the driver."""

    def __init__(self, argv: Sequence[str | Path], environ: Mapping[str, str], log: Path) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self.has_ended = False
        with log.open("ab") as errors:
            self._child = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=dict(environ),
                start_new_session=True,
            )
        self._in, self._out = _both(self._child)
        self._reader = threading.Thread(target=self._read, name="skypilot", daemon=True)
        self._reader.start()

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        number, answer = next(self._numbers), Future[dict[str, Any]]()
        with self._lock:
            if self.has_ended:
                raise EngineDownError(_ENDED)
            self._waiting[number] = answer
            try:
                self._in.write(json.dumps({"id": number, **request}).encode() + b"\n")
                self._in.flush()
            except OSError:
                raise EngineDownError(_ENDED) from None
        try:
            return answer.result(seconds)
        except TimeoutError:
            raise EngineDownError(f"SkyPilot did not answer within {seconds / 60:.0f} minutes") from None
        finally:
            with self._lock:
                self._waiting.pop(number, None)

    def close(self) -> None:
        with suppress(OSError):  # a dead driver left a line unread
            self._in.close()
        try:
            self._child.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._reader.join(_END_SECONDS)

    def _read(self) -> None:
        with self._out:
            for line in self._out:
                try:
                    answer = json.loads(line)
                except ValueError:
                    continue
                if isinstance(answer, dict):
                    self._deliver(answer)
        with self._lock:
            self.has_ended = True
            left, self._waiting = list(self._waiting.values()), {}
        for each in left:
            each.set_exception(EngineDownError(_ENDED))

    def _deliver(self, answer: Mapping[str, Any]) -> None:
        with self._lock:
            waiting = self._waiting.pop(answer.get("id") or 0, None)
        if waiting is None:
            return
        ok = answer.get("ok")
        if isinstance(ok, dict):
            waiting.set_result(ok)
            return
        kind = EngineDownError if answer.get("down") is True else EngineError
        waiting.set_exception(kind(one_line(str(answer.get("error", "no reason given")), 600)))


def _both(child: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert child.stdin is not None and child.stdout is not None, "both are pipes"
    return child.stdin, child.stdout

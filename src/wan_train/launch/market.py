"""Vast.ai's account API: offers, the account's boxes, and their end.

Its answers are checked again here: a search that lost its filter must not rent another card.
"""

from __future__ import annotations

import json
import math
import os
import stat
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from wan_train.base.errors import NotReadyError
from wan_train.base.text import one_line
from wan_train.base.units import GB, MB
from wan_train.box.rental import number_in
from wan_train.box.vast import MISSING, REFUSED, Api, NoAnswerError, StatusError, VastError, why_refused
from wan_train.launch.gpu_names import is_card, names_for
from wan_train.launch.model import GpuWant, Offer, Wants

KEY_VARIABLE = "VAST_API_KEY"
KEY_FILE = Path(".config/vastai/vast_api_key")
"""In the home directory, where the `vastai` program keeps it."""
LEAST_GPU_BYTES = 23 * GB
"""Least memory if no card was named: a 24 GB card is the smallest that trains at the guide's size with swapping."""
DEADLINE_SECONDS = 20.0
_MOST_KEY_BYTES = 4096
_TRIES = 4
_PAUSE_SECONDS = 1.0
_MOST_PAUSE_SECONDS = 60.0
_BUSY = 429
_BROKEN = 500
_MOST_OFFERS = 64
_MOST_PAGES = 100
_BID_ABOVE = 1.1
"""The default bid is this many times the market's lowest bid."""


class Power(StrEnum):
    """A box's state at the provider."""

    COMING = "coming"
    RUNNING = "running"
    DOWN = "down"
    """Stopped, outbid or broken: it does not run, but its disk is billed."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One box in the provider's own list. Dollars an hour."""

    id: str
    label: str
    power: Power
    said: str
    """The provider's word for its state."""
    gpu: str
    gpus: int
    per_hour: float | None
    since: float | None = None
    """When its rent began, in seconds since 1970 by the provider's clock."""
    host: str | None = None
    port: int | None = None

    def is_of(self, name: str) -> bool:
        """Whether it was rented under this name. SkyPilot adds words after a dash."""
        return self.label == name or self.label.startswith(f"{name}-")


class Market(Protocol):
    """A provider's account. All methods raise VastError."""

    def offers(self, wants: Wants) -> tuple[Offer, ...]:
        """What can be rented now and matches `wants`, price aside; cheapest first."""
        ...

    def boxes(self) -> tuple[Listed, ...]:
        """Every box of the account."""
        ...

    def start(self, name: str) -> None:
        """Request that a stopped box of this name starts again. Only the list shows whether it does."""
        ...

    def destroy(self, name: str) -> None:
        """End every box of this name. Raises VastError while the list still shows one."""
        ...

    def credit(self) -> float | None:
        """Dollars that the account can spend; None if the provider does not say."""
        ...


def account_key(environ: Mapping[str, str], home: Path) -> str:
    """The key of the account. Raises NotReadyError if there is none."""
    if key := environ.get(KEY_VARIABLE, "").strip():
        return key
    path = home / KEY_FILE
    try:
        key = _read_key(path)
    except FileNotFoundError:
        key = ""
    except OSError as error:
        raise NotReadyError(
            f"the Vast.ai key in {path} cannot be read: {error.strerror}", hint=f"Set it: `export {KEY_VARIABLE}=KEY`"
        ) from error
    if not key:
        raise NotReadyError(
            "no Vast.ai key was found",
            hint=f"Create one at https://cloud.vast.ai/manage-keys/\nThen: `export {KEY_VARIABLE}=KEY`",
        )
    return key


def _read_key(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return ""
        return file.read(_MOST_KEY_BYTES).decode(errors="replace").strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class VastMarket:
    """The account behind one key. `pause` sleeps for a number of seconds."""

    api: Api
    pause: Callable[[float], None] = time.sleep

    @classmethod
    def of(cls, environ: Mapping[str, str], home: Path, address: str) -> VastMarket:
        """Raises NotReadyError without a key. `address` is `Settings.vast_url`."""
        return cls(api=Api(address=address, key=account_key(environ, home), key_name=KEY_VARIABLE))

    def offers(self, wants: Wants) -> tuple[Offer, ...]:
        kinds = wants.gpus or (None,)
        found: dict[str, Offer] = {}
        for kind in kinds:
            answer = self._ask("POST", "/api/v0/bundles/", _query(wants, kind))
            rows = answer.get("offers") if isinstance(answer, dict) else None
            if not isinstance(rows, list):
                raise VastError("Vast's answer has no offers")
            for row in rows:
                offer = _offer(row, wants) if isinstance(row, dict) else None
                if offer is not None and serves(offer, kind, wants.disk_gb):
                    found[offer.id] = offer
        return tuple(sorted(found.values(), key=lambda offer: (offer.per_hour, offer.id)))

    def boxes(self) -> tuple[Listed, ...]:
        return tuple(self._rows())

    def start(self, name: str) -> None:
        for box in self.boxes():
            if box.is_of(name) and box.power is Power.DOWN:
                answer = self._ask("PUT", f"/api/v0/instances/{box.id}/", {"state": "running"})
                if (why := why_refused(answer)) is not None:
                    raise VastError(why)

    def destroy(self, name: str) -> None:
        for box in self.boxes():
            if box.is_of(name):
                self._destroy(box.id)
        left = [box for box in self.boxes() if box.is_of(name)]
        if left:
            raise VastError(f"Vast still lists {len(left)} of {name}: {left[0].id} is {left[0].said}")

    def credit(self) -> float | None:
        answer = self._ask("GET", "/api/v0/users/current/")
        return number_in(answer, "credit") if isinstance(answer, dict) else None

    def _destroy(self, instance: str) -> None:
        try:
            why = why_refused(self._ask("DELETE", f"/api/v0/instances/{instance}/", {}))
        except StatusError as error:
            if error.status == MISSING:
                return  # already destroyed
            raise
        if why is not None:
            raise VastError(why)

    def _rows(self) -> Iterator[Listed]:
        query: dict[str, Any] = {"select_filters": {}, "order_by": [{"col": "id", "dir": "asc"}], "limit": 25}
        for _ in range(_MOST_PAGES):
            words = urllib.parse.urlencode(
                {name: value if isinstance(value, str) else json.dumps(value) for name, value in query.items()}
            )
            answer = self._ask("GET", f"/api/v1/instances/?{words}")
            rows = answer.get("instances") if isinstance(answer, dict) else None
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                # Do not read it as an empty list, which would mean that nothing costs money.
                raise VastError("Vast's answer has no list of boxes")
            yield from (_listed(row) for row in rows)
            token = answer.get("next_token")
            if not token:
                return
            query["after_token"] = token
        raise VastError("Vast's list of boxes does not end")

    def _ask(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  JSON of any shape
        """Ask with retries. Searches and lists change nothing, and a box may be started or ended twice."""
        left = _MOST_PAUSE_SECONDS
        pause = _PAUSE_SECONDS
        for attempt in range(1, _TRIES + 1):
            try:
                return self.api.ask(method, path, DEADLINE_SECONDS, body)
            except StatusError as error:
                if error.status in REFUSED:
                    raise VastError(f"Vast refused the key (status {error.status}): check {KEY_VARIABLE}") from None
                if error.status != _BUSY and error.status < _BROKEN:
                    raise
                wait = pause if error.retry_after is None else error.retry_after
                if attempt == _TRIES or wait > left:
                    raise
            except NoAnswerError:
                wait = pause
                if attempt == _TRIES or wait > left:
                    raise
            self.pause(wait)
            left -= wait
            pause *= 2
        raise AssertionError("the last try returns or raises")


def _query(wants: Wants, kind: GpuWant | None) -> Mapping[str, Any]:
    """The search, with each filter as a separate value instead of text that a parser could cut short."""
    what: dict[str, Any] = (
        {"gpu_name": {"in": list(names_for(kind.name))}, "num_gpus": {"eq": kind.count}}
        if kind is not None
        else {"gpu_ram": {"gte": LEAST_GPU_BYTES / MB}, "num_gpus": {"in": [1, 2]}}
    )
    return {
        **what,
        "verified": {"eq": True},
        "external": {"eq": False},
        "rentable": {"eq": True},
        "rented": {"eq": False},
        "disk_space": {"gte": wants.disk_gb},
        "type": "bid" if wants.spot else "on-demand",
        "allocated_storage": wants.disk_gb,
        "order": [["dph_total", "asc"]],
        "limit": _MOST_OFFERS,
    }


def serves(offer: Offer, kind: GpuWant | None, disk_gb: float) -> bool:
    """Whether an offer has the wanted cards and disk. Without a `kind`, any card that can train will do."""
    if offer.disk_gb is not None and offer.disk_gb < disk_gb:
        return False
    if kind is None:
        return offer.gpu_bytes >= LEAST_GPU_BYTES and offer.gpus in {1, 2}
    return offer.gpus == kind.count and is_card(kind.name, offer.gpu)


def _offer(row: Mapping[str, Any], wants: Wants) -> Offer | None:
    """None for a row without an id, a card or a price.

    Fields as in the answer of `POST /api/v0/bundles/`: `dph_total` includes the requested disk (`storage_total_cost`),
    `gpu_ram` and `cpu_ram` are in MB, `inet_down` in megabits a second, `inet_down_cost` in dollars a GB.
    """
    number, gpu, gpus = _whole(row, "id"), row.get("gpu_name"), _whole(row, "num_gpus")
    total, memory = number_in(row, "dph_total"), number_in(row, "gpu_ram")
    if number is None or not isinstance(gpu, str) or not gpu or not gpus or not total or memory is None:
        return None
    if row.get("rentable") is False or row.get("rented") is True:
        return None
    bid = None
    if wants.spot:
        lowest = number_in(row, "min_bid")
        if lowest is None:
            return None
        bid = wants.bid if wants.bid is not None else math.ceil(lowest * _BID_ABOVE * 1000) / 1000
        if bid < lowest:
            return None
        total = bid + (number_in(row, "storage_total_cost") or 0.0)
    reliability = number_in(row, "reliability2")
    return Offer(
        id=str(number),
        machine=str(_whole(row, "machine_id") or f"offer {number}"),
        gpu=one_line(gpu, 40),
        gpus=gpus,
        gpu_bytes=round(memory * MB),
        per_hour=total,
        bid=bid,
        reliability=reliability if reliability is not None else number_in(row, "reliability"),
        down_mbps=number_in(row, "inet_down"),
        up_mbps=number_in(row, "inet_up"),
        per_gb_down=number_in(row, "inet_down_cost") or 0.0,
        per_gb_up=number_in(row, "inet_up_cost") or 0.0,
        disk_per_hour=number_in(row, "storage_total_cost") or 0.0,
        disk_gb=number_in(row, "disk_space"),
        ram_bytes=round(ram * MB) if (ram := number_in(row, "cpu_ram")) is not None else None,
        driver=_words(row, "driver_version"),
        where=_words(row, "geolocation") or "",
    )


def _listed(row: Mapping[str, Any]) -> Listed:
    said, meant = row.get("actual_status"), row.get("intended_status")
    number = _whole(row, "id")
    if number is None:
        raise VastError("Vast's list has a box without an ID")
    host, port = row.get("ssh_host"), _whole(row, "ssh_port")
    return Listed(
        id=str(number),
        label=row["label"] if isinstance(row.get("label"), str) else "",
        power=_power(said, meant),
        said=one_line(said, 40) if isinstance(said, str) else "not started yet",
        gpu=_words(row, "gpu_name") or "",
        gpus=_whole(row, "num_gpus") or 0,
        per_hour=number_in(row, "dph_total"),
        since=number_in(row, "start_date"),
        host=host if isinstance(host, str) and host else None,
        port=port,
    )


def _power(said: object, meant: object) -> Power:
    if meant == "stopped":
        return Power.DOWN
    match said:
        case "running":
            return Power.RUNNING
        case None | "created" | "loading" | "restarting":
            return Power.COMING
        case "exited" | "stopped" | "offline" | "frozen":
            return Power.DOWN
        case _:
            return Power.UNKNOWN


def _whole(row: Mapping[str, Any], name: str) -> int | None:
    value = number_in(row, name)
    return int(value) if value is not None and value == int(value) else None


def _words(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    return one_line(value, 60) if isinstance(value, str) and value.strip() else None

"""A service on loopback that accepts messages as apprise's `json://` sends them. It misbehaves on request."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler
from typing import Any

from support.loopback_server import serving

SECRET = "geheim-t0ken-4711"


class Manners(Enum):
    """What the service does with a message."""

    TAKES = auto()
    REFUSES = auto()
    """With status 503."""
    HANGS = auto()
    """It reads the message and never answers."""


@dataclass(slots=True)
class Receiver:
    """One service. `taken` holds the messages that it confirmed, `seen` all that reached it.

    `arrived` holds those that it did not refuse, so that someone may have read them.
    """

    port: int = 0
    manners: Manners = Manners.TAKES
    taken: list[dict[str, Any]] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    arrived: list[dict[str, Any]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Its address, with a secret in every place that allows one, and with a short timeout."""
        return f"json://user:{SECRET}@127.0.0.1:{self.port}/{SECRET}?rto=1&+X-Key={SECRET}"

    @property
    def titles(self) -> list[str]:
        return [message["title"] for message in self.taken]


@contextmanager
def receiver() -> Iterator[Receiver]:
    service = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            manners = service.manners
            service.seen.append(message)
            if manners is not Manners.REFUSES:
                service.arrived.append(message)
            if manners is Manners.HANGS:
                service.released.wait()
            if manners is Manners.TAKES:
                service.taken.append(message)
            self.send_response(503 if manners is Manners.REFUSES else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with serving(Handler, service.released.set) as address:
        service.port = int(address.rpartition(":")[2])
        yield service

"""Vast's API on loopback, with the part that a box uses for itself. It misbehaves on request.

`PYTHONPATH=tests python -m support.vast_api` serves one by hand. It prints its variables and every request.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler
from typing import Any

from support.loopback_server import serving

INSTANCE = "7000001"
KEY = "0123456789abcdef-of-this-box"
ROW: Mapping[str, Any] = {
    "id": int(INSTANCE),
    "dph_total": 0.93,
    "dph_base": 0.9,
    "storage_total_cost": 0.03,
    "is_bid": False,
    "min_bid": 0.5,
    "end_date": None,
    "actual_status": "running",
    "intended_status": "running",
}


class Mood(Enum):
    """How the server answers."""

    WELL = auto()
    BREAKS = auto()
    HTML = auto()
    HANGS = auto()
    DRIPS = auto()
    """A byte now and then, forever."""
    REDIRECTS = auto()
    BUSY = auto()
    """429, as for too many requests."""
    DEAF = auto()
    """Accepts a stop and does nothing."""
    REFUSES = auto()
    """Answers a command with `success: false`."""


@dataclass(slots=True)
class VastApi:
    """One server and the requests it received."""

    address: str
    row: dict[str, Any] = field(default_factory=lambda: dict(ROW))
    mood: Mood = Mood.WELL
    destroyed: bool = False
    asked: list[str] = field(default_factory=list)
    """Method, path and whether the key was right."""
    released: threading.Event = field(default_factory=threading.Event)
    on_order: Callable[[str], None] = lambda _: None
    """Called with the method of a command just before it is executed."""

    @property
    def is_running(self) -> bool:
        """Whether the box costs money by the hour."""
        return not self.destroyed and self.row.get("intended_status") == "running"

    def obey(self, method: str, body: object) -> bytes:
        """Execute a command and return the answer."""
        if self.mood is Mood.REFUSES:
            return b'{"success": false, "msg": "no such ask"}'
        if self.mood is not Mood.DEAF:
            self.on_order(method)
            if method == "DELETE":
                self.destroyed = True
            elif isinstance(body, dict) and body.get("state") == "stopped":
                self.row.update(intended_status="stopped", actual_status="exited")
        return b'{"success": true}'

    def environ(self, **more: str) -> dict[str, str]:
        """Return the variables of a box rented from this provider."""
        return {
            "CONTAINER_ID": INSTANCE,
            "CONTAINER_API_KEY": KEY,
            "WAN_TRAIN_VAST_URL": self.address,
            **more,
        }


@contextmanager
def vast_api() -> Iterator[VastApi]:  # noqa: C901  a server and its answers
    api = VastApi("")

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            right = self.headers.get("Authorization") == f"Bearer {KEY}"
            api.asked.append(f"{self.command} {self.path} {'key' if right else 'no key'}")
            match api.mood:
                case Mood.HANGS:
                    api.released.wait()
                case Mood.DRIPS:
                    self._drip()
                case Mood.BREAKS:
                    self._send(500, b"internal error")
                case Mood.HTML:
                    self._send(200, b"<html>maintenance</html>")
                case Mood.REDIRECTS:
                    self._send(302, b"", Location=f"{api.address}/elsewhere")
                case Mood.BUSY:
                    self._send(429, b'{"msg": "too many requests"}', **{"Retry-After": "1"})
                case _ if not right:
                    self._send(401, b'{"success": false}')
                case _ if self.path != f"/api/v0/instances/{INSTANCE}/" or api.destroyed:
                    self._send(404, b'{"success": false}')
                case _ if self.command != "GET":
                    self._send(200, api.obey(self.command, body))
                case _:
                    self._send(200, json.dumps({"instances": api.row}).encode())

        do_PUT = do_DELETE = do_GET  # noqa: N815  the names that the server calls

        def _drip(self) -> None:
            self._send(200, b" ", length=10_000)
            while not api.released.wait(0.02):
                self.wfile.write(b" ")

        def _send(self, code: int, body: bytes, *, length: int | None = None, **headers: str) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(length or len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler, api.released.set) as api.address:
        yield api


def serve_by_hand() -> None:
    with vast_api() as api:
        for name, value in api.environ().items():
            sys.stdout.write(f"export {name}={value}\n")
        told = 0
        while not api.released.wait(0.2):
            for line in api.asked[told:]:
                now = "runs" if api.is_running else "is down"
                sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}; the box {now}\n")
            told = len(api.asked)
            sys.stdout.flush()


if __name__ == "__main__":
    serve_by_hand()

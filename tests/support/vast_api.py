"""Vast's API on loopback, as far as a box asks it about itself; it misbehaves as told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

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
}


class Mood(Enum):
    """How the server answers."""

    WELL = auto()
    BREAKS = auto()
    HTML = auto()
    HANGS = auto()
    DRIPS = auto()
    """A byte now and then, for ever."""
    REDIRECTS = auto()


@dataclass(slots=True)
class VastApi:
    """One server and what it was asked."""

    address: str
    row: dict[str, Any] = field(default_factory=lambda: dict(ROW))
    mood: Mood = Mood.WELL
    asked: list[str] = field(default_factory=list)
    """Method, path and whether the key was right."""
    released: threading.Event = field(default_factory=threading.Event)

    def environ(self, **more: str) -> dict[str, str]:
        """The variables of a box that this is the landlord of."""
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
                case Mood.WELL if not right:
                    self._send(401, b'{"success": false}')
                case Mood.WELL if self.path != f"/api/v0/instances/{INSTANCE}/":
                    self._send(404, b'{"success": false}')
                case Mood.WELL:
                    self._send(200, json.dumps({"instances": api.row}).encode())

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

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # the asker hung up, which is what some tests are about

    server = Server(("127.0.0.1", 0), Handler)
    api.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        api.released.set()
        server.shutdown()
        server.server_close()
        thread.join()

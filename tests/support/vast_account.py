"""Vast's API on loopback as an account sees it: rentable offers and existing boxes. It misbehaves on request."""

from __future__ import annotations

import json
import os
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from support.loopback_server import serving
from support.vast_api import Mood
from wan_train.launch.sky_home import missing_programs

KEY = "fedcba98-of-the-account"


def path_with(folder: Path) -> str:
    """Return PATH with stand-ins for programs that a launch needs and this machine lacks. Tests here copy nothing."""
    folder.mkdir(exist_ok=True)
    for name in missing_programs():
        (folder / name).write_text("#!/bin/sh\nexit 1\n")
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def offer_row(number: int, gpu: str, gpus: int, price: float, **more: Any) -> dict[str, Any]:
    """Return an offer with the fields of Vast's answers."""
    row = {
        "id": number,
        "machine_id": number * 10,
        "gpu_name": gpu,
        "num_gpus": gpus,
        "gpu_ram": 32_607,
        "dph_total": price,
        "dph_base": price - 0.02,
        "storage_total_cost": 0.02,
        "min_bid": price / 2,
        "reliability2": 0.995,
        "inet_down": 800.0,
        "inet_up": 400.0,
        "disk_space": 500.0,
        "cpu_ram": 64_000,
        "driver_version": "570.124.06",
        "geolocation": "Sweden, SE",
        "verified": True,
        "rentable": True,
        "rented": False,
    }
    return {**row, **more}


def box_row(number: int, label: str, **more: Any) -> dict[str, Any]:
    """Return a box with the fields of Vast's list."""
    row = {
        "id": number,
        "label": label,
        "actual_status": "running",
        "intended_status": "running",
        "gpu_name": "RTX 5090",
        "num_gpus": 1,
        "dph_total": 0.5,
        "ssh_host": "127.0.0.1",
        "ssh_port": 2222,
    }
    return {**row, **more}


@dataclass(slots=True)
class Account:
    """One account and the requests it received."""

    address: str = ""
    offers: list[dict[str, Any]] = field(default_factory=list)
    boxes: list[dict[str, Any]] = field(default_factory=list)
    moods: list[Mood] = field(default_factory=list)
    """One for each coming request. Later requests get good answers."""
    survives: bool = False
    """Whether a box stays although its deletion is answered with success."""
    filters: bool = True
    """Whether searches filter. If not, every search returns every offer."""
    page: int = 25
    credit: float = 12.5
    retry_after: str = "3"
    asked: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def answer(self, method: str, path: str, body: Any) -> tuple[int, object]:
        parts = urllib.parse.urlsplit(path)
        if (method, parts.path) == ("POST", "/api/v0/bundles/"):
            return 200, {"offers": [row for row in self.offers if not self.filters or _matches(row, body)]}
        if (method, parts.path) == ("GET", "/api/v1/instances/"):
            begin = int(dict(urllib.parse.parse_qsl(parts.query)).get("after_token", "0"))
            end = begin + self.page
            more = str(end) if end < len(self.boxes) else None
            return 200, {"success": True, "instances": self.boxes[begin:end], "next_token": more}
        if (method, parts.path) == ("GET", "/api/v0/users/current/"):
            return 200, {"id": 1, "credit": self.credit}
        match = re.fullmatch(r"/api/v0/instances/(\d+)/", parts.path)
        if match and not any(row["id"] == int(match[1]) for row in self.boxes):
            return 404, {"success": False}
        if method == "PUT" and match:
            self.boxes = [
                {**row, "intended_status": body["state"], "actual_status": body["state"]}
                if row["id"] == int(match[1])
                else row
                for row in self.boxes
            ]
            return 200, {"success": True}
        if method == "DELETE" and match:
            if not self.survives:
                self.boxes = [row for row in self.boxes if row["id"] != int(match[1])]
            return 200, {"success": True}
        return 404, {"success": False}


def _matches(row: dict[str, Any], query: dict[str, Any]) -> bool:
    tests: dict[str, Callable[[Any, Any], bool]] = {
        "eq": lambda have, want: have == want,
        "in": lambda have, want: have in want,
        "gte": lambda have, want: have is not None and have >= want,
    }
    filters = {name: value for name, value in query.items() if isinstance(value, dict) and name in row}
    return all(tests[how](row[name], want) for name, value in filters.items() for how, want in value.items())


@contextmanager
def vast_account() -> Iterator[Account]:
    account = Account()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            account.asked.append(f"{self.command} {self.path.partition('?')[0]}")
            account.bodies.append(body)
            match account.moods.pop(0) if account.moods else Mood.WELL:
                case Mood.HANGS:
                    account.released.wait()
                case Mood.BREAKS:
                    self._send(500, b"internal error")
                case Mood.HTML:
                    self._send(200, b"<html>maintenance</html>")
                case Mood.REDIRECTS:
                    self._send(302, b"", Location=f"{account.address}/elsewhere")
                case Mood.BUSY:
                    self._send(429, b"{}", **{"Retry-After": account.retry_after})
                case Mood.REFUSES:
                    self._send(200, b'{"success": false, "msg": "no such box"}')
                case _ if self.headers.get("Authorization") != f"Bearer {KEY}":
                    self._send(401, b'{"success": false, "msg": "Invalid user key"}')
                case _:
                    code, answer = account.answer(self.command, self.path, body)
                    self._send(code, json.dumps(answer).encode())

        do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815  the names that the server calls

        def _send(self, code: int, body: bytes, **headers: str) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler, account.released.set) as account.address:
        yield account

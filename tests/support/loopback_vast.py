"""Vast's HTTP API on loopback. Its boxes are namespaces of this machine; it fails as configured."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import threading
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from support.loopback_server import QuietServer
from support.namespace_box import NamespaceBox
from support.vast_account import offer_row

BOOT_SECONDS = 1.0
_HANG_SECONDS = 60.0


class Mood(StrEnum):
    """What the API does instead of answering."""

    BUSY = "429"
    BREAKS = "500"
    HTML = "HTML"
    HANGS = "hangs"


@dataclass(slots=True, kw_only=True)
class Rented:
    """A box of the account, and what was billed for it. Times are seconds since 1970."""

    box: NamespaceBox
    offer: dict[str, Any]
    body: dict[str, Any]
    began: float
    ended: float | None = None
    status: str | None = "loading"
    intended: str = "running"
    fails_to_boot: bool = False

    @property
    def per_hour(self) -> float:
        price = self.body.get("price")
        return self.offer["dph_total"] if price is None else price + self.offer["storage_total_cost"]

    @property
    def label(self) -> str:
        return str(self.body.get("label"))

    def bill(self, now: float) -> float:
        return ((self.ended or now) - self.began) / 3600 * self.per_hour


@dataclass(slots=True, kw_only=True)
class Plan:
    """What is wrong with boxes to come, and how the API behaves."""

    delivers: list[str | None] = field(default_factory=list)
    """Cards of the next boxes; None delivers the rented card."""
    never_runs: int = 0
    closed_ssh: int = 0
    refused_orders: int = 0
    moods: list[Mood] = field(default_factory=list)
    """One for each of the next requests."""
    undead: int = 0
    """How many requests to end a box report success while the box stays."""
    setup_fails: int = 0
    """How many boxes fail in their set-up."""


@dataclass(slots=True, kw_only=True)
class LoopbackVast:
    """One account with its offers and its boxes. One lock guards everything, as in a database."""

    folder: Path
    rootfs: Path
    key: str = field(default_factory=lambda: f"account-{secrets.token_hex(16)}", repr=False)
    offers: list[dict[str, Any]] = field(default_factory=list)
    plan: Plan = field(default_factory=Plan)
    address: str = ""
    rented: list[Rented] = field(default_factory=list)
    """All boxes ever rented, in order."""
    leaks: list[str] = field(default_factory=list)
    """Files on destroyed boxes that held the account's key."""
    asked: list[str] = field(default_factory=list)
    ssh_keys: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    maker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "boxes"))
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def boxes(self) -> list[Rented]:
        """Boxes that the list shows."""
        return [each for each in self.rented if each.ended is None]

    def bill(self) -> float:
        return sum(each.bill(time.time()) for each in self.rented)

    def outbid(self, rented: Rented) -> None:
        """Outbid a box: it is stopped, and its offer costs more."""
        with self.lock:
            rented.offer["min_bid"] = round(rented.per_hour + 0.05, 3)
            self.stop(rented)

    def stop(self, rented: Rented) -> None:
        with self.lock:
            if rented.ended is None:
                rented.status = "exited"
                rented.box.halt()

    def lose(self, rented: Rented) -> None:
        """Remove the box, its disk and its entry in the list."""
        with self.lock:
            self._end(rented)

    def close(self) -> None:
        self.released.set()
        with self.lock:
            for each in self.boxes:
                self._end(each)
        self.maker.shutdown()

    def answer(self, method: str, path: str, body: Any, key: str) -> tuple[int, Any]:
        """Return status and JSON. A box's own key works only for that box."""
        parts = urllib.parse.urlsplit(path)
        route = parts.path.rstrip("/")
        found = re.fullmatch(r"/api/v0/instances/(\d+)", route)
        with self.lock:
            own = next((each for each in self.boxes if found and each.box.id == int(found[1])), None)
            if key != self.key and (own is None or key != own.box.key):
                return 401, {"success": False, "error": "auth_error", "msg": "Invalid user key"}
            if found:
                return self._instance(method, own, body)
            match method, route:
                case "POST", "/api/v0/bundles":
                    taken = {each.offer["id"] for each in self.boxes}
                    rows = [row for row in self.offers if row["id"] not in taken and _matches(row, body)]
                    return 200, {"offers": rows}
                case "GET", "/api/v1/instances":
                    return 200, {"success": True, "instances": [_row(each) for each in self.boxes], "next_token": None}
                case "GET", "/api/v0/ssh":
                    return 200, self.ssh_keys
                case "POST", "/api/v0/ssh":
                    text = body.get("ssh_key")
                    self.ssh_keys.append({"id": len(self.ssh_keys) + 1, "public_key": text, "key": text})
                    return 200, {"success": True}
                case "GET", "/api/v0/users/current":
                    return 200, {"id": 1, "credit": 25.0, "balance": 0}
                case "PUT", _ if order := re.fullmatch(r"/api/v0/asks/(\d+)", route):
                    return self._rent(int(order[1]), body)
                case _:
                    return 404, {"success": False, "msg": "unknown endpoint"}

    def _rent(self, offer_id: int, body: dict[str, Any]) -> tuple[int, Any]:
        offer = next((row for row in self.offers if row["id"] == offer_id), None)
        taken = any(each.offer["id"] == offer_id for each in self.boxes)
        if self.plan.refused_orders or offer is None or taken:
            self.plan.refused_orders = max(0, self.plan.refused_orders - 1)
            return 410, {"success": False, "error": "no_such_ask", "msg": "Instance type not available"}
        number = 7_000_001 + len(self.rented)
        folder = self.folder / str(number)
        folder.mkdir(parents=True)
        card = (self.plan.delivers.pop(0) if self.plan.delivers else None) or offer["gpu_name"]
        box = NamespaceBox(
            id=number,
            folder=folder,
            rootfs=self.rootfs,
            card=f"NVIDIA GeForce {card}",
            cards=offer["num_gpus"],
            disk_gb=float(body.get("disk") or 0),
            key=f"box-{secrets.token_hex(16)}",
            onstart=str(body.get("onstart") or ""),
            maker=self.maker,
            opens=not _take(self.plan, "closed_ssh"),
        )
        made = Rented(box=box, offer=offer, body=body, began=time.time(), fails_to_boot=_take(self.plan, "never_runs"))
        if _take(self.plan, "setup_fails"):
            (folder / "upper/opt").mkdir(parents=True)
            (folder / "upper/opt/setup-fails").touch()
        self.rented.append(made)
        threading.Thread(target=self._boot, args=(made,), daemon=True).start()
        return 200, {"success": True, "new_contract": number}

    def _boot(self, rented: Rented) -> None:
        time.sleep(BOOT_SECONDS)
        if rented.status != "loading" or rented.fails_to_boot:
            return
        try:
            rented.box.boot()
        except (OSError, RuntimeError):
            if rented.status == "loading":
                raise
            return  # it was destroyed meanwhile
        with self.lock:
            if rented.status != "loading":
                rented.box.halt()
                return
            rented.status = "running"
            inside = _Server(self, rented.box.inside_socket())
        threading.Thread(target=inside.serve_forever, args=(0.2,), daemon=True).start()

    def _start(self, rented: Rented) -> tuple[int, Any]:
        if rented.body.get("price") is not None and rented.per_hour < rented.offer["min_bid"]:
            return 400, {"success": False, "msg": "outbid"}
        if rented.status == "exited":
            rented.status, rented.intended = "loading", "running"
            threading.Thread(target=self._boot, args=(rented,), daemon=True).start()
        return 200, {"success": True}

    def _instance(self, method: str, rented: Rented | None, body: Any) -> tuple[int, Any]:
        if rented is None:
            return 404, {"success": False, "error": "no_such_instance", "msg": "not found"}
        match method:
            case "GET":
                return 200, {"instances": _row(rented)}
            case "DELETE":
                if not _take(self.plan, "undead"):
                    self._end(rented)
                return 200, {"success": True}
            case _:
                if body.get("state") == "stopped":
                    rented.intended = "stopped"
                    self.stop(rented)
                if body.get("state") == "running":
                    return self._start(rented)
                if "label" in body:
                    rented.body["label"] = body["label"]
                return 200, {"success": True}

    def _end(self, rented: Rented) -> None:
        rented.ended, rented.status = time.time(), "destroyed"
        rented.box.halt()
        self.leaks += [f"{rented.box.id}: {name}" for name in rented.box.files_with(self.key.encode())]
        self._keep_records(rented)
        rented.box.remove()

    def _keep_records(self, rented: Rented) -> None:
        """Copy what its runs wrote, for later checks: it would be gone with the box."""
        runs = rented.box.upper / "workspace/wan-train-runs"
        for path in (*runs.glob("*/events.jsonl"), *runs.glob("*/*/*/output.log")):
            target = self.folder / "records" / str(rented.box.id) / path.relative_to(runs)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)


def offers(count: int = 6, gpu: str = "RTX 4090") -> list[dict[str, Any]]:
    """Boxes with one card each, the first the cheapest."""
    # The line is so fast that the real models would take seconds, so that a small budget pays for a box.
    more = {"gpu_ram": 24_564, "cpu_ram": 40_000, "inet_down": 80_000.0, "inet_up": 80_000.0}
    return [offer_row(101 + number, gpu, 1, 0.30 + number / 100, **more) for number in range(count)]


@contextmanager
def loopback_vast(folder: Path, rootfs: Path) -> Iterator[LoopbackVast]:
    provider = LoopbackVast(folder=folder, rootfs=rootfs, offers=offers())
    server = _Server(provider)
    provider.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        provider.close()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(QuietServer):
    def __init__(self, provider: LoopbackVast, listening: Any = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=listening is None)
        if listening is not None:
            self.socket.close()
            self.socket = listening
        self.provider = provider


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        provider = self.server.provider
        if self.path.startswith("/hub/"):
            self._send_part()
            return
        length = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(length)
        body = json.loads(text) if text else {}
        provider.asked.append(f"{self.command} {self.path.partition('?')[0]}")
        match provider.plan.moods.pop(0) if provider.plan.moods else None:
            case Mood.BUSY:
                self._send(429, b"{}", **{"Retry-After": "1"})
            case Mood.BREAKS:
                self._send(500, b"internal error")
            case Mood.HTML:
                self._send(200, b"<html>maintenance</html>")
            case Mood.HANGS:
                provider.released.wait(_HANG_SECONDS)
                self.close_connection = True
            case None:
                key = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                code, answer = provider.answer(self.command, self.path, body, key)
                self._send(code, json.dumps(answer).encode())

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815  the names that the server calls

    def _send_part(self) -> None:
        """Send part of a model, for measuring a box's line."""
        first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups()
        self._send(206, bytes(int(last) - int(first) + 1))

    def _send(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _take(plan: Plan, name: str) -> bool:
    """Use up one of the faults still to come; return whether there was one."""
    left: int = getattr(plan, name)
    setattr(plan, name, max(0, left - 1))
    return left > 0


def _matches(row: dict[str, Any], query: dict[str, Any]) -> bool:
    tests = {
        "eq": lambda have, want: have == want,
        "in": lambda have, want: have in want,
        "gte": lambda have, want: have >= want,
        "lte": lambda have, want: have <= want,
    }
    filters = {name: value for name, value in query.items() if isinstance(value, dict) and name in row}
    return all(tests[how](row[name], want) for name, value in filters.items() for how, want in value.items())


def _row(rented: Rented) -> dict[str, Any]:
    """The fields that SkyPilot, its plugin and wan-train read."""
    offer, box = rented.offer, rented.box
    return {
        "id": box.id,
        "label": rented.label,
        "actual_status": rented.status,
        "intended_status": rented.intended,
        "cur_state": "running" if rented.status == "running" else "stopped",
        "next_state": rented.intended,
        "status_msg": "",
        "ssh_host": "127.0.0.1",
        "ssh_port": box.port or None,
        "public_ipaddr": "127.0.0.1",
        "local_ipaddrs": "127.0.0.1",
        "ports": {},
        "start_date": rented.began,
        "end_date": rented.began + 9e6,
        "extra_env": [],
        "gpu_name": offer["gpu_name"],
        "num_gpus": offer["num_gpus"],
        "dph_total": rented.per_hour,
        "is_bid": rented.body.get("price") is not None,
        "min_bid": offer["min_bid"],
        "image_uuid": rented.body.get("image"),
        "disk_space": rented.body.get("disk"),
        "machine_id": offer["machine_id"],
        "geolocation": offer["geolocation"],
    }

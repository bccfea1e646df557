"""A hub on loopback: metadata on one port, the bytes behind signed addresses on another; both can misbehave."""

from __future__ import annotations

import gzip
import hashlib
import re
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import urlsplit

from link import Link

HUB_COMMIT = "1" * 40
_CHUNK = 16 * 1024
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class How(StrEnum):
    """What goes wrong with one answer that carries bytes."""

    STATUS = "status"
    RESET = "reset"
    EARLY_END = "early end"
    STALL = "stall"
    """Nothing more comes until the hub is told to go on."""
    IGNORE_RANGE = "200 for a Range"
    GZIP = "gzip that nobody asked for"
    WRONG_BYTES = "wrong bytes"
    WRONG_LENGTH = "wrong length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One bad answer; `after` is how many bytes of the body come first."""

    how: How
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    after: int = 0


@dataclass(slots=True)
class Hub:
    """What the hub serves, how it misbehaves, and what it was asked for.

    `faults` are taken one for each GET of a file. With `redirects`, bytes come from a second host by an address that is
    signed; `rate` is bytes a second on one connection. While it `is_silent`, it tells of no file before it is told
    to go on; `retry_after` is what it tells with a status that refuses to.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    claims: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, int] = field(default_factory=dict)
    status: dict[str, list[int]] = field(default_factory=dict)
    slow: set[str] = field(default_factory=set)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    is_silent: bool = False
    head_status: dict[str, list[int]] = field(default_factory=dict)
    head_headers: dict[str, str] = field(default_factory=dict)
    retry_after: int | None = None
    redirects: bool = False
    signature: str = "signed-0"
    redirects_get: bool = False
    target: str | None = None
    rate: int | None = None
    link: Link | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    leaked: list[str] = field(default_factory=list)
    trusted: list[str] = field(default_factory=list)
    proxied: list[str] = field(default_factory=list)
    slow_began: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    servers: list[ThreadingHTTPServer] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    busy: Counter[str] = field(default_factory=Counter)
    busiest: Counter[str] = field(default_factory=Counter)

    def start(self) -> str:
        hub = self

        class Front(_Front):
            world = hub

        class Store(_Store):
            world = hub

        for handler in (Front, Store):
            server = _Server(("127.0.0.1", 0), handler)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            self.servers.append(server)
        return self.address(0)

    def address(self, number: int) -> str:
        return f"http://127.0.0.1:{self.servers[number].server_address[1]}"

    def stop(self) -> None:
        self.go_on.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def fetched(self) -> list[str]:
        return [name for verb, name in self.asked if verb == "GET"]

    def take(self, name: str) -> Fault | None:
        with self.lock:
            return self.faults[name].pop(0) if self.faults.get(name) else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    world: ClassVar[Any]
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.world  # type: ignore[no-any-return]  # each server's handler is a class of its own

    def log_message(self, *_: object) -> None:
        pass

    def plain(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def serve(self, name: str) -> None:
        """The bytes that were asked for, or what goes wrong with them."""
        with self.hub.lock:
            self.hub.busy[name] += 1
            self.hub.busiest[name] = max(self.hub.busiest[name], self.hub.busy[name])
        try:
            with suppress(BrokenPipeError, ConnectionResetError):
                self._serve(name)
        finally:
            with self.hub.lock:
                self.hub.busy[name] -= 1

    def _serve(self, name: str) -> None:
        fault = self.hub.take(name)
        if fault is not None and fault.how is How.STATUS:
            return self.plain(fault.status, fault.headers)
        content = self.hub.files[name]
        asked = None if fault is not None and fault.how is How.IGNORE_RANGE else self.headers.get("Range")
        match = _RANGE.fullmatch(asked or "")
        first = int(match[1]) if match else 0
        last = min(int(match[2]) if match and match[2] else len(content) - 1, len(content) - 1)
        if first > last:
            return self.plain(416, {"Content-Range": f"bytes */{len(content)}"})
        body, total = content[first : last + 1], len(content)
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        if self.hub.wrong.get(name) and match is None:
            self.hub.wrong[name] -= 1
            body = bytes(len(body))
        match fault.how if fault else None:
            case How.WRONG_BYTES:
                body, headers["ETag"] = bytes(len(body)), '"another"'
            case How.WRONG_LENGTH:
                body, total = body + b"more", total + 4
            case How.GZIP:
                body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
            case _:
                pass
        self.send_response(206 if match else 200)
        if match:
            headers["Content-Range"] = f"bytes {first}-{first + len(body) - 1}/{total}"
        for key, value in {**headers, "X-Repo-Commit": HUB_COMMIT, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self._send(name, body, fault)
        return None

    def _send(self, name: str, body: bytes, fault: Fault | None) -> None:
        cut = fault is not None and fault.how in {How.RESET, How.EARLY_END, How.STALL}
        slow = name in self.hub.slow
        limit = fault.after if cut and fault else 10 if slow else len(body)
        self._write(name, body[:limit])
        if slow or (fault is not None and fault.how is How.STALL):
            self.hub.slow_began.set()
            self.hub.go_on.wait(60)
        elif cut and fault is not None:
            self.close_connection = True
            if fault.how is How.RESET:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            return
        self._write(name, body[limit:])

    def _write(self, name: str, body: bytes) -> None:
        began = time.monotonic()
        for start in range(0, len(body), _CHUNK):
            chunk = body[start : start + _CHUNK]
            self.wfile.write(chunk)
            self.wfile.flush()
            with self.hub.lock:
                self.hub.sent[name] += len(chunk)
            if self.hub.link:
                self.hub.link.carry(len(chunk))
            if self.hub.rate:
                due = began + (start + len(chunk)) / self.hub.rate
                time.sleep(max(0.0, due - time.monotonic()))


class _Front(_Handler):
    """The hub itself: what a file is, and where its bytes are."""

    def do_HEAD(self) -> None:
        name = self._named()
        if name is None:
            return None
        if self.hub.is_silent:
            self.hub.go_on.wait()
        if self.hub.status.get(f"HEAD {name}"):
            later = {"Retry-After": str(self.hub.retry_after)} if self.hub.retry_after else {}
            return self.plain(self.hub.status[f"HEAD {name}"][0], later)
        if self.hub.head_status.get(name) and (status := self.hub.head_status[name].pop(0)) != 200:
            return self.plain(status, self.hub.head_headers)
        content = self.hub.files[name]
        size, etag = self.hub.claims.get(name, len(content)), f'"{hashlib.sha256(content).hexdigest()}"'
        linked = {"X-Linked-Size": str(size), "X-Linked-ETag": etag, "X-Repo-Commit": HUB_COMMIT}
        if self.hub.redirects:
            return self.plain(302, {**linked, "Location": self._target(name)})
        self.send_response(200)
        for key, value in {**linked, "ETag": etag, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        return None

    def do_GET(self) -> None:
        name = self._named()
        if name is None:
            return None
        if "Authorization" in self.headers:
            self.hub.trusted.append(name)
        if self.hub.status.get(name):
            return self.plain(self.hub.status[name].pop(0))
        if self.hub.redirects or self.hub.redirects_get:
            return self.plain(302, {"Location": self._target(name)})
        return self.serve(name)

    def _target(self, name: str) -> str:
        return f"{self.hub.target or self.hub.address(1)}/{name}?signature={self.hub.signature}"

    def _named(self) -> str | None:
        repo, found, rest = self.path.lstrip("/").partition("/resolve/")
        name = f"{repo}/{rest.partition('/')[2]}"
        if not found or name not in self.hub.files:
            self.plain(404, {"X-Error-Code": "EntryNotFound"} if found else {})
            return None
        self.hub.asked.append((self.command, name))
        return name


class _Store(_Handler):
    """The second host: gives bytes to whoever has a signed address, and should never see a token."""

    def do_GET(self) -> None:
        if "Authorization" in self.headers:
            self.hub.leaked.append(self.path)
        if self.path.startswith("http://"):  # asked as a proxy
            self.hub.proxied.append(self.path)
        parts = urlsplit(self.path)
        path, signature = parts.path.lstrip("/"), parts.query.removeprefix("signature=")
        if signature != self.hub.signature:
            return self.plain(403)
        return self.serve(path)

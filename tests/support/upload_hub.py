"""A Hugging Face hub on loopback for its own client's uploads: repositories, LFS, commits. It misbehaves on request."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from support.loopback_server import serving

WRITER, READER, STRANGER = "hf_write_me_0123456789", "hf_read_me_0123456789", "hf_of_another_0123456789"
TOKENS: Mapping[str, tuple[str, bool]] = {WRITER: ("me", True), READER: ("me", False), STRANGER: ("another", True)}
"""The owner of each token, and whether it may write."""
_MOST_PLAIN_BYTES = 100
"""Larger files go to LFS."""
_CHUNK = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One bad answer to the next request with `where` in its path."""

    where: str
    status: int = 500
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    after: int | None = None
    """Accept this many bytes of a sent file, then break the connection."""


@dataclass(slots=True)
class Repo:
    """The files of each branch by path, and the files of each commit on the main branch."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[tuple[str, list[str]]] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.branches["main"]


@dataclass(slots=True)
class UploadHub:
    """What the hub holds and was sent, and how it misbehaves. After `stall_after` bytes of a file it stops reading."""

    address: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """LFS objects by sha256."""
    refusals: list[Refusal] = field(default_factory=list)
    damages: set[str] = field(default_factory=set)
    """Paths of files for which the hub reports a wrong checksum once."""
    stall_after: int | None = None
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    sent: list[str] = field(default_factory=list)
    """sha256 of each LFS object that arrived complete."""
    asked: list[str] = field(default_factory=list)
    """Method and path of each request."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def environ(self, token: str = WRITER) -> dict[str, str]:
        """Return the client's variables. Xet is off: this hub has only the plain protocol."""
        return {"HF_ENDPOINT": self.address, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}

    def take(self, path: str) -> Refusal | None:
        with self.lock:
            for refusal in self.refusals:
                if refusal.where in path:
                    self.refusals.remove(refusal)
                    return refusal
        return None


@contextmanager
def upload_hub() -> Iterator[UploadHub]:
    hub = UploadHub()

    class Handler(_Handler):
        world = hub

    with serving(Handler, hub.released.set) as hub.address:
        yield hub


class _Handler(BaseHTTPRequestHandler):
    world: ClassVar[UploadHub]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/api/whoami-v2") and self._account() is not None:
            return self._json({"name": self._account(), "orgs": []})
        return self._refuse(Refusal(where="", status=401 if self._account() is None else 404))

    def do_HEAD(self) -> None:
        self._refuse(Refusal(where="", status=404))

    def do_PUT(self) -> None:
        """Receive the bytes of one LFS object."""
        refusal = self._note()
        if refusal is not None and refusal.after is None:
            self._body()
            return self._refuse(refusal)
        body = self._body(refusal.after if refusal is not None else None)
        if body is None:
            return None
        digest = hashlib.sha256(body).hexdigest()
        self.world.objects[digest] = body
        self.world.sent.append(digest)
        return self._json({})

    def do_DELETE(self) -> None:
        self._note()
        repo, kind, rest = self._parts()
        if kind == "branch":
            self.world.repos[repo].branches.pop(rest, None)
        self._json({})

    def do_POST(self) -> None:
        body = self._body() or b""
        refusal = self._note()
        if refusal is not None:
            return self._refuse(refusal)
        account = self._account()
        if account is None:
            return self._refuse(Refusal(where="", status=401, message="Invalid credentials in Authorization header"))
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        repo, kind, rest = self._parts()
        held = self.world.repos.get(repo)
        owner = repo.partition("/")[0]
        if held is None or (held.private and owner != account):
            return self._refuse(Refusal(where="", status=404, headers={"X-Error-Code": "RepoNotFound"}))
        if kind == "paths-info":
            return self._infos(held, parse_qs(body.decode())["paths"])
        if owner != account or not self._may_write():
            return self._refuse(Refusal(where="", status=403, message="You don't have the rights to do this"))
        match kind:
            case "branch":
                held.branches.setdefault(rest, dict(held.files))
                return self._json({})
            case "preupload":
                return self._json({"files": [self._mode(file) for file in json.loads(body)["files"]]})
            case "batch":
                return self._batch(repo, json.loads(body)["objects"])
            case "commit":
                return self._commit(repo, held, rest, body)
        return self._refuse(Refusal(where="", status=404))

    def _parts(self) -> tuple[str, str, str]:
        path = unquote(urlsplit(self.path).path)
        if path.endswith(".git/info/lfs/objects/batch"):
            return path.removesuffix(".git/info/lfs/objects/batch").lstrip("/"), "batch", ""
        owner, name, kind, rest = (*path.removeprefix("/api/models/").split("/", 3), "", "", "")[:4]
        return f"{owner}/{name}", kind, rest

    def _create(self, asked: Mapping[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.world.repos:
            return self._json({"error": "You already created this", "url": f"{self.world.address}/{repo}"}, 409)
        if asked["organization"] != self._account() or not self._may_write():
            return self._refuse(Refusal(where="", status=403, message="You don't have the rights to create a model"))
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.world.repos[repo] = Repo(private=private)
        return self._json({"url": f"{self.world.address}/{repo}"})

    @staticmethod
    def _mode(file: Mapping[str, Any]) -> Mapping[str, Any]:
        mode = "lfs" if file["size"] > _MOST_PLAIN_BYTES else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def _batch(self, repo: str, objects: list[Mapping[str, Any]]) -> None:
        told: list[Mapping[str, Any]] = []
        for each in objects:
            href = f"{self.world.address}/lfs/{repo}/{each['oid']}"
            known = each["oid"] in self.world.objects
            actions = {} if known else {"actions": {"upload": {"href": href, "header": {}}}}
            told.append({"oid": each["oid"], "size": each["size"], **actions})
        self._json({"transfer": "basic", "objects": told})

    def _commit(self, name: str, repo: Repo, branch: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.world.objects[value["oid"]]
        repo.branches[branch].update(files)
        if branch == "main":
            repo.commits.append((lines[0]["value"]["summary"], sorted(files)))
        address = f"{self.world.address}/{name}/commit/{'1' * 40}"
        self._json({"success": True, "commitOid": "1" * 40, "commitUrl": address})

    def _infos(self, repo: Repo, paths: list[str]) -> None:
        told: list[Mapping[str, Any]] = []
        for path in paths:
            content = repo.files.get(path)
            if content is None:
                continue
            if path in self.world.damages:
                self.world.damages.remove(path)
                content = bytes(len(content))
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            sha256 = hashlib.sha256(content).hexdigest()
            lfs = {"oid": sha256, "size": len(content), "pointerSize": 134}
            plain = len(content) <= _MOST_PLAIN_BYTES
            told.append(
                {"type": "file", "path": path, "oid": blob, "size": len(content), **({} if plain else {"lfs": lfs})}
            )
        self._json(told)

    def _account(self) -> str | None:
        known = TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        return known[0] if known is not None else None

    def _may_write(self) -> bool:
        return TOKENS[self.headers["Authorization"].removeprefix("Bearer ")][1]

    def _note(self) -> Refusal | None:
        path = urlsplit(self.path).path
        self.world.asked.append(f"{self.command} {path}")
        return self.world.take(path)

    def _body(self, cut: int | None = None) -> bytes | None:
        """Return the request body. None if the connection was broken after `cut` bytes, or by the client."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            return self._chunks()
        left, parts = int(self.headers.get("Content-Length") or 0), bytearray()
        stall = self.world.stall_after if self.command == "PUT" else None
        while left > 0:
            if cut is not None and len(parts) >= cut:
                self.close_connection = True
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                return None
            if stall is not None and len(parts) >= stall:
                self.world.stalled.set()
                self.world.released.wait()
            chunk = self.rfile.read(min(_CHUNK, left))
            if not chunk:
                self.close_connection = True
                return None
            parts += chunk
            left -= len(chunk)
        return bytes(parts)

    def _chunks(self) -> bytes:
        parts = bytearray()
        while size := int(self.rfile.readline(), 16):
            parts += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(parts)

    def _refuse(self, refusal: Refusal) -> None:
        headers = {**refusal.headers, **({"X-Error-Message": refusal.message} if refusal.message else {})}
        self._json({"error": refusal.message}, refusal.status, headers)

    def _json(self, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        with suppress(OSError):
            self.send_response(status)
            for key, text in {**(headers or {}), "Content-Type": "application/json"}.items():
                self.send_header(key, text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

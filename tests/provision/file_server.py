"""A folder served over HTTP on loopback that can misbehave: a package index, or a git repository."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from link import Link

from support.loopback_server import serving

_CHUNK = 64 * 1024


@dataclass(slots=True)
class FileServer:
    """Faults are by the end of a path: `status` is answered and used up, `cut` ends a body in its middle that often."""

    root: Path
    address: str = ""
    status: dict[str, list[int]] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    slow: set[str] = field(default_factory=set)
    link: Link | None = None
    sent: list[str] = field(default_factory=list)
    """Names of files that were sent whole."""
    slow_began: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)


class _Handler(BaseHTTPRequestHandler):
    files: ClassVar[Any]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        path = self.files.root / urlsplit(self.path).path.lstrip("/")
        self._head(200, path.stat().st_size) if path.is_file() else self._head(404, 0)

    def do_GET(self) -> None:
        files: FileServer = self.files
        name = urlsplit(self.path).path
        path = files.root / name.lstrip("/")
        path = path / "index.html" if path.is_dir() else path
        status = next((left.pop(0) for end, left in files.status.items() if name.endswith(end) and left), None)
        if status or not path.is_file():
            self._head(status or 404, 0)
            return
        content = path.read_bytes()
        self._head(200, len(content), "text/html" if path.suffix == ".html" else "application/octet-stream")
        half = len(content) // 2
        if any(name.endswith(end) for end in files.slow):
            self.wfile.write(content[:half])
            self.wfile.flush()
            files.slow_began.set()
            files.go_on.wait(60)
            content = content[half:]
        end = next((end for end, left in files.cut.items() if name.endswith(end) and left), None)
        if end is not None:
            files.cut[end] -= 1
            self.wfile.write(content[:half])
            self.close_connection = True
            return
        with suppress(BrokenPipeError, ConnectionResetError):  # whoever asked was killed
            for start in range(0, len(content), _CHUNK):
                chunk = content[start : start + _CHUNK]
                self.wfile.write(chunk)
                if files.link:
                    files.link.carry(len(chunk))
            files.sent.append(path.name)

    def _head(self, status: int, length: int, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()


@contextmanager
def serve(root: Path) -> Iterator[FileServer]:
    files = FileServer(root)

    class Handler(_Handler):
        pass

    Handler.files = files
    with serving(Handler, files.go_on.set) as files.address:
        yield files


def write_index(root: Path, wheels: Path) -> None:
    """A package index (PEP 503) below `root/simple` of a folder's wheels, with their metadata (PEP 658)."""
    for wheel in wheels.glob("*.whl"):
        page = root / "simple" / wheel.name.split("-")[0].replace("_", "-") / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        (root / wheel.name).write_bytes(wheel.read_bytes())
        with zipfile.ZipFile(wheel) as packed:
            head = next(name for name in packed.namelist() if name.endswith("/METADATA"))
            (root / f"{wheel.name}.metadata").write_bytes(packed.read(head))
        with page.open("a") as file:
            file.write(f'<a href="/{wheel.name}#sha256={digest}" data-core-metadata="true">{wheel.name}</a>\n')

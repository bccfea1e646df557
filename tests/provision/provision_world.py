"""A hub on loopback, a bare trainer repository and a folder of stub wheels: all that a provision asks for."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from wan_train.box.models import wanted
from wan_train.engine.tokenizer import REPO, SUBFOLDER

HUB_COMMIT = "1" * 40
PROJECT = Path(__file__).parents[2]

# The stand-in for transformers: fetches from HF_ENDPOINT into the cache's layout, and offline only reads it.
TRANSFORMERS = f"""
import os, pathlib, urllib.request
class AutoTokenizer:
    @staticmethod
    def from_pretrained(repo, subfolder):
        home = pathlib.Path(os.environ["HF_HOME"]) / "hub" / f"models--{{repo.replace('/', '--')}}"
        for name in ("tokenizer.json", "tokenizer_config.json"):
            path = home / "snapshots" / {HUB_COMMIT!r} / subfolder / name
            if os.environ.get("HF_HUB_OFFLINE") == "1":
                path.read_bytes()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            address = f"{{os.environ['HF_ENDPOINT']}}/{{repo}}/resolve/main/{{subfolder}}/{{name}}"
            path.write_bytes(urllib.request.urlopen(address).read())
"""

# A build backend inside the repository: pip's editable install runs for real and fetches nothing.
BACKEND = """
import pathlib, zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "musubi_tuner-0.1-py3-none-any.whl"
    info = "musubi_tuner-0.1.dist-info"
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as wheel:
        wheel.writestr("musubi_tuner.pth", str(pathlib.Path("src").resolve()) + "\\n")
        head = "Metadata-Version: 2.1\\nName: musubi-tuner\\nVersion: 0.1\\n"
        wheel.writestr(f"{info}/METADATA", head + "Requires-Dist: transformers==4.0\\n")
        tags = "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")
    return name
build_wheel = build_editable
"""
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "musubi-tuner"
version = "0.1"
dependencies = ["transformers==4.0"]
"""


@dataclass(slots=True)
class Hub:
    """What the hub serves, how it misbehaves, and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    claims: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, int] = field(default_factory=dict)
    status: dict[str, list[int]] = field(default_factory=dict)
    slow: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)
    slow_began: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    server: ThreadingHTTPServer | None = None

    def start(self) -> str:
        hub = self

        class Handler(_Handler):
            world = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def stop(self) -> None:
        self.go_on.set()
        assert self.server is not None
        self.server.shutdown()
        self.server.server_close()

    def fetched(self) -> list[str]:
        return [name for verb, name in self.asked if verb == "GET"]


class _Handler(BaseHTTPRequestHandler):
    world: ClassVar[Any]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub: Hub = self.world
        repo, found, rest = self.path.lstrip("/").partition("/resolve/")
        name = f"{repo}/{rest.partition('/')[2]}"
        if not found or name not in hub.files:
            return self._plain(404, {"X-Error-Code": "EntryNotFound"} if found else {})
        hub.asked.append((self.command, name))
        if body and hub.status.get(name):
            return self._plain(hub.status[name].pop(0), {})
        if hub.status.get(f"HEAD {name}"):
            return self._plain(hub.status[f"HEAD {name}"][0], {})
        content = hub.files[name]
        sent = content
        if body and hub.wrong.get(name):
            hub.wrong[name] -= 1
            sent = bytes(len(content))
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", HUB_COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(sent) - 1}/{len(sent)}")
        if name in hub.claims:
            self.send_header("X-Linked-Size", str(hub.claims[name]))
        self.send_header("Content-Length", str(len(sent) - start))
        self.end_headers()
        if not body:
            return None
        if name in hub.slow:
            self.wfile.write(sent[start : start + 10])
            self.wfile.flush()
            hub.slow_began.set()
            hub.go_on.wait(60)
            start += 10
        self.wfile.write(sent[start:])
        return None

    def _plain(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


def write_wheel(folder: Path, name: str, version: str, module: str = "") -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", f"__version__ = {version!r}\n{module}")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@dataclass(frozen=True, slots=True)
class World:
    """One box and everything around it."""

    folder: Path
    hub: Hub
    endpoint: str
    engine: Path

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    @property
    def checkout(self) -> Path:
        return self.workspace / "musubi-tuner"

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "WAN_TRAIN", "PIP_"))}
        return {
            **kept,
            "HOME": str(self.folder),
            "HF_HOME": str(self.folder / "hf"),
            "HF_ENDPOINT": self.endpoint,
            "NO_PROXY": "*",
            "CUDA_VISIBLE_DEVICES": "",  # the stand-in for torch can do nothing with a real GPU
            "PYTHONPATH": str(PROJECT / "src"),
        }

    def argv(self, *words: str) -> list[str]:
        program = [sys.executable, "-c", "from wan_train.cli.main import main; main()", "provision"]
        return [*program, "--workspace", str(self.workspace), "--engine", str(self.engine), *words]

    def provision(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*words),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def models(self) -> list[Path]:
        return [model.path(self.checkout) for model in wanted("t2v")]

    def tree(self) -> dict[str, tuple[int, int]]:
        """Every file below the workspace with size and time of change."""
        return {
            str(path.relative_to(self.workspace)): (path.lstat().st_size, path.lstat().st_mtime_ns)
            for path in self.workspace.rglob("*")
            if path.is_file() and path.suffix not in {".pyc", ".lock", ".log"}
        }


def make(folder: Path) -> World:
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    for name, version in (("torch", "2.7.0"), ("torchvision", "0.22.0"), ("protobuf", "5.0"), ("six", "1.0")):
        write_wheel(wheels, name, version)
    write_wheel(wheels, "torch", "9.9.9")
    write_wheel(wheels, "transformers", "4.0", TRANSFORMERS)
    source = folder / "source"
    (source / "src/musubi_tuner").mkdir(parents=True)
    (source / "src/musubi_tuner/wan_train_network.py").write_text("pass\n")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "backend.py").write_text(BACKEND)
    (source / ".gitignore").write_text("venv\nmodels\n")
    git(source, "init", "-q")
    git(source, "add", ".")
    git(source, "commit", "-q", "-m", "stand-in")
    commit = git(source, "rev-parse", "HEAD")
    (source / "later.txt").write_text("after the pin\n")
    git(source, "add", ".")
    git(source, "commit", "-q", "-m", "later")
    subprocess.run(["git", "clone", "-q", "--bare", str(source), str(folder / "musubi.git")], check=True)
    engine = folder / "engine.toml"
    engine.write_text(
        f"[musubi]\nrepository = {json.dumps(str(folder / 'musubi.git'))}\ncommit = '{commit}'\n"
        '[python]\nminimum = "3.10"\nmaximum = "3.13"\n'
        '[packages]\nfirst = ["torch==2.7.0", "torchvision==0.22.0"]\nextra = ["protobuf", "six"]\n'
        f"arguments = ['--no-index', '--find-links', {json.dumps(str(wheels))}]\n"
    )
    hub = Hub()
    for number, model in enumerate(wanted("both")):
        hub.files[f"{model.repo}/{model.file}"] = bytes([number + 1]) * (200_000 + number)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        hub.files[f"{REPO}/{SUBFOLDER}/{name}"] = b"{}"
    return World(folder, hub, hub.start(), engine)

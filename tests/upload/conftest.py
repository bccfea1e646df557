"""A finished run, a hub on loopback, the real rclone."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from upload_world import Place, make

from support.upload_hub import UploadHub, upload_hub


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "HF_TOKEN", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    return make(tmp_path, capsys)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    with upload_hub() as served:
        for name, value in served.environ().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # read from the environment when it was imported
        yield served


@pytest.fixture
def rclone(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real one, from beside this Python or the system."""
    beside = Path(sys.executable).with_name("rclone")
    found = beside if beside.exists() else Path(shutil.which("rclone") or "")
    assert found.is_file(), "pip install -e '.[dev]' brings it"
    monkeypatch.setenv("PATH", f"{found.parent}:/usr/bin:/bin")
    return found

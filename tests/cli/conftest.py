"""A box for commands that start nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from support.past_runs import make_box
from support.trainers import ScriptedBox
from support.vast_account import KEY, Account, offer_row, path_with, vast_account


@pytest.fixture(scope="session")
def quiet_box(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path) -> Iterator[ScriptedBox]:
    """For commands that start nothing: it has no runs before and after every test."""
    box = make_box(tmp_path_factory.mktemp("quiet"), nvml_library)
    yield box
    box.close()


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Account]:
    """An account with offers, and a laptop beside it whose current folder has two datasets."""
    with vast_account() as found:
        found.offers = [
            offer_row(101, "RTX 4090", 1, 0.42, gpu_ram=24_564),
            offer_row(102, "RTX 4090", 1, 0.35, gpu_ram=24_564),
            offer_row(103, "RTX 5090", 2, 1.30),
        ]
        for name in ("DATA", "CONFIG"):
            monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
        monkeypatch.setenv("PATH", path_with(tmp_path / "programs"))
        monkeypatch.setenv("VAST_API_KEY", KEY)
        monkeypatch.setenv("WAN_TRAIN_VAST_URL", found.address)
        monkeypatch.setenv("WAN_TRAIN_RUNS_DIR", str(tmp_path / "runs"))
        monkeypatch.chdir(tmp_path)
        for name in ("cats", "dogs"):
            (tmp_path / name).mkdir()
            for number in range(2):
                Image.new("RGB", (960, 960), (40 * number, 90, 200)).save(tmp_path / name / f"{number}.png")
                (tmp_path / name / f"{number}.txt").write_text(f"one of the {name}")
        yield found
        assert not [asked for asked in found.asked if asked.startswith("PUT")], "something was rented"

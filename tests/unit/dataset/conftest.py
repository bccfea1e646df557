from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .support import draw


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with two captioned pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    draw(folder / "a.png", (320, 320))
    draw(folder / "b.jpg", (640, 320))
    return folder


@pytest.fixture
def configured(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a dataset.toml into the test's folder and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "dataset.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write

"""Fixtures that several kinds of tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.nvml import NvmlStub, nvml_library, nvml_stub
from support.trainers import ScriptedBox

__all__ = ["nvml_library", "nvml_stub", "scripted_box"]


@pytest.fixture
def scripted_box(tmp_path: Path, nvml_stub: NvmlStub) -> Iterator[ScriptedBox]:
    """A box with the scripted trainer and two idle GPUs; no process of it outlives the test."""
    box = ScriptedBox(tmp_path / "box", nvml_stub)
    yield box
    box.close()

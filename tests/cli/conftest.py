"""Boxes that several tests share: one where nothing ever starts, one with runs that are over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.nvml import NvmlStub, StubGpu
from support.trainers import ScriptedBox


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRuns:
    """A box with two runs that finished and one whose high-noise expert failed. Tests only read them."""

    box: ScriptedBox
    finished: Path
    also_finished: Path
    failed: Path


def make_box(folder: Path, library: Path) -> ScriptedBox:
    stub = NvmlStub(library=library, state=folder / "nvml-state")
    stub.write([StubGpu(), StubGpu()])
    return ScriptedBox(folder / "box", stub)


@pytest.fixture(scope="session")
def quiet_box(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path) -> Iterator[ScriptedBox]:
    """For commands that start nothing: it has no runs before and after every test."""
    box = make_box(tmp_path_factory.mktemp("quiet"), nvml_library)
    yield box
    box.close()


@pytest.fixture(scope="session")
def past_runs(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path) -> Iterator[PastRuns]:
    box = make_box(tmp_path_factory.mktemp("past"), nvml_library)
    runs = []
    for title, fault, code in (("cat", "", 0), ("cattle", "", 0), ("dog", "die@high", 5)):
        done = ScriptedBox.run_cli(box, *box.train_words(title=title), SCRIPTED_FAULT=fault)
        assert done.returncode == code, done.stderr
        runs.append(box.run_directories()[-1])
    finished, also_finished, failed = runs
    yield PastRuns(box=box, finished=finished, also_finished=also_finished, failed=failed)
    box.close()

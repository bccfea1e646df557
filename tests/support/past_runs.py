"""Boxes with runs that have ended, made once for all tests that begin where such a run ended."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.nvml import NvmlStub, StubGpu
from support.trainers import ScriptedBox


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRuns:
    """A box with two finished runs and one with a failed high-noise expert. Tests only read them."""

    box: ScriptedBox
    finished: Path
    also_finished: Path
    failed: Path


def make_box(folder: Path, library: Path) -> ScriptedBox:
    stub = NvmlStub(library=library, state=folder / "nvml-state")
    stub.write([StubGpu(), StubGpu()])
    return ScriptedBox(folder / "box", stub)


@pytest.fixture(scope="session")
def past_runs(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path) -> PastRuns:
    """Runs that the first test process to need them makes, and that all processes share."""
    folder = shared_by_all(tmp_path_factory) / "past"
    with (folder.parent / "past.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        is_new = not (folder / "box").exists()
        folder.mkdir(exist_ok=True)
        box = make_box(folder, nvml_library)
        if is_new:
            train_three(box)
    return past_runs_of(box)


def shared_by_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all processes of one test run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def train_three(box: ScriptedBox) -> None:
    for title, fault, code in (("cat", "", 0), ("cattle", "", 0), ("dog", "die@high", 5)):
        done = box.run_cli(*box.train_words(title=title), SCRIPTED_FAULT=fault)
        assert done.returncode == code, done.stderr
    box.close()


def past_runs_of(box: ScriptedBox) -> PastRuns:
    finished, also_finished, failed = box.run_directories()
    return PastRuns(box=box, finished=finished, also_finished=also_finished, failed=failed)


class PreparedBoxes:
    """Boxes that every test may change. Their files are restored in the same place before the next test.

    Records name files by their full paths, so a copy elsewhere would be another box.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def box(self, name: str, nvml: NvmlStub, prepare: Callable[[ScriptedBox], None]) -> ScriptedBox:
        """Return the box as `prepare` left it. Nothing runs on it."""
        root, kept = self._folder / name / "box", self._folder / name / "kept"
        shutil.rmtree(root, ignore_errors=True)
        if kept.exists():
            shutil.copytree(kept, root, symlinks=True)
            return ScriptedBox(root, nvml)
        box = ScriptedBox(root, nvml)
        try:
            prepare(box)
        finally:
            box.close()
        shutil.copytree(root, kept, symlinks=True)
        return box


@pytest.fixture(scope="session")
def prepared_boxes(tmp_path_factory: pytest.TempPathFactory) -> PreparedBoxes:
    return PreparedBoxes(tmp_path_factory.mktemp("prepared"))

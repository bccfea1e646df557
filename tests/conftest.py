"""Fixtures that several kinds of tests share."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from support.nvml import NvmlStub, nvml_library, nvml_stub
from support.past_runs import past_runs, prepared_boxes
from support.trainers import ScriptedBox

# No test fails by the load of the machine.
settings.register_profile("any-load", deadline=None)
settings.load_profile("any-load")

# `nohup`, a background job or a CI runner may start the tests with signals ignored or blocked, and every program that
# a test starts would inherit that. Python sets its own handler for SIGINT only where it was not ignored.
for _number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD):
    signal.signal(_number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
signal.pthread_sigmask(signal.SIG_SETMASK, ())

# Containers often forbid Python to keep compiled files. Then every test process compiles every test anew, 6 s each.
sys.dont_write_bytecode = False

_NEW_MOUNTS = 0x20000  # CLONE_NEWNS
_PRIVATE = 0x44000  # MS_REC | MS_PRIVATE
_MEMORY = "/dev/shm"


def _files_in_memory() -> None:
    """Put temporary files into memory: records are synced, and a disk takes a third of the tests' time for that.

    The file system is seen by these processes only and goes with the last of them. It seems large, since plans of
    the tests ask for much free space. It takes root. With a TMPDIR of one's own, files of failed tests can be read.
    """
    if "TMPDIR" in os.environ or "WAN_TRAIN_TEST_MUSUBI" in os.environ or os.getuid() != 0:
        return
    libc = ctypes.CDLL(None)
    if libc.unshare(_NEW_MOUNTS) != 0 or libc.mount(None, b"/", None, _PRIVATE, None) != 0:
        return
    if libc.mount(b"tests", _MEMORY.encode(), b"tmpfs", 0, b"size=1t,mode=1777") == 0:
        os.environ["TMPDIR"] = tempfile.tempdir = _MEMORY


_files_in_memory()

PROCESSES = (
    "cli", "doctor", "e2e", "faults", "gpu", "musubi", "nvml", "process", "provision", "tty", "upload",
    "unit/rehearsal",
    "unit/base/test_process.py", "unit/gpu/test_leases.py", "unit/gpu/test_queue.py",
)  # fmt: skip
"""Whose tests start programs, terminals or servers; `make test-fast` leaves them out."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    starting = tuple(f"{root / place}{'' if place.endswith('.py') else os.sep}" for place in PROCESSES)
    for item in items:
        if str(item.path).startswith(starting):
            item.add_marker("process")
    # Those that take long have a longer timeout, and come first: nobody waits for them at the end.
    items[:] = sorted(_mixed(items), key=lambda item: item.get_closest_marker("timeout") is None)


def _mixed(items: list[pytest.Item]) -> list[pytest.Item]:
    """Whole files that mostly wait for processes, spread among those that compute: then no core is idle at the end."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    places = []
    for waits in (True, False):
        kind = [file for file in files.values() if ("process" in file[0].keywords) is waits]
        total, before = sum(map(len, kind)), 0
        for file in kind:
            places.append((before / total, file))
            before += len(file)
    return [item for _, file in sorted(places, key=lambda place: place[0]) for item in file]


__all__ = ["nvml_library", "nvml_stub", "past_runs", "prepared_boxes", "scripted_box"]


@pytest.fixture
def scripted_box(tmp_path: Path, nvml_stub: NvmlStub) -> Iterator[ScriptedBox]:
    """A box with the scripted trainer and two idle GPUs; no process of it outlives the test."""
    box = ScriptedBox(tmp_path / "box", nvml_stub)
    yield box
    box.close()

"""A box with the scripted trainer of the tests and GPUs of the NVML stub, with the patience of production."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import nvml
from support.trainers import ScriptedBox

DEFAULT_PATIENCE = {"WAN_TRAIN_POLL_SECONDS": "1.0", "WAN_TRAIN_SETTLE_SECONDS": "0.2"}
"""The box is made for quick tests; a benchmark measures the settings that users get."""


@contextmanager
def box(gpus: int) -> Iterator[ScriptedBox]:
    with tempfile.TemporaryDirectory(prefix="wan-train-bench-") as folder:
        root = Path(folder)
        stub = nvml.NvmlStub(library=nvml.build(root / "nvml"), state=root / "nvml-state")
        stub.write([nvml.StubGpu() for _ in range(gpus)])
        made = ScriptedBox(root / "box", stub)
        try:
            yield made
        finally:
            made.close()

"""Draws all cells of a preview in one process: `PYTHON driver.py JOB.json`, in the trainer's own environment.

It imports nothing from wan-train. The job names a backend file that loads and runs the trainer's models. This program
decides the order and saves the results. Each expert is loaded once: first the high-noise steps of every cell, then the
low-noise steps. Each stage is saved before the next cell begins, so a kill costs one cell. Each event is a line of
JSON in the job's `events` file. stdout and stderr belong to the trainer.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

EXPERTS = ("high", "low")
DECODE_EACH = "each"
"""Decode a cell right after its last step, with the DiT still on the GPU. Otherwise decode all cells at the end."""


def main(argv: list[str]) -> int:
    job = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    # Modules in this file's folder have common names and must not shadow the trainer's.
    here = str(Path(__file__).parent)
    sys.path[:] = [place for place in sys.path if place != here]
    with closing(Events(Path(job["events"]))) as events:
        events.add("loading", what="libraries")
        backend = _module(Path(job["backend"])).Backend(job["settings"], job["prompts"])
        Drawing(job, backend, events).run()
        events.add("done")
    return 0


class Events:
    """The event lines for the parent process. Each is on disk before the next step."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def close(self) -> None:
        self._file.close()

    def add(self, event: str, **values: object) -> None:
        self._file.write(json.dumps({"event": event, "at": time.time(), **values}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


class Drawing:
    """The cells of one job and their progress. A cell's `latents` maps each expert to its result file."""

    def __init__(self, job: dict[str, Any], backend: Any, events: Events) -> None:
        self._cells: list[dict[str, Any]] = job["cells"]
        self._decodes_each = job["decode"] == DECODE_EACH
        self._strength = float(job["strength"])
        self._backend = backend
        self._events = events
        self._seconds: dict[str, float] = {}

    def run(self) -> None:
        unfinished = [cell for cell in self._cells if not self._is_done(cell, "low")]
        if unfinished:
            self._events.add("loading", what="text")
            facts = self._backend.prepare(sorted({cell["prompt"] for cell in unfinished}))
            self._events.add("facts", **facts)
        for expert in EXPERTS:
            self._expert(expert)
        self._events.add("loading", what="decoder")
        for cell in self._cells:
            if not self._is_drawn(cell):
                self._decode(cell)

    def _expert(self, expert: str) -> None:
        # Cells without a LoRA come first, on the model as it was loaded.
        todo = sorted(
            (cell for cell in self._cells if not self._is_done(cell, expert)),
            key=lambda cell: cell["loras"].get(expert) is not None,
        )
        if expert == "high":  # cells that both experts have finished need no high-noise latents
            todo = [cell for cell in todo if not self._is_done(cell, "low")]
        if not todo:
            return
        self._events.add("loading", what=expert)
        began = time.monotonic()
        self._backend.load(expert)
        self._events.add("loaded", what=expert, seconds=time.monotonic() - began)
        for number, cell in enumerate(todo):
            if self._is_done(cell, expert):  # another cell has the same LoRA and prompt
                self._events.add("stage", key=cell["key"], expert=expert, seconds=0.0, steps=0, of=len(todo))
                continue
            self._events.add("drawing", key=cell["key"], expert=expert, number=number + 1, of=len(todo))
            began = time.monotonic()
            self._backend.attach(cell["loras"].get(expert), self._strength)
            state = self._backend.begin(cell["prompt"])
            if expert == "low":
                self._backend.restore(state, cell["latents"]["high"])
            steps = self._backend.advance(expert, cell["prompt"], state)
            _whole(Path(cell["latents"][expert]), lambda path, state=state: self._backend.save(state, path))
            seconds = time.monotonic() - began
            self._seconds[cell["key"]] = self._seconds.get(cell["key"], 0.0) + seconds
            self._events.add("stage", key=cell["key"], expert=expert, seconds=seconds, steps=steps, of=len(todo))
            if expert == "low" and self._decodes_each:
                self._decode(cell)
        self._backend.unload()

    def _decode(self, cell: dict[str, Any]) -> None:
        self._events.add("decoding", key=cell["key"])
        began = time.monotonic()
        frames = [Path(frame) for frame in cell["frames"]]
        frames[0].parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=Path(cell["latents"]["low"]).parent) as folder:
            drawn = self._backend.decode(cell["prompt"], cell["latents"]["low"], folder)
            if len(drawn) != len(frames):
                raise RuntimeError(f"{len(drawn)} frames were decoded instead of {len(frames)}")
            for source, target in zip(drawn, frames, strict=True):
                _flush(Path(source))
                os.replace(source, target)  # noqa: PTH105  Path.replace makes another Path
        seconds = time.monotonic() - began
        self._events.add("cell", key=cell["key"], seconds=self._seconds.get(cell["key"], 0.0) + seconds)

    @staticmethod
    def _is_drawn(cell: dict[str, Any]) -> bool:
        return all(Path(frame).is_file() for frame in cell["frames"])

    def _is_done(self, cell: dict[str, Any], expert: str) -> bool:
        return self._is_drawn(cell) or Path(cell["latents"][expert]).is_file()


def _whole(path: Path, write: Any) -> None:
    """Write a file under a temporary name and rename it, so that it is never incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    write(str(partial))
    _flush(partial)
    partial.replace(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("wan_train_drawing_backend", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

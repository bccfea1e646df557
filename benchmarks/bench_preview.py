"""Drawing pairs of LoRAs: our driver beside one process of the trainer for each pair. Needs the real trainer."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from figures import Figure
from musubi.drawing_job import Job, Pair, drawing, train_pairs
from musubi.trainer import VARIABLE, VERSIONS, Trainer, draw_dataset, text_of

_PAIRS = 11
_GOAL = 3.0
_PROMPT = {
    "text": "a cat on a mat",
    "negative": None,
    "width": 96,
    "height": 64,
    "frames": 1,
    "steps": 20,
    "seed": 7,
    "guidance": {"high": 4.0, "low": 3.0},
    "shift": 12.0,
    "image": None,
}
_LOAD_GB = 11.4 + 2 * 28.6
"""Text encoder and both experts, which every process reads."""
_DISK_GB_A_SECOND = 2.0
_PICTURE_SECONDS = {"H100": 4.5, "RTX 4090": 14.0}
"""Of 832x480 in 20 steps with guidance: from operations at 400 and 130 TFLOPS, not measured."""


def measure() -> Iterator[Figure]:
    place = os.environ.get(VARIABLE)
    if place is not None:
        for version in VERSIONS:
            with tempfile.TemporaryDirectory(prefix="wan-train-bench-") as folder:
                yield _measured(_trainer(Path(place), version, Path(folder)), Path(folder))
    for card, seconds in _PICTURE_SECONDS.items():
        load = _LOAD_GB / _DISK_GB_A_SECOND
        ours, others = load + _PAIRS * seconds, _PAIRS * (load + seconds)
        yield Figure(
            what=f"{_PAIRS} pictures of 832x480 on an {card}, disk {_DISK_GB_A_SECOND:g} GB/s (arithmetic)",
            measured=f"{ours:.0f} s",
            against=f"a process for each {others:.0f} s",
            ratio=others / ours,
            goal=f">= {_GOAL:g} times faster on an H100",
            met=others / ours >= _GOAL if card == "H100" else None,
        )


def _trainer(place: Path, version: str, folder: Path) -> Trainer:
    trainer = Trainer(
        version=version, home=place.absolute() / version, models=folder / "models", hf_home=folder / "huggingface"
    )
    trainer.harness("make_models.py", str(trainer.models), str(trainer.hf_home))
    return trainer


def _measured(trainer: Trainer, folder: Path) -> Figure:
    dataset = draw_dataset(folder / "dataset")
    for done in (trainer.cache_latents(dataset), trainer.cache_text(dataset)):
        assert done.returncode == 0, text_of(done)
    pairs = train_pairs(trainer, dataset, folder / "pairs", epochs=_PAIRS - 1)
    rows: dict[str, Pair] = {"base": (None, None)} | {f"e{epoch}": pair for epoch, pair in enumerate(pairs)}
    ours = _seconds(Job(drawing(trainer), folder / "driver", "t2v", [_PROMPT]), rows, "driver.py")
    others = _seconds(Job(drawing(trainer), folder / "plain", "t2v", [_PROMPT]), rows, "plain.py")
    return Figure(
        what=f"{_PAIRS} pairs drawn by musubi-tuner {trainer.version}, shrunken, on the CPU",
        measured=f"{ours:.1f} s",
        against=f"a process for each {others:.1f} s",
        ratio=others / ours,
        goal=f">= {_GOAL:g} times faster",
        met=others / ours >= _GOAL,
    )


def _seconds(job: Job, rows: dict[str, Pair], program: str) -> float:
    began = time.monotonic()
    done, events = job.run(rows, program=program)
    assert done.returncode == 0, text_of(done)
    assert sum(event["event"] == "cell" for event in events) == len(rows)
    return time.monotonic() - began

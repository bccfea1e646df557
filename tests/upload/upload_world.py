"""A finished run, and what the program and its uploader make of it."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.json_output import json_lines
from support.runs import T0, events_of, make_plan
from wan_train.base.settings import Settings
from wan_train.cli.main import run as wan_train
from wan_train.run.directory import RunDirectory
from wan_train.run.events import Journal
from wan_train.run.plan import Plan
from wan_train.run.state import JobState
from wan_train.upload.destinations import parse
from wan_train.upload.transfers import TargetState, read_states
from wan_train.upload.uploader import Uploader, store_of

DONE, RUNNING = JobState.SUCCEEDED, JobState.RUNNING
BOTH = {"cache-latents": DONE, "cache-text": DONE, "train-high": DONE, "train-low": DONE}
HIGH, LOW = "WAN2.2-HighNoise_mylora.safetensors", "WAN2.2-LowNoise_mylora.safetensors"
KEPT = "WAN2.2-HighNoise_mylora-000020.safetensors"


@dataclass(slots=True)
class HandClock:
    """A clock that only sleeping moves."""

    at: float = T0 + 100_000
    slept: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += seconds


@dataclass(slots=True, kw_only=True)
class Place:
    """A run and what the program says about it."""

    plan: Plan
    runs: Path
    settings: Settings
    capsys: pytest.CaptureFixture[str]
    clock: HandClock = field(default_factory=HandClock)
    said: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.plan.run_dir

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.path)

    def call(self, *words: str) -> tuple[int, str, str]:
        code = wan_train([*words, "--runs-dir", str(self.runs)])
        said = self.capsys.readouterr()
        return code, said.out, said.err

    def json(self, *words: str, code: int = 0) -> dict[str, Any]:
        ended, out, err = self.call(*words, "--json")
        assert ended == code, err
        return json_lines(out)[0]

    def uploader(self, *extras: str) -> Uploader:
        """An uploader whose pauses take no time."""
        return Uploader(
            run=self.run,
            extras=extras,
            stores=lambda target, lock: store_of(target, self.settings, run_id=self.run.run_id, lock=lock),
            clock=self.clock,
            sleep=self.clock.sleep,
            say=self.said.append,
        )

    def upload(self, target: str, *extras: str) -> Uploader:
        uploader = self.uploader(*extras)
        uploader.upload([parse(target)])
        return uploader

    def known(self, target: str) -> TargetState:
        return read_states(self.run).get(target, TargetState())


def lora(path: Path, value: float, size: int = 400) -> None:
    count = size // 4
    entry = {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}
    header = json.dumps({"__metadata__": {}, "weight": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", value) * count)


def make(folder: Path, capsys: pytest.CaptureFixture[str], jobs: Mapping[str, JobState] = BOTH) -> Place:
    plan = make_plan(run_dir=folder / "runs" / "20261122-141500-mylora", keep_every_epochs=20)
    plan.run_dir.mkdir(parents=True)
    run = RunDirectory(plan.run_dir)
    run.write_plan(plan)
    append(plan, events_of(plan, jobs, exit_code=0 if all(state is DONE for state in jobs.values()) else None))
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for number in range(3):
        (pictures / f"{number}.png").write_bytes(b"no real picture %d" % number)
        (pictures / f"{number}.txt").write_text(f"blkcat, a cat number {number}", encoding="utf-8")
    run.dataset_config.write_text(
        f'[general]\nresolution = [960, 960]\ncaption_extension = ".txt"\n\n[[datasets]]\n'
        f'image_directory = "{pictures}"\ncache_directory = "{pictures}/cache"\n',
        encoding="utf-8",
    )
    run.recipe.write_text("# a recipe\n", encoding="utf-8")
    for step, name, value in (("train-high", HIGH, 1.0), ("train-low", LOW, 2.0)):
        if jobs.get(step) is DONE:
            lora(plan.run_dir / name, value)
    return Place(plan=plan, runs=folder / "runs", settings=_settings(folder), capsys=capsys)


def append(plan: Plan, events: Sequence[Any]) -> None:
    journal = Journal(RunDirectory(plan.run_dir).events)
    for event in events:
        journal.append(event)
    journal.close()


def _settings(folder: Path) -> Settings:
    return Settings(workspace=folder / "workspace", runs_dir=folder / "runs", lease_dir=folder / "leases")

"""What ending early saves: steps beside those of the guide's whole training, with the rehearsal trainer."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from figures import Figure
from wan_train.base.settings import Settings
from wan_train.engine import trainer as trainers
from wan_train.recipe.terms import EngineKind
from wan_train.run.directory import RunDirectory
from wan_train.run.events import read_events
from wan_train.run.state import Attempt, fold_all

_STEP = "train-high"
_ENDS = ("99.8%", "99.65%")


def measure() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        pictures = home / "pictures"
        pictures.mkdir()
        trainers.draw_pictures(trainers.find(EngineKind.REHEARSAL, Settings()), pictures)
        whole = _trained(home / "whole", pictures)
        for until in _ENDS:
            early = _trained(home / f"early {until}", pictures, "--until", until)
            ours, guides = _attempt(early), _attempt(whole)
            distance = _distance(_lora(early), _lora(whole))
            # Seconds depend on the load of the machine, which changes between two runs; steps do not.
            yield Figure(
                what=f"one expert, the guide's 100 epochs with `--until {until}`: optimizer steps",
                measured=f"{ours.wanted_steps} in {_seconds(ours):.0f} s, "
                f"LoRA {100 * distance:.2f} % from the whole training's",
                against=f"all epochs {guides.wanted_steps} in {_seconds(guides):.0f} s",
                ratio=(ours.wanted_steps or 0) / (guides.wanted_steps or 1),
                goal="LoRA within 1 %",
                met=distance < 0.01,
            )


def _trained(runs: Path, pictures: Path, *words: str) -> RunDirectory:
    program = Path(sys.executable).parent / "wan-train"
    given = ["--engine", "rehearsal", "--experts", "high", "--dataset", str(pictures), "--resolution", "256x256"]
    env = {**os.environ, "WAN_TRAIN_LEASE_DIR": str(runs.parent / "leases"), "WAN_TRAIN_REPORT": "never"}
    argv = [str(program), "train", "--runs-dir", str(runs), *given, "--yes", "--json", *words]
    subprocess.run(argv, env=env, stdout=subprocess.DEVNULL, check=True)
    [plan] = runs.glob("*/plan.json")
    return RunDirectory(plan.parent)


def _attempt(run: RunDirectory) -> Attempt:
    attempt = fold_all(run.read_plan(), read_events(run.events)).jobs[_STEP].attempt
    assert attempt is not None, "it succeeded"
    return attempt


def _seconds(attempt: Attempt) -> float:
    """Loading, training and saving: what a rented GPU is paid for."""
    assert attempt.ended is not None, "it succeeded"
    return attempt.ended - attempt.started


def _lora(run: RunDirectory) -> Path:
    return next(run.path.glob("*.safetensors"))


def _distance(one: Path, other: Path) -> float:
    """|one - other| / |other| of the effective weights (up x down), which are small here."""
    first, second = _weights(one), _weights(other)
    return float(np.linalg.norm(first - second) / np.linalg.norm(second))


def _weights(path: Path) -> np.ndarray:
    found = load_file(path)
    names = sorted(name.removesuffix(".lora_down.weight") for name in found if name.endswith(".lora_down.weight"))
    products = [found[f"{name}.lora_up.weight"] @ found[f"{name}.lora_down.weight"] for name in names]
    joined: np.ndarray = np.concatenate([product.ravel() for product in products])
    return joined

"""A musubi-tuner of another commit says itself what it can do, once, and the answer stays with the plan."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from wan_train.base import codec
from wan_train.base.errors import NotReadyError
from wan_train.base.settings import Settings
from wan_train.engine import trainer as trainers
from wan_train.engine.capabilities import Script
from wan_train.engine.trainer import Trainer
from wan_train.recipe.terms import EngineKind

SCRIPT = """
import argparse, pathlib
pathlib.Path(__file__).with_suffix(".asked").open("a").write("x")
parser = argparse.ArgumentParser()
parser.add_argument("--sdpa", action="store_true")
parser.add_argument("--save_precision", choices=["fp16", "float"])
parser.add_argument("--network_args", nargs="*")
parser.parse_args()
"""


def checkout(root: Path, script: str = SCRIPT) -> Settings:
    (root / "src" / "musubi_tuner").mkdir(parents=True)
    for name in Script:
        (root / "src" / "musubi_tuner" / name).write_text(script)
    (root / ".git").mkdir()
    (root / ".git" / "HEAD").write_text("f" * 40 + "\n")
    return Settings(musubi_dir=root, musubi_python=Path(sys.executable))


def test_it_is_asked_once_and_remembered(tmp_path: Path) -> None:
    trainer = trainers.find(EngineKind.MUSUBI, checkout(tmp_path / "musubi"))
    assert trainer.version == "fffffff"
    assert set(trainer.capabilities.options[Script.TRAIN]) == {"--help", "--sdpa", "--save_precision", "--network_args"}
    assert trainer.capabilities.saves_float32
    again: Trainer = codec.from_json(codec.to_json(trainer), Trainer, where="here")
    assert again == trainer
    assert again.capabilities.has(Script.TRAIN, "--sdpa")
    asked = list((tmp_path / "musubi" / "src" / "musubi_tuner").glob("*.asked"))
    assert [path.read_text() for path in asked] == ["x", "x", "x"]


def test_one_that_does_not_start_is_not_ready(tmp_path: Path) -> None:
    settings = checkout(tmp_path / "musubi", "raise SystemExit('no CUDA here')")
    with pytest.raises(NotReadyError, match="no CUDA here"):
        trainers.find(EngineKind.MUSUBI, settings)

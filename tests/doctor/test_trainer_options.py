"""The options of an unknown version of the trainer: asked once, kept, and asked again when the sources change."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from support.doctor_places import facts_of, gpu
from wan_train.base.settings import Settings
from wan_train.engine.capabilities import KNOWN_COMMITS, Script
from wan_train.engine.trainer import find
from wan_train.provision.engine_file import load
from wan_train.provision.status_table import Phase, Row, StatusTable
from wan_train.provision.steps import State
from wan_train.provision.trainer_steps import TrainerOptions
from wan_train.provision.work import Work
from wan_train.recipe.terms import EngineKind

HELP = """
import argparse, pathlib
with (pathlib.Path(__file__).parent / "asked").open("a") as asked:
    asked.write("x")
parser = argparse.ArgumentParser()
parser.add_argument("--dataset_config")
parser.add_argument("--save_precision")
parser.parse_args()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A workspace with a checkout at a commit that nobody has tested."""
    made = Settings(workspace=tmp_path, musubi_python=Path(sys.executable))
    scripts = made.trainer_dir / "src/musubi_tuner"
    scripts.mkdir(parents=True)
    for script in Script:
        (scripts / script).write_text(HELP)
    (made.trainer_dir / ".git").mkdir()
    (made.trainer_dir / ".git/HEAD").write_text("a" * 40 + "\n")
    return made


def asked(settings: Settings) -> int:
    path = settings.trainer_dir / "src/musubi_tuner/asked"
    return len(path.read_text()) if path.exists() else 0


def apply(flags: TrainerOptions, folder: Path) -> None:
    table = StatusTable()
    table.add(Row(id="flags", title="Options", phase=Phase.RUNNING))
    lock = os.open(os.devnull, os.O_RDONLY)
    try:
        work = Work(step="flags", table=table, log=folder / "log", lock=lock, ended=threading.Event())
        flags.apply(work)
    finally:
        os.close(lock)


def test_options_are_asked_once_and_then_known_to_every_command(settings: Settings, tmp_path: Path) -> None:
    flags = TrainerOptions(settings=settings, engine=load("guide"), facts=facts_of(gpu(0)))
    assert flags.check().state is State.UNVERIFIED
    apply(flags, tmp_path)
    assert asked(settings) == 3
    assert flags.check().state is State.READY
    trainer = find(EngineKind.MUSUBI, settings)
    assert asked(settings) == 3
    assert trainer.capabilities.has(Script.TRAIN, "--save_precision")
    assert trainer.capabilities.saves_float32


def test_changed_sources_are_asked_again(settings: Settings, tmp_path: Path) -> None:
    flags = TrainerOptions(settings=settings, engine=load("guide"), facts=facts_of(gpu(0)))
    apply(flags, tmp_path)
    script = settings.trainer_dir / "src/musubi_tuner" / Script.TRAIN
    script.write_text(HELP.replace("--save_precision", "--another"))
    os.utime(script, (2_000_000_000, 2_000_000_000))
    assert flags.check().state is State.UNVERIFIED
    assert find(EngineKind.MUSUBI, settings).capabilities.has(Script.TRAIN, "--another")


def test_a_tested_version_is_never_asked(settings: Settings) -> None:
    (settings.trainer_dir / ".git/HEAD").write_text(next(iter(KNOWN_COMMITS)) + "\n")
    assert TrainerOptions(settings=settings, engine=load("guide"), facts=facts_of()).check().state is State.READY


def test_without_a_gpu_the_scripts_cannot_be_asked(settings: Settings) -> None:
    found = TrainerOptions(settings=settings, engine=load("guide"), facts=facts_of()).check()
    assert found.state is State.WARNING
    assert "without a GPU" in found.detail
    assert asked(settings) == 0

"""Where caches go: each kind has its own folder, whatever lies in the dataset's."""

from __future__ import annotations

import itertools
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from support.runs import make_trainer
from wan_train.base.errors import BadInputError
from wan_train.caching.homes import CacheHome, place
from wan_train.caching.survey import CacheInputs, clear, survey
from wan_train.dataset.config import load
from wan_train.dataset.model import DatasetConfig
from wan_train.dataset.scan import scan
from wan_train.dataset.snapshot import snapshot_text
from wan_train.engine import caches
from wan_train.engine.caches import CacheKind
from wan_train.engine.commands import ModelPaths
from wan_train.engine.traits import MUSUBI, REHEARSAL, TrainerTraits
from wan_train.recipe.terms import Task

MODELS = ModelPaths(vae=Path("/gone/vae"), t5=Path("/gone/t5"), dit={})


@pytest.fixture
def config(tmp_path: Path) -> DatasetConfig:
    pictures = tmp_path / "cats"
    pictures.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (64, 64)).save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text("a cat")
    path = tmp_path / "dataset.toml"
    path.write_text(
        f"[general]\nresolution = [64, 64]\ncaption_extension = '.txt'\n[[datasets]]\nimage_directory = '{pictures}'\n"
    )
    return load(path)


def folder_of(config: DatasetConfig, engine: TrainerTraits, home: CacheHome) -> Path:
    (subset,) = place(config, engine, home).config.datasets
    return subset.cache_directory


def run(config: DatasetConfig, engine: TrainerTraits, home: CacheHome) -> tuple[int, int]:
    """Cache like a run of this engine; how many files were removed, and how many items made."""
    inputs = CacheInputs(config=config.path, trainer=make_trainer(engine.kind), models=MODELS, task=Task.T2V)
    inventory = scan(place(config, engine, home).config)
    removed = made = 0
    for kind in CacheKind:
        found = survey(inventory, inputs.maker(kind))
        removed += sum(clear(found).values())
        made += sum(found.make.values())
        for one in found.folders:
            for item in one.folder.items:
                if item.key in one.decision.make and item.name is not None:
                    write_cache(one.folder.path / item.name, kind, engine.cache_element)
    return removed, made


def write_cache(path: Path, kind: CacheKind, element: str) -> None:
    """A cache as the trainer leaves it, for a picture of 64x64 whose caption is "a cat"."""
    name, shape = ("latents_1x8x8", [16, 1, 8, 8]) if kind is CacheKind.LATENTS else ("varlen_t5", [2, 8])
    numbers = bytes(4 * math.prod(shape))
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, len(numbers)]}
    header = json.dumps({f"{name}_{element}": entry, "__metadata__": {"caption1": "a cat"}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + numbers)


@pytest.mark.parametrize("order", list(itertools.product((MUSUBI, REHEARSAL), repeat=4)))
def test_in_whatever_order_no_engine_removes_anothers_caches_or_makes_its_own_twice(
    config: DatasetConfig, tmp_path: Path, order: tuple[TrainerTraits, ...]
) -> None:
    home = CacheHome(spare=tmp_path / "spare")
    seen: set[TrainerTraits] = set()
    for engine in order:
        assert run(config, engine, home) == (0, 0 if engine in seen else 4)
        seen.add(engine)


def test_the_real_trainer_keeps_the_folder_of_the_dataset(config: DatasetConfig, tmp_path: Path) -> None:
    plain, home = config.datasets[0].cache_directory, CacheHome(spare=tmp_path / "spare")
    assert folder_of(config, MUSUBI, home) == plain
    assert folder_of(config, REHEARSAL, home) == plain / "rehearsal-float32"
    run(config, MUSUBI, home)
    assert folder_of(config, MUSUBI, home) == plain
    snapshot = snapshot_text(place(config, REHEARSAL, home).config)
    assert f'cache_directory = "{plain}/rehearsal-float32"' in snapshot
    assert "cache_directory" not in snapshot_text(place(config, MUSUBI, home).config)


def _identity(path: Path) -> tuple[int, int, bytes]:
    """What tells a file that was left alone from one that was written anew; reading it changes its time of access."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, path.read_bytes()


@pytest.mark.parametrize("kind", list(CacheKind))
def test_caches_of_another_precision_keep_their_folder(config: DatasetConfig, tmp_path: Path, kind: CacheKind) -> None:
    """As a rehearsal of an earlier version, or a caching by hand with --vae_dtype, left them."""
    plain, home = config.datasets[0].cache_directory, CacheHome(spare=tmp_path / "spare")
    name = caches.text_name("a") if kind is CacheKind.TEXT else caches.picture_name("a", 64, 64)
    write_cache(plain / name, kind, "float32")
    before = _identity(plain / name)
    placed = place(config, MUSUBI, home)
    assert placed.config.datasets[0].cache_directory == plain / "musubi-bfloat16"
    assert placed.notes == (f"{plain} has caches of another precision; this run uses {plain}/musubi-bfloat16",)
    assert run(config, MUSUBI, home) == (0, 4)
    assert run(config, MUSUBI, home) == (0, 0)
    assert _identity(plain / name) == before


def test_a_folder_that_is_named_is_shared_by_datasets_and_has_a_part_for_each(
    config: DatasetConfig, tmp_path: Path
) -> None:
    home = CacheHome(spare=tmp_path / "spare", chosen=tmp_path / "all")
    own = folder_of(config, MUSUBI, home)
    assert own.parent == tmp_path / "all"
    assert own.name.startswith("cats-")
    assert folder_of(config, REHEARSAL, home) == own / "rehearsal-float32"
    other = replace(config, datasets=(replace(config.datasets[0], cache_directory=Path("/other/cache")),))
    assert folder_of(other, MUSUBI, home) not in {own, own.parent}
    with pytest.raises(BadInputError, match="reads as a pattern"):
        place(config, MUSUBI, CacheHome(spare=tmp_path, chosen=tmp_path / "[all]"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere but on a mount, see test_own_caches.py")
def test_a_folder_that_cannot_be_written_gets_its_caches_elsewhere(config: DatasetConfig, tmp_path: Path) -> None:
    plain, home = config.datasets[0].cache_directory, CacheHome(spare=tmp_path / "spare")
    plain.chmod(0o555)
    try:
        placed = place(config, MUSUBI, home)
        assert placed.config.datasets[0].cache_directory.parent == tmp_path / "spare"
        assert "caches go to" in placed.notes[0]
    finally:
        plain.chmod(0o755)

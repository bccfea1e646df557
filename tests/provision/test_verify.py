"""Models that were damaged after they were fetched keep their size; `--verify` reads them again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from provision_world import World

from wan_train.provision.hub import Hub
from wan_train.provision.models import Digests, Model, wanted
from wan_train.provision.steps import State
from wan_train.recipe.terms import Task


def damage(path: Path) -> None:
    """Overwrite the middle; size and time of change stay, as when the disk did it."""
    found = path.stat()
    with path.open("r+b") as file:
        file.seek(found.st_size // 2)
        file.write(b"damage")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def test_a_damaged_model_is_found_without_a_network_and_fetched_again(world: World) -> None:
    assert world.provision("--yes", "--models-only").returncode == 0
    vae = world.models()[0]
    whole = vae.read_bytes()
    damage(vae)
    assert world.provision("--check", "--models-only").returncode == 0  # nobody reads 80 GB without being asked
    asked, before = len(world.hub.asked), world.tree()
    looked = world.provision("--check", "--verify", "--models-only")
    assert looked.returncode == 3
    assert "is damaged" in looked.stdout
    assert str(vae) in "".join(looked.stdout.split())
    assert "--models-only --verify" in looked.stderr
    assert len(world.hub.asked) == asked
    assert world.tree() == before

    again = world.provision("--yes", "--verify", "--models-only")
    assert again.returncode == 0, again.stderr
    assert vae.read_bytes() == whole
    assert world.provision("--check", "--verify", "--models-only").returncode == 0


def test_what_cannot_be_verified_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "no-address")
    model = verified(tmp_path)
    found = model.check()
    assert found.state is State.UNVERIFIED
    assert "is not verified: no sha256 was recorded" in found.detail
    assert "HF_ENDPOINT" in found.detail


def test_a_file_is_read_once_however_often_it_is_looked_at(tmp_path: Path) -> None:
    model = verified(tmp_path)
    digests = model.digests
    assert digests is not None
    first = digests.of(model.path)
    damage(model.path)
    assert digests.of(model.path) == first
    copied = Path(shutil.copy(model.path, tmp_path / "other"))
    assert digests.of(copied) != first


def verified(folder: Path) -> Model:
    """A model that is there without a record, to be verified."""
    file, hub = wanted((Task.T2V,))[0], Hub()
    model = Model(model=file, trainer_dir=folder, hub=hub, tools=folder, digests=Digests(hub.ended))
    model.path.parent.mkdir(parents=True)
    model.path.write_bytes(b"weights and more weights")
    return model

"""What a provision takes for work, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.doctor_places import gpus_of
from wan_train.base.settings import Settings
from wan_train.gpu.model import GpuReading
from wan_train.provision.engine_file import load
from wan_train.provision.leftovers import Leftovers
from wan_train.provision.provision import Provision
from wan_train.provision.steps import State, check, has_work
from wan_train.provision.trainer_steps import accelerate_step
from wan_train.recipe.model_files import known_models
from wan_train.recipe.terms import Task

VAE = known_models()["wan21-vae"]


def test_an_accelerate_configuration_of_the_users_own_is_warned_of_and_never_written(tmp_path: Path) -> None:
    config = tmp_path / "accelerate/default_config.yaml"
    config.parent.mkdir()
    config.write_text("distributed_type: MULTI_GPU\nnum_processes: 2\n")
    step = accelerate_step({"HF_HOME": str(tmp_path)})
    assert check(step).state is State.WARNING
    assert not has_work(step, check(step))
    config.unlink()
    assert has_work(step, check(step))


@pytest.mark.parametrize("ours", [True, False])
def test_of_what_downloads_left_only_our_own_is_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, ours: bool
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    place = tmp_path / VAE.place
    left = place / (".wan-train-fetch/no-such-model/part" if ours else "vae.safetensors.bad")
    step = Leftovers(trainer_dir=tmp_path, after=()).step()
    assert check(step).state is State.READY
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(4096))
    assert check(step).state is State.WARNING
    assert str(place) in check(step).detail
    assert has_work(step, check(step)) is ours


def test_a_box_is_of_vast_by_the_variables_that_are_examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAST_CONTAINERLABEL", raising=False)
    provision = Provision(
        settings=Settings(workspace=tmp_path),
        tasks=(Task.T2V,),
        engine=load("guide"),
        environ={"VAST_CONTAINERLABEL": "C.7"},
    )
    assert "boot" in [step.id for step in provision.steps(gpus=gpus_of(GpuReading(gpus=())))]

"""What is found of downloads that nobody works at any more."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from wan_train.provision.leftovers import Leftover, Whose, find_leftovers, remove
from wan_train.recipe.model_files import known_models

VAE = known_models()["wan21-vae"]
SIZE = 64 * 1024


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "musubi-tuner"


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * SIZE)
    return path


def test_a_box_without_any_has_none(box: Path) -> None:
    assert find_leftovers(box) == ()


def test_parts_of_the_hubs_own_program_are_theirs_unless_it_is_at_work(box: Path) -> None:
    folder = box / VAE.place / ".cache/huggingface/download/split_files/vae"
    left = write(folder / f"h4sh.{'a' * 64}.incomplete")
    assert find_leftovers(box) == (Leftover(path=left, bytes=SIZE, whose=Whose.HUB),)
    with (folder / "wan_2.1_vae.safetensors.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert find_leftovers(box) == ()


def test_parts_in_the_hubs_cache_are_found(box: Path) -> None:
    cache = box.parent / "cache"
    left = write(cache / "models--google--umt5-xxl/blobs" / f"{'b' * 64}.0123abcd.incomplete")
    assert [(each.path, each.whose) for each in find_leftovers(box)] == [(left, Whose.HUB)]
    lock = cache / ".locks/models--google--umt5-xxl" / f"{'b' * 64}.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert find_leftovers(box) == ()


def test_a_part_that_can_still_be_gone_on_with_is_none(box: Path) -> None:
    staging = box / VAE.place / ".wan-train-fetch" / VAE.name
    write(staging / ("a" * 64) / "part")
    assert find_leftovers(box) == ()


def test_parts_of_whole_files_and_of_unknown_models_are_ours(box: Path) -> None:
    staging = box / VAE.place / ".wan-train-fetch"
    write(staging / VAE.name / ("a" * 64) / "part")
    write(staging / "gone-model" / ("c" * 64) / "part")
    write(VAE.path(box).with_name(f"{VAE.path(box).name}.verified"))
    found = find_leftovers(box)
    assert {each.path for each in found} == {staging / VAE.name, staging / "gone-model"}
    assert {each.whose for each in found} == {Whose.OURS}
    for each in found:
        remove(each.path)
    assert find_leftovers(box) == ()


def test_files_moved_aside_are_the_users(box: Path) -> None:
    bad = write(VAE.path(box).with_name(f"{VAE.path(box).name}.bad"))
    (found,) = find_leftovers(box)
    assert (found.path, found.whose) == (bad, Whose.USER)
    remove(found.path)
    assert not bad.exists()

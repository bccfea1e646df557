"""What a run's steps may do with its caches: alone, beside another run, and when somebody changes them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from support.runs import make_trainer
from wan_train.caching.locks import CacheLock
from wan_train.caching.manager import CacheManager, CachingStep, Disturbed, Finding, Refused, UpToDate
from wan_train.caching.survey import CacheInputs
from wan_train.engine.caches import CacheKind
from wan_train.engine.commands import ModelPaths
from wan_train.recipe.terms import EngineKind, Task

LATENTS, TEXT, TRAIN = "cache-latents", "cache-text", "train-high"


@dataclass
class FakeClock:
    seconds: float = 0.0

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds


@dataclass
class Machine:
    """Two captioned pictures, and runs that cache and train them."""

    root: Path
    clock: FakeClock

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def manager(self, name: str, *, size: int = 64, source: str = "") -> CacheManager:
        source = source or f"image_directory = '{self.root}'"
        home = self.root / name
        home.mkdir()
        config = home / "dataset.toml"
        config.write_text(
            f"[general]\nresolution = [{size}, {size}]\ncaption_extension = '.txt'\n[[datasets]]\n"
            f"{source}\ncache_directory = '{self.cache}'\n"
        )
        inputs = CacheInputs(
            config=config,
            trainer=make_trainer(EngineKind.MUSUBI),
            models=ModelPaths(vae=Path("/gone/vae"), t5=self.root / "t5.pth", dit={}),
            task=Task.T2V,
        )
        steps = [
            CachingStep(id=LATENTS, kind=CacheKind.LATENTS, record=home / LATENTS / "caches.json"),
            CachingStep(id=TEXT, kind=CacheKind.TEXT, record=home / TEXT / "caches.json"),
        ]
        lock = CacheLock(self.root / "leases", name, [self.cache])
        return CacheManager(inputs=inputs, steps=steps, clock=self.clock, lock=lock)

    def look(self, manager: CacheManager, *due: str, running: tuple[str, ...] = ()) -> list[Finding]:
        """Looks until no look is under way."""
        found = list(manager.look(due, running))
        while manager.is_looking:
            found += manager.look(due, running)
        return found

    def cache_all(self, manager: CacheManager, size: int = 64) -> None:
        """What a caching step makes, as the real trainer leaves it."""
        self.look(manager, LATENTS, TEXT)
        for step in (LATENTS, TEXT):
            assert manager.may_launch(step)
            manager.clear(step)
        for name in ("a", "b"):
            write(self.cache / f"{name}_{size:04d}x{size:04d}_wan.safetensors", "latents", [16, 1, 8, 8], name)
            write(self.cache / f"{name}_wan_te.safetensors", "varlen_t5", [2, 8], name)
        for step in (LATENTS, TEXT):
            assert manager.conclude(step) is None
            manager.over(step)


def made_again(machine: Machine) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """How many latent and text caches another run makes, by reason."""
    manager = machine.manager("again")
    machine.clock.seconds += 10
    machine.look(manager, LATENTS, TEXT)
    latents, text = manager.clear(LATENTS), manager.clear(TEXT)
    return latents.made if latents is not None else {}, text.made if text is not None else {}


def write(path: Path, tensor: str, shape: list[int], caption: str) -> None:
    name = f"latents_1x{shape[2]}x{shape[3]}_bfloat16" if tensor == "latents" else f"{tensor}_bfloat16"
    numbers = bytes(2 * math.prod(shape))
    entry = {"dtype": "BF16", "shape": shape, "data_offsets": [0, len(numbers)]}
    header = json.dumps({name: entry, "__metadata__": {"caption1": caption}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + numbers)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    for name in ("a", "b"):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    return Machine(root=tmp_path, clock=FakeClock())


def test_caches_are_made_once_and_then_shared_by_two_runs(machine: Machine) -> None:
    one, other = machine.manager("one"), machine.manager("other")
    machine.cache_all(one)
    assert machine.look(one, TRAIN) == []
    assert TRAIN not in one.blocked
    assert [type(found) for found in machine.look(other, LATENTS, TEXT)] == [UpToDate, UpToDate]
    assert machine.look(other, TRAIN) == []
    assert one.blocked == other.blocked == {}


def test_nobody_changes_what_another_run_trains_from(machine: Machine) -> None:
    one, other = machine.manager("one"), machine.manager("other")
    machine.cache_all(one)
    machine.look(one, TRAIN)
    (machine.root / "a.txt").write_text("other words")
    before = {path: path.stat().st_mtime_ns for path in machine.cache.glob("*.safetensors")}
    assert [type(found) for found in machine.look(other, LATENTS, TEXT)] == [UpToDate]
    assert other.blocked[TEXT].startswith("waiting for run one, which uses these caches: 1 caption changed.")
    assert not other.may_launch(TEXT)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    one.close()
    machine.clock.seconds += 10
    machine.look(other, TEXT)
    assert other.blocked == {}
    assert other.may_launch(TEXT)
    cleared = other.clear(TEXT)
    assert cleared is not None
    assert (cleared.make, cleared.removed) == (1, {"caption_changed": 1})


def test_while_one_run_caches_another_neither_looks_nor_trains(machine: Machine) -> None:
    one, other = machine.manager("one"), machine.manager("other")
    machine.look(one, LATENTS)
    machine.look(other, LATENTS)
    assert other.blocked == {LATENTS: "waiting for another run that caches the same dataset"}
    machine.look(other, TRAIN)
    assert other.blocked == {TRAIN: "waiting for another run that caches the same dataset"}
    machine.look(other, TEXT, running=(LATENTS,))
    assert other.blocked == {TEXT: "waiting for cache-latents, started by another supervisor of this run"}


def test_two_runs_that_wait_for_each_other_get_through(machine: Machine) -> None:
    """Both keep the caches they were about to train from; then somebody changes a cache that both need."""
    runs = [machine.manager("one"), machine.manager("other")]
    machine.cache_all(runs[0])
    machine.look(runs[1], LATENTS, TEXT)
    for run in runs:
        machine.look(run, TRAIN)
    (machine.cache / "a_wan_te.safetensors").unlink()
    machine.clock.seconds += 100
    for run in runs:
        found = machine.look(run, TRAIN)
        assert [type(each) for each in found] == [Disturbed, Disturbed]
    for _ in range(5):
        machine.clock.seconds += 10
        ready = [run for run in runs if machine.look(run, LATENTS, TEXT) is not None and run.may_launch(TEXT)]
        if ready:
            break
    assert ready


def test_caches_that_never_keep_still_are_refused(machine: Machine) -> None:
    one = machine.manager("one")
    machine.cache_all(one)
    found: list[Finding] = []
    for _ in range(4):
        (machine.cache / "strange_0064x0064_wan.safetensors").write_bytes(b"x")
        found += machine.look(one, TRAIN)
    assert [type(each) for each in found] == [*[Disturbed] * 6, Refused]
    assert one.lock.access is None


def test_an_expert_under_way_keeps_its_caches(machine: Machine) -> None:
    one, other = machine.manager("one"), machine.manager("other")
    machine.cache_all(one)
    machine.look(one, TRAIN)
    (machine.cache / "a_wan_te.safetensors").unlink()
    assert machine.look(one, "train-low", running=(TRAIN,)) == []
    assert "waiting for the other expert" in one.blocked["train-low"]
    machine.look(other, LATENTS, TEXT)
    assert "which uses these caches" in other.blocked[TEXT]


def test_a_dataset_that_went_away_is_refused_and_loses_nothing(machine: Machine) -> None:
    one = machine.manager("one")
    machine.cache_all(one)
    for path in [*machine.root.glob("*.png"), *machine.root.glob("*.txt")]:
        path.unlink()
    before = sorted(machine.cache.iterdir())
    machine.clock.seconds += 10
    (latents, text) = machine.look(one, LATENTS, TEXT)
    assert isinstance(latents, Refused)
    assert isinstance(text, Refused)
    assert latents.diagnosis.meaning == "the dataset cannot be trained now"
    assert sorted(machine.cache.iterdir()) == before
    assert one.lock.access is None


def test_a_foreign_file_is_named_and_left_alone(machine: Machine) -> None:
    machine.cache.mkdir()
    mine = machine.cache / "my_lora_wan.safetensors"
    mine.write_bytes(b"precious")
    (found,) = machine.look(machine.manager("one"), LATENTS)
    assert isinstance(found, Refused)
    assert str(mine) in found.diagnosis.advice
    assert mine.read_bytes() == b"precious"


def test_a_step_that_gets_no_gpu_does_not_keep_others_away(machine: Machine) -> None:
    one, other = machine.manager("one"), machine.manager("other")
    machine.look(one, LATENTS)
    machine.clock.seconds += 11
    machine.look(one, LATENTS)
    machine.look(other, LATENTS)
    assert other.may_launch(LATENTS)
    assert not one.may_launch(LATENTS)


def test_clips_of_one_stem_and_two_sizes_are_cached_once(machine: Machine) -> None:
    """The trainer caches both, since a clip's cache name has the size that it is trained at."""
    records = ""
    for folder, size in (("square", (64, 64)), ("wide", (128, 64))):
        clip = machine.root / folder / "a"
        clip.mkdir(parents=True)
        Image.new("RGB", size).save(clip / "0.png")
        records += json.dumps({"video_path": str(clip), "caption": "a cat"}) + "\n"
    (machine.root / "clips.jsonl").write_text(records)
    source = f"video_jsonl_file = '{machine.root}/clips.jsonl'"
    manager = machine.manager("one", source=source)
    machine.look(manager, LATENTS)
    manager.clear(LATENTS)
    for width, height in ((64, 64), (80, 48)):
        name = f"a_00000-001_{width:04d}x{height:04d}_wan.safetensors"
        write(machine.cache / name, "latents", [16, 1, height // 8, width // 8], "a cat")
    assert manager.conclude(LATENTS) is None
    manager.over(LATENTS)
    manager.close()
    (found,) = machine.look(machine.manager("again", source=source), LATENTS)
    assert isinstance(found, UpToDate)


class TestWhatIsMadeAgain:
    @pytest.fixture(autouse=True)
    def cached(self, machine: Machine) -> None:
        (machine.root / "t5.pth").write_bytes(b"weights")
        first = machine.manager("first")
        machine.cache_all(first)
        first.close()

    def test_a_picture_replaced_by_one_of_its_size(self, machine: Machine) -> None:
        picture = machine.root / "a.png"
        times = picture.stat()
        Image.new("RGB", (64, 64), (1, 2, 3)).save(picture)
        os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy with kept times leaves it
        assert made_again(machine) == ({"picture_changed": 1}, {})

    def test_nothing_for_a_touched_picture_with_the_same_bytes(self, machine: Machine) -> None:
        (machine.root / "a.png").touch()
        assert made_again(machine) == ({}, {})

    def test_all_text_for_another_model_file(self, machine: Machine) -> None:
        (machine.root / "t5.pth").write_bytes(b"other weights")
        assert made_again(machine) == ({}, {"model_changed": 2})

    @pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda _: b"", lambda data: b"x" * len(data)])
    def test_a_damaged_cache_alone(self, machine: Machine, damage: Callable[[bytes], bytes]) -> None:
        for name in ("a_0064x0064_wan.safetensors", "b_wan_te.safetensors"):
            (machine.cache / name).write_bytes(damage((machine.cache / name).read_bytes()))
        assert made_again(machine) == ({"broken": 1}, {"broken": 1})

    @pytest.mark.parametrize("damage", [None, '{"schema": 1, "entries": [1]}'])
    def test_what_cannot_be_verified_without_an_index(self, machine: Machine, damage: str | None) -> None:
        for index in machine.cache.glob(".wan-train-*.json"):
            index.unlink() if damage is None else index.write_text(damage)
        (machine.root / "a.txt").write_text("other words")
        (machine.root / "b.png").touch()  # newer than its cache: nothing says that the cache is of it
        assert made_again(machine) == ({"unproved": 1}, {"caption_changed": 1})

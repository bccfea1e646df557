"""Our decision about caches against those that the real scripts make, and what their flags do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from musubi.odd_clips import write_clip
from musubi.trainer import Dataset, Trainer, draw_dataset, draw_picture, text_of
from wan_train.caching.items import Maker
from wan_train.caching.survey import Survey, survey
from wan_train.dataset.config import load
from wan_train.dataset.model import DatasetOverrides, DatasetPreset
from wan_train.dataset.scan import scan
from wan_train.dataset.snapshot import with_overrides
from wan_train.dataset.writing import ConfigValues, compose
from wan_train.engine.caches import CacheKind
from wan_train.engine.traits import MUSUBI

FLAGS = ("--skip_existing", "--keep_cache")


def look(dataset: Dataset, kind: CacheKind, *, i2v: bool = False, resolution: tuple[int, int] | None = None) -> Survey:
    config = with_overrides(load(dataset.config), DatasetOverrides(resolution=resolution))
    inventory = scan(config)
    inventory.require()
    element = MUSUBI.cache_element
    return survey(inventory, Maker(kind=kind, model="m", trainer="t", element=element, image_to_video=i2v))


@pytest.mark.parametrize("kind", list(CacheKind))
def test_what_the_trainer_made_of_this_dataset_is_taken_over(cached: Dataset, kind: CacheKind) -> None:
    found = look(cached, kind)
    assert found.is_settled, found.need
    assert sum(len(one.decision.keep) for one in found.folders) == found.total == 4


def test_what_it_made_of_another_is_not(cached: Dataset) -> None:
    assert look(cached, CacheKind.LATENTS, resolution=(128, 128)).make == {"size_changed": 4}
    assert look(cached, CacheKind.LATENTS, i2v=True).make == {"first_frame_missing": 4}


def test_clips_are_cut_and_named_as_we_say(trainer: Trainer, tmp_path: Path) -> None:
    frames = tmp_path / "clip_1"
    frames.mkdir()
    for number in range(9):
        draw_picture(frames / f"{number:03d}.png", (150, 110), seed=number)
    lines = tmp_path / "clips.jsonl"
    lines.write_text(json.dumps({"video_path": str(frames), "caption": "moving ellipses "}) + "\n", encoding="utf-8")
    config = tmp_path / "dataset.toml"
    config.write_text(
        f"""\
[general]
resolution = [64, 64]
batch_size = 1
enable_bucket = true

[[datasets]]
video_jsonl_file = "{lines}"
cache_directory = "{tmp_path / "cache"}"
target_frames = [1, 5]
frame_extraction = "chunk"
""",
        encoding="utf-8",
    )
    dataset = Dataset(folder=frames, config=config, cache=tmp_path / "cache")
    for done in (trainer.cache_latents(dataset), trainer.cache_text(dataset)):
        assert done.returncode == 0, text_of(done)
    for kind in CacheKind:
        found = look(dataset, kind)
        assert found.is_settled, found.need
    (latents,) = look(dataset, CacheKind.LATENTS).folders
    assert len(latents.decision.keep["clip_1"].files) == 9 + 1
    (next(iter(dataset.cache.glob("*_wan.safetensors")))).unlink()
    assert look(dataset, CacheKind.LATENTS).make == {"unproved": 1}


def test_what_a_preset_writes_is_cached_as_we_say(trainer: Trainer, tmp_path: Path) -> None:
    drawn = draw_dataset(tmp_path, sizes=((150, 110), (700, 500)))
    write_clip(drawn.folder / "clip.mp4", frames=11)
    (drawn.folder / "clip.txt").write_text("moving ellipses", encoding="utf-8")
    config = tmp_path / "preset.toml"
    values = ConfigValues(preset=DatasetPreset.SEVERAL)
    config.write_text(compose([drawn.folder], values, existing=None), encoding="utf-8")
    dataset = Dataset(folder=drawn.folder, config=config, cache=drawn.folder)
    for done in (trainer.cache_latents(dataset), trainer.cache_text(dataset)):
        assert done.returncode == 0, text_of(done)
    for kind in CacheKind:
        found = look(dataset, kind)
        assert found.is_settled, found.need
        assert found.total == 4 * 2 + 3


def test_the_flags_make_what_is_missing_and_touch_nothing_else(trainer: Trainer, tmp_path: Path) -> None:
    dataset = draw_dataset(tmp_path, sizes=((64, 64), (96, 64)))
    for done in (trainer.cache_latents(dataset, *FLAGS), trainer.cache_text(dataset, *FLAGS)):
        assert done.returncode == 0, text_of(done)
    orphan = dataset.cache / "gone_0064x0064_wan.safetensors"
    orphan.write_bytes((dataset.cache / "p0_0064x0064_wan.safetensors").read_bytes())
    removed = [dataset.cache / "p1_0096x0064_wan.safetensors", dataset.cache / "p0_wan_te.safetensors"]
    for path in removed:
        path.unlink()
    before = {path: path.stat().st_mtime_ns for path in dataset.cache.iterdir()}

    for done in (trainer.cache_latents(dataset, *FLAGS), trainer.cache_text(dataset, *FLAGS)):
        assert done.returncode == 0, text_of(done)

    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert set(dataset.cache.iterdir()) == before.keys() | set(removed)
    # It would be trained, which is why wan-train removes it.
    assert look(dataset, CacheKind.LATENTS).need.reasons == {"no_item": 1}
    assert look(dataset, CacheKind.TEXT).is_settled

"""Caching split into shards that run at the same time, against one that is not split: the same files, item for item."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from musubi.trainer import CACHE_LATENTS, CACHE_TEXT, T5, VAE, Trainer, draw_picture, text_of
from wan_train.caching.items import Maker
from wan_train.caching.split import Share
from wan_train.dataset.config import load
from wan_train.dataset.model import GUIDE_READING, NEWEST_READING
from wan_train.dataset.scan import take
from wan_train.engine.caches import CacheKind, precision
from wan_train.engine.tensors import read_header
from wan_train.recipe.terms import EngineKind
from wan_train.run.caching import Survey, survey
from wan_train.run.caching_lists import lists
from wan_train.run.caching_plan import split
from wan_train.run.directory import RunDirectory

FLAGS = ("--skip_existing", "--keep_cache", "--num_workers", "2")
SCRIPTS = {CacheKind.LATENTS: (CACHE_LATENTS, "vae", VAE), CacheKind.TEXT: (CACHE_TEXT, "t5", T5)}


def write_material(home: Path) -> None:
    """Pictures and clips of many kinds: alpha, palette, two of a stem, odd names, captions of several lines."""
    pictures = home / "pictures"
    pictures.mkdir(parents=True)
    for number, size in enumerate([(96, 64), (64, 64), (60, 100), (150, 110), (90, 64)]):
        draw_picture(pictures / f"p{number}.png", size, seed=number)
    draw_picture(pictures / "a b_été.png", (80, 70), seed=7)
    draw_picture(pictures / "p1.bmp", (120, 64), seed=8)
    with Image.open(pictures / "p0.png") as picture:
        picture.convert("RGBA").save(pictures / "alpha.png")
        picture.convert("P").save(pictures / "palette.png")
    for path in [*pictures.iterdir()]:
        words = f" {path.stem}, \u201cdrawn\u201d\r\nsecond line \u2028 third\tword\n\n"
        path.with_suffix(".txt").write_bytes(words.encode())
    clips = home / "clips"
    clips.mkdir()
    for number, frames in enumerate((13, 6, 9)):
        write_clip(clips / f"clip_{number}.mp4", frames)
        (clips / f"clip_{number}.txt").write_text(f"moving, number {number}", encoding="utf-8")


def write_clip(path: Path, frames: int) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=16)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(frames):
            picture = Image.new("RGB", (96, 64), (17 * number, 90, 200 - 10 * number))
            file.mux(stream.encode(av.VideoFrame.from_image(picture)))
        file.mux(stream.encode())


def write_config(home: Path, caches: Path) -> Path:
    config = home / f"{caches.name}.toml"
    config.write_text(
        f"""\
[general]
resolution = [64, 64]
caption_extension = ".txt"
enable_bucket = true

[[datasets]]
image_directory = "{home / "pictures"}"
cache_directory = "{caches / "pictures"}"
num_repeats = 2

[[datasets]]
video_directory = "{home / "clips"}"
cache_directory = "{caches / "clips"}"
target_frames = [1, 5]
frame_extraction = "chunk"
""",
        encoding="utf-8",
    )
    return config


def contents(caches: Path) -> dict[str, Any]:
    """Every cache by name: its header and its numbers as they are."""
    found = {}
    for path in caches.rglob("*.safetensors"):
        header = read_header(path)
        found[str(path.relative_to(caches))] = (header, path.read_bytes()[header.data_begins :])
    return found


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "run").mkdir()
    return RunDirectory(tmp_path / "run")


def test_shards_make_the_caches_of_one_program(trainer: Trainer, tmp_path: Path, run: RunDirectory) -> None:
    write_material(tmp_path)
    whole, parts = write_config(tmp_path, tmp_path / "whole"), write_config(tmp_path, tmp_path / "parts")
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(cache, trainer, kind, whole) for kind in CacheKind]
        for job in jobs:
            job.result()
    reference = contents(tmp_path / "whole")
    # Nine pictures, two of them of one stem; three clips cut into frames and fives.
    assert len(reference) == (9 + 8) + (13 + 2 + 6 + 1 + 9 + 1 + 3)

    reading = GUIDE_READING if trainer.version == "d0a1930" else NEWEST_READING
    inventory = take(load(parts, reading=reading), reading=reading)
    inventory.require()

    def look(kind: CacheKind, share: Share | None = None) -> Survey:
        maker = Maker(kind=kind, model="m", trainer="t", element=precision(EngineKind.MUSUBI), image_to_video=True)
        return survey(inventory, maker, share=share)

    shares = split(
        look(CacheKind.LATENTS), look(CacheKind.TEXT), engine=EngineKind.MUSUBI, gpus=2, texts_in_ram=2, wanted=2
    )
    for kind, each in shares.items():
        for number in (1, 2):
            lists(run, f"{kind}-{number}", look(kind, Share(number=number, shares=each))).write()
    # All four at once in one folder: two text programs too.
    with ThreadPoolExecutor() as pool:
        configs = [(kind, run.shard_config(f"{kind}-{number}")) for kind in CacheKind for number in (1, 2)]
        jobs = [pool.submit(cache, trainer, kind, config) for kind, config in configs]
        for job in jobs:
            job.result()

    assert contents(tmp_path / "parts").keys() == reference.keys()
    assert contents(tmp_path / "parts") == reference
    for kind in CacheKind:
        assert look(kind).is_settled, look(kind).need
    assert trainer.ask("dump_items.py", str(parts)) == trainer.ask("dump_items.py", str(whole))


def cache(trainer: Trainer, kind: CacheKind, config: Path) -> None:
    script, option, model = SCRIPTS[kind]
    more = ["--i2v"] if kind is CacheKind.LATENTS else []
    words = ["--dataset_config", str(config), f"--{option}", str(trainer.models / model), *more, *FLAGS]
    done = trainer.script(script, *words)
    assert done.returncode == 0, text_of(done)

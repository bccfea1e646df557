"""From a dataset on disk to the shards of its caching: their costs, their work, what their programs are given."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from support.runs import make_recipe, make_trainer
from wan_train.caching.items import Maker
from wan_train.caching.split import Share, Shares
from wan_train.dataset.config import load
from wan_train.dataset.model import Inventory
from wan_train.dataset.scan import take
from wan_train.engine.caches import CacheKind
from wan_train.engine.commands import Command, ModelPaths
from wan_train.recipe.terms import EngineKind
from wan_train.run import caching
from wan_train.run.caching import Survey, survey
from wan_train.run.caching_lists import lists
from wan_train.run.caching_plan import caching_steps, costs_of, needs, plan_caching, split
from wan_train.run.caching_shards import share_of, write_shares
from wan_train.run.directory import RunDirectory
from wan_train.run.plan import Shard, Step, StepKind

MODELS = ModelPaths(vae=Path("/gone/vae"), t5=Path("/gone/t5"), dit={})


def draw(path: Path, size: tuple[int, int] = (64, 64), words: str = "words") -> None:
    Image.new("RGB", size).save(path)
    path.with_suffix(".txt").write_text(words, encoding="utf-8")


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    """Six pictures, two of them of one stem, and a list of three clips as folders of frames."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(4):
        draw(pictures / f"p{number}.png", words=f" number {number}\u2028\r\nend ")
    draw(pictures / "p0.bmp", (96, 64))
    draw(pictures / os.fsdecode(b"gr\xfcn.png"))  # a name that is not UTF-8
    records = []
    for number, frames in enumerate((9, 5, 5)):
        clip = tmp_path / "clips" / f"c{number}"
        clip.mkdir(parents=True)
        for frame in range(frames):
            Image.new("RGB", (64, 64)).save(clip / f"{frame:03d}.png")
        records.append({"video_path": str(clip), "caption": f"clip {number} ", "mine": "kept"})
    listed = tmp_path / "clips.jsonl"
    listed.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    config = tmp_path / "dataset.toml"
    config.write_text(
        f"""\
[general]
resolution = [64, 64]
caption_extension = ".txt"
enable_bucket = true
batch_size = 2
[[datasets]]
image_directory = "{pictures}"
num_repeats = 3
[[datasets]]
video_jsonl_file = "{listed}"
cache_directory = "{tmp_path / "cache"}"
target_frames = [1, 5]
"""
    )
    found = take(load(config))
    found.require()
    return found


def look(inventory: Inventory, kind: CacheKind, share: Share | None = None, *, i2v: bool = False) -> Survey:
    maker = Maker(kind=kind, model="m", trainer="t", element="bfloat16", image_to_video=i2v)
    return survey(inventory, maker, share=share)


def test_costs_are_pixels_of_all_frames_by_stem(inventory: Inventory) -> None:
    costs = {
        Path(folder).name + "/" + stem: cost
        for (folder, stem), cost in costs_of(look(inventory, CacheKind.LATENTS)).items()
    }
    one = 64 * 64
    assert costs["pictures/p1"] == one
    assert costs["pictures/p0"] > one  # two pictures
    assert costs["cache/c0"] == costs["cache/c1"] == one * 6  # one frame and five
    assert (
        costs_of(look(inventory, CacheKind.LATENTS, i2v=True))[str(inventory.subsets[0].subset.source), "p1"] == 2 * one
    )
    assert set(costs_of(look(inventory, CacheKind.TEXT)).values()) == {1}


def test_wanted_shards_are_as_many_as_items_gpus_and_ram_allow(inventory: Inventory) -> None:
    surveys = look(inventory, CacheKind.LATENTS), look(inventory, CacheKind.TEXT)

    def counts(gpus: int, texts_in_ram: int, wanted: int | None) -> dict[str, int]:
        made = split(*surveys, engine=EngineKind.MUSUBI, gpus=gpus, texts_in_ram=texts_in_ram, wanted=wanted)
        return {kind.value: shares.of for kind, shares in made.items()}

    assert counts(4, 64, 3) == {"latents": 3, "text": 3}
    assert counts(2, 64, 3) == {"latents": 2, "text": 2}
    assert counts(4, 1, 3) == {"latents": 3}
    assert counts(16, 64, 16) == {"latents": 8, "text": 8}
    assert counts(4, 64, 1) == {}
    assert counts(4, 64, None) == {}


def test_shards_together_do_what_one_would(inventory: Inventory) -> None:
    gone = inventory.subsets[0].subset.cache_directory / "gone_0064x0064_wan.safetensors"
    gone.write_bytes(b"")
    whole = look(inventory, CacheKind.LATENTS)
    shares = split(whole, look(inventory, CacheKind.TEXT), engine=EngineKind.MUSUBI, gpus=3, texts_in_ram=3, wanted=3)[
        CacheKind.LATENTS
    ]
    parts = [look(inventory, CacheKind.LATENTS, Share(number=number, shares=shares)) for number in (1, 2, 3)]
    made = [key for part in parts for one in part.folders for key in one.decision.make]
    assert sorted(made) == sorted(key for one in whole.folders for key in one.decision.make)
    # Each sees what belongs to nobody; whoever is first removes it.
    assert [part.remove for part in parts] == [{"no_item": 1}] * 3
    told = needs(whole, shares)
    assert [need.make for need in told] == [sum(part.make.values()) for part in parts]
    assert [need.items for need in told] == [part.total for part in parts]
    assert [need.remove for need in told] == [1, 0, 0]
    assert sum(need.items for need in told) == whole.need.items == 9


def test_the_program_of_a_shard_gets_its_items_and_the_same_settings(inventory: Inventory, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    shares = Shares(
        of=2,
        numbers={
            str(inventory.subsets[0].subset.cache_directory): {
                "p0": 1,
                "p1": 2,
                "p2": 1,
                "p3": 2,
                os.fsdecode(b"gr\xfcn"): 1,
            },
            str(inventory.subsets[1].subset.cache_directory): {"c0": 2, "c1": 2, "c2": 2},
        },
    )
    for number in (1, 2):
        lists(run, f"s-{number}", look(inventory, CacheKind.TEXT, Share(number=number, shares=shares))).write()
    first = tomllib.loads(run.shard_config("s-1").read_text())
    second = tomllib.loads(run.shard_config("s-2").read_text())
    assert first["general"] == second["general"]
    assert first["general"]["batch_size"] == 2
    assert first["datasets"] == [
        {
            "image_jsonl_file": str(run.shard_list("s-1", 0)),
            "num_repeats": 3,
            "cache_directory": str(inventory.subsets[0].subset.source),
        }
    ]
    assert [max(entry) for entry in second["datasets"]] == ["num_repeats", "video_jsonl_file"]
    lines = run.shard_list("s-1", 0).read_bytes()
    assert lines.isascii()
    records = [json.loads(line) for line in lines.splitlines()]
    names = [os.fsencode(Path(record["image_path"]).name) for record in records]
    assert sorted(names) == [b"gr\xfcn.png", b"p0.bmp", b"p0.png", b"p2.png"]
    (p2,) = (record for record in records if record["image_path"].endswith("p2.png"))
    # As the trainer reads a caption file: line ends unified, stripped.
    assert p2["caption"] == "number 2\u2028\nend"
    # Of a record all that the trainer needs, with the caption as it is.
    clips = [json.loads(line) for line in run.shard_list("s-2", 1).read_text().splitlines()]
    assert [set(record) for record in clips] == [{"video_path", "caption"}] * 3
    assert [record["caption"] for record in clips] == ["clip 0 ", "clip 1 ", "clip 2 "]


def test_a_shard_hashes_only_its_own_pictures(inventory: Inventory) -> None:
    shares = Shares(
        of=2, numbers={str(inventory.subsets[0].subset.cache_directory): {f"p{n}": 1 + n % 2 for n in range(4)}}
    )
    (folder, _) = look(inventory, CacheKind.LATENTS, Share(number=2, shares=shares)).folders
    hashed = {Path(path).name for path in folder.hasher.seen}
    assert {"p1.png", "p3.png"} <= hashed
    assert not {"p0.png", "p2.png"} & hashed


def test_ledgers_of_shards_add_up(inventory: Inventory) -> None:
    whole = look(inventory, CacheKind.TEXT)
    for number in (1, 2):
        mine = look(inventory, CacheKind.TEXT, Share(number=number, shares=Shares(of=2)))
        assert mine.make
        caching.clear(mine)
    for before, after in zip(whole.folders, look(inventory, CacheKind.TEXT).folders, strict=True):
        assert after.ledger.entries.keys() == {item.key for item in before.folder.items}


def test_shares_are_on_record_and_a_damaged_record_is_none(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_shares(run, {})
    assert not run.shards.exists()
    shares = Shares(of=2, numbers={"/c": {"a": 2, os.fsdecode(b"gr\xfcn"): 1}})
    write_shares(run, {StepKind.CACHE_TEXT: shares})
    step = caching_step(Shard(number=2, of=2))
    assert share_of(run, step) == Share(number=2, shares=shares)
    assert share_of(run, caching_step(None)) is None
    for damage in ('{"shares": 3}', "", '{"shares": {"cache_text": {"of": 5}}}'):
        run.shards.write_text(damage)
        assert share_of(run, step) == Share(number=2, shares=Shares(of=2))


def caching_step(shard: Shard | None) -> Step:
    return Step(id="x", kind=StepKind.CACHE_TEXT, command=Command(argv=(), cwd="/"), shard=shard)


def test_a_plan_of_one_gpu_is_whole(inventory: Inventory) -> None:
    recipe, _ = make_recipe()
    trainer = make_trainer()
    planned = plan_caching(inventory, trainer, recipe, MODELS, gpus=1, wanted=4)
    assert planned.shares == {}
    assert list(planned.by_step) == ["cache-latents", "cache-text"]
    planned = plan_caching(inventory, trainer, recipe, MODELS, gpus=2, wanted=4)
    assert list(planned.by_step) == ["cache-latents-1", "cache-latents-2", "cache-text-1", "cache-text-2"]
    assert planned.part_to_make(StepKind.CACHE_TEXT) == 1
    steps = list(caching_steps(planned, RunDirectory(Path("/r")), trainer, recipe, models=MODELS, workers=7, env={}))
    words = [step.command.argv for step in steps]
    assert [argv[argv.index("--dataset_config") + 1] for argv in words] == [
        f"/r/{step.id}/dataset.toml" for step in steps
    ]
    assert {argv[argv.index("--num_workers") + 1] for argv in words} == {"3"}
    assert all({"--skip_existing", "--keep_cache"} <= set(argv) for argv in words)

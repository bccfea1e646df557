"""What the trainer makes of everything that wan-train has an opinion on: what goes on, what is lost, what stops."""

from __future__ import annotations

import json
from pathlib import Path

from musubi.odd_clips import SIZE, write_odd_clips
from musubi.odd_pictures import CAPTIONS, Odd, art, odd_pictures
from musubi.stopping import Stage, stopping
from musubi.trainer import CACHE_LATENTS, CACHE_TEXT, TRAIN, Dataset, Trainer, TrainingRun, text_of
from wan_train.dataset.buckets import bucket_for
from wan_train.dataset.deep_scan import Depth
from wan_train.dataset.layout import Layout, layout_of
from wan_train.dataset.model import GUIDE_READING, NEWEST_READING, DatasetOverrides, ProblemKind, Severity
from wan_train.dataset.resolve import resolve_dataset
from wan_train.dataset.scan import Check, check
from wan_train.engine import caches
from wan_train.engine.capabilities import stored
from wan_train.engine.log_parser import Items, OutputParser
from wan_train.engine.tensors import read_header

TWINS = frozenset({ProblemKind.DUPLICATE, ProblemKind.NEAR_DUPLICATE})
SCRIPTS = {Stage.LATENTS: CACHE_LATENTS, Stage.TEXT: CACHE_TEXT, Stage.TRAINING: TRAIN}
GENERAL = """\
[general]
resolution = [64, 64]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true
"""


def is_newest(trainer: Trainer) -> bool:
    return stored(trainer.version).drops_uncaptioned


def looked_at(trainer: Trainer, config: Path, depth: Depth = Depth.THOROUGH) -> Check:
    reading = NEWEST_READING if is_newest(trainer) else GUIDE_READING
    return check(resolve_dataset(str(config)), reading=reading, overrides=DatasetOverrides(), depth=depth)


def shown(checked: Check) -> Layout:
    assert checked.inventory is not None
    return layout_of(checked.inventory, epochs=1, accumulation=1, image_to_video=False)


def config_of(path: Path, *folders: Path, kind: str = "image", more: str = "") -> Path:
    entries = (f'[[datasets]]\n{kind}_directory = "{one}"\ncache_directory = "{one}/cache"\n{more}' for one in folders)
    path.write_text(GENERAL + "".join(entries), encoding="utf-8")
    return path


def latents_of(ahead: Layout, *, is_clip: bool = False) -> dict[str, str]:
    """The latent caches that we expect in the first dataset: the file's name by the cache's."""
    found = {}
    for one in ahead.subsets[0].files:
        stem, ending = one.item.path.name.rpartition(".")[::2]
        assert ending
        assert one.item.width
        assert one.item.height
        assert one.crop
        for start, frames in one.cuts:
            name = (
                caches.clip_name(stem, start, frames, one.crop.bucket)
                if is_clip
                else caches.picture_name(stem, one.item.width, one.item.height)
            )
            found[name] = one.item.path.name
    return found


def trained_items(trainer: Trainer, dataset: Dataset, tmp_path: Path) -> int:
    done = trainer.train(dataset, TrainingRun(output=tmp_path / "output", epochs=1))
    assert done.returncode == 0, text_of(done)
    parser = OutputParser()
    (items,) = (event for event in parser.feed(f"{done.stdout}\n{done.stderr}\n".encode()) if isinstance(event, Items))
    return items.count


def test_what_goes_on_is_cached_and_trained_item_for_item(trainer: Trainer, tmp_path: Path) -> None:
    odd, learned, seen = (tmp_path / name for name in ("odd", "learned", "seen"))
    for folder in (odd, learned, seen):
        folder.mkdir()
    pictures = odd_pictures(newest=is_newest(trainer))
    for one in pictures:
        one.make(odd / one.name)
        (odd / f"{stem_of(one.name)}.txt").write_text(f"a drawing called {one.name}")
        for folder, picture in ((learned, one.learned_as), (seen, one.seen_as)):
            if picture is not None:
                picture.save(folder / f"{stem_of(one.name)}.png")
                (folder / f"{stem_of(one.name)}.txt").write_text("a drawing")
    for number, (stem, data, _) in enumerate(CAPTIONS, start=100):
        art(number).save(odd / f"{stem}.png")
        (odd / f"{stem}.txt").write_bytes(data)
    lost = put_what_is_lost(odd, newest=is_newest(trainer))
    config = config_of(tmp_path / "all.toml", odd, learned, seen)
    checked = looked_at(trainer, config)
    assert not checked.stops
    for one in pictures:
        said = {(p.kind, p.severity) for p in checked.problems if p.path == odd / one.name and p.kind not in TWINS}
        assert said == one.says, one.name
    losing = {p.path.name for p in checked.problems if p.severity is Severity.LOSES and p.path and p.path.parent == odd}
    assert losing - {one.name for one in pictures} == lost

    dataset = Dataset(folder=odd, config=config, cache=odd / "cache")
    for done in (trainer.cache_latents(dataset), trainer.cache_text(dataset)):
        assert done.returncode == 0, text_of(done)

    expected = latents_of(shown(checked))
    texts = {caches.text_name(stem_of(name)) for name in expected.values()}
    assert dataset.caches() == expected.keys() | texts
    for stem, _, words in CAPTIONS:
        assert read_header(odd / "cache" / caches.text_name(stem)).metadata["caption1"] == words
    is_learned_as_we_say(trainer, pictures, {name: cache for cache, name in expected.items()}, tmp_path)
    only = Dataset(folder=odd, config=config_of(tmp_path / "odd.toml", odd), cache=odd / "cache")
    assert trained_items(trainer, only, tmp_path) == len(expected) == shown(checked).subsets[0].summary.items


def stem_of(name: str) -> str:
    return name.rpartition(".")[0]


def put_what_is_lost(folder: Path, *, newest: bool) -> set[str]:
    """Files of which we say that they are not trained; some that are note only come along."""
    art(200).save(folder / "still.gif")
    art(201).save(folder / "scan.tiff")
    art(202).save(folder / "photo.Png", "PNG")
    art(203).save(folder / "same.png")
    art(204).save(folder / "same.webp", lossless=True)
    art(205).save(folder / "sizes.png")
    art(205, (60, 90)).save(folder / "sizes.webp", lossless=True)
    art(206).save(folder / "avif.avif")
    art(207).save(folder / ".hidden.png")
    (folder / "inside").mkdir()
    art(208).save(folder / "inside" / "deeper.png")
    (folder / "linked.png").symlink_to(folder / "opaque.png")
    for stem in ("still", "scan", "photo", "same", "sizes", "avif", ".hidden", "linked", "orphan"):
        (folder / f"{stem}.txt").write_text("a drawing")
    lost = {"still.gif", "scan.tiff", "photo.Png", "same.webp"}
    if newest:
        art(209).save(folder / "without.png")
        return lost | {"without.png"}
    return lost | {"avif.avif"}


def is_learned_as_we_say(trainer: Trainer, pictures: tuple[Odd, ...], cache_of: dict[str, str], home: Path) -> None:
    """A picture's latents are those of the plain picture that we say the trainer sees, and not of what people see."""
    asked = [
        (one, what, [str(home / "odd" / "cache" / cache_of[one.name]), str(home / what / "cache" / plain)])
        for one in pictures
        for what, picture in (("learned", one.learned_as), ("seen", one.seen_as))
        if picture is not None
        for plain in [caches.picture_name(stem_of(one.name), *picture.size)]
    ]
    answers = trainer.ask("compare_tensors.py", stdin=json.dumps([pair for _, _, pair in asked]))
    away = {(one.name, what): answer for (one, what, _), answer in zip(asked, answers, strict=True)}
    blurred = {"small and holed.png"} if is_newest(trainer) else set()
    assert {name: answer for (name, what), answer in away.items() if what == "learned" and answer}.keys() == blurred
    for (name, what), answer in away.items():
        if what == "seen":
            # Lanczos smears the edge of a hole, so that picture is not exactly on black: it is nearer to it by far.
            assert answer > 1.5 * away[name, "learned"], name
            assert answer > 0, name


def test_clips_that_go_on_are_cached_and_trained_cut_for_cut(trainer: Trainer, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    write_odd_clips(folder)
    config = config_of(tmp_path / "dataset.toml", folder, kind="video", more="target_frames = [5, 17]\n")
    checked = looked_at(trainer, config)
    assert not checked.stops, [problem.line for problem in checked.problems]
    lost = {p.path.name for p in checked.problems if p.severity is Severity.LOSES and p.path}
    assert lost == {"short.mp4", "picture.mp4"}
    turned = {p.path.name for p in checked.problems if p.kind is ProblemKind.ROTATED and p.path}
    assert turned == {"turned.mp4"}
    dataset = Dataset(folder=folder, config=config, cache=folder / "cache")

    for done in (trainer.cache_latents(dataset), trainer.cache_text(dataset)):
        assert done.returncode == 0, text_of(done)

    expected = latents_of(shown(checked), is_clip=True)
    assert {name for name in dataset.caches() if not name.endswith("_te.safetensors")} == expected.keys()
    # Neither the mark nor the speed changes anything of what is learned.
    bucket = bucket_for(*SIZE, resolution=(64, 64))
    pairs = [
        [str(folder / "cache" / caches.clip_name(stem, 0, frames, bucket)) for stem in ("plain", other)]
        for frames in (5, 17)
        for other in ("turned", "fast")
    ]
    assert trainer.ask("compare_tensors.py", stdin=json.dumps(pairs)) == [0.0] * len(pairs)
    assert trained_items(trainer, dataset, tmp_path) == len(expected) == shown(checked).subsets[0].summary.items


def test_what_stops_stops_where_we_say(trainer: Trainer, tmp_path: Path) -> None:
    cases = stopping(newest=is_newest(trainer))
    configs: dict[str, Path] = {}
    for number, case in enumerate(cases):
        folder = tmp_path / str(number) / "pictures"
        folder.mkdir(parents=True)
        art(1).save(folder / "good.png")
        (folder / "good.txt").write_text("a lamp")
        config = config_of(folder.parent / "dataset.toml", folder)
        config.write_text(case.spoil(folder, config.read_text()))
        configs[case.name] = config
        checked = looked_at(trainer, config, Depth.THOROUGH if case.is_deep else Depth.QUICK)
        said = {problem.kind for problem in checked.problems if problem.severity is Severity.STOPS}
        assert said == ({case.kind} if case.kind else set()), (case.name, [p.line for p in checked.problems])

    left = {case.name: case for case in cases}
    wrong = []
    for stage, script in SCRIPTS.items():
        ends = trainer.each(script, [arguments_for(trainer, script, configs[name]) for name in left])
        for case, (code, said) in zip(list(left.values()), ends, strict=True):
            if (code != 0) != (case.stage == stage):
                wrong.append((case.name, stage, code, said[-300:]))
            if code != 0 or case.stage == stage:
                del left[case.name]
    assert wrong == []
    assert [case.name for case in left.values()] == [case.name for case in cases if case.stage is None]


def arguments_for(trainer: Trainer, script: str, config: Path) -> list[str]:
    dataset = Dataset(folder=config.parent, config=config, cache=config.parent)
    return trainer.arguments(script, dataset, TrainingRun(output=config.parent / "output", epochs=1))

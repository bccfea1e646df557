from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from wan_train.dataset.layout import Layout, layout_of
from wan_train.dataset.model import FrameExtraction, Inventory, Item, MediaKind, SubsetInventory, VideoSettings
from wan_train.dataset.scan import scan

from .support import config_for, draw


def item(name: str, size: tuple[int, int] | None, frames: int | None = None) -> Item:
    width, height = size or (None, None)
    return Item(
        path=Path("/set") / name,
        caption_path=Path("/set/x.txt"),
        caption_characters=9,
        width=width,
        height=height,
        frames=frames,
    )


def ahead(inventory: Inventory, *, epochs: int = 10, accumulation: int = 1) -> Layout:
    return layout_of(inventory, epochs=epochs, accumulation=accumulation, image_to_video=False)


def with_items(inventory: Inventory, *items: Item, video: VideoSettings | None = None) -> Inventory:
    (found,) = inventory.subsets
    kind = MediaKind.IMAGE if video is None else MediaKind.VIDEO
    subset = replace(found.subset, video=video, kind=kind)
    return replace(inventory, subsets=(SubsetInventory(subset=subset, items=items),))


def test_pictures_are_grouped_by_trained_size_the_fullest_first(pictures: Path) -> None:
    draw(pictures / "c.png", (100, 100))
    (found,) = ahead(scan(config_for(pictures))).subsets
    assert [(size.pixels, [one.item.path.name for one in size.files]) for size in found.sizes] == [
        ((320, 320), ["a.png", "c.png"]),
        ((448, 224), ["b.jpg"]),
    ]
    assert [one.item.path.name for one in found.enlarged] == ["c.png"]
    assert found.sizes[0].largest_scale == 3.2


def test_every_item_is_in_one_size(pictures: Path) -> None:
    inventory = with_items(
        scan(config_for(pictures)), item("a.png", (300, 300)), item("b.png", None), item("a.jpg", (300, 300))
    )
    (found,) = ahead(inventory).subsets
    assert sum(len(size.files) for size in found.sizes) == 3
    # One of unknown size, and one whose cache is another's.
    assert [(size.pixels, len(size.files)) for size in found.sizes] == [((320, 320), 1), (None, 2)]


def test_what_loses_a_tenth_is_named_the_worst_first(pictures: Path) -> None:
    items = [item("fits.png", (320, 320)), item("long.png", (3000, 300)), item("longer.png", (9000, 300))]
    (found,) = ahead(with_items(scan(config_for(pictures)), *items)).subsets
    assert [one.item.path.name for one in found.cropped] == ["longer.png", "long.png"]


def test_steps_are_rounded_up_in_each_epoch_as_the_trainer_does(pictures: Path) -> None:
    config = config_for(pictures, "num_repeats = 3\nbatch_size = 2")
    found = ahead(scan(config), epochs=10, accumulation=3)
    # Two sizes of one picture each: 2 batches a size.
    assert found.summary.batches_per_epoch == 4
    assert found.steps_per_epoch == 2
    assert found.steps == 20


def test_clips_of_a_video_are_listed_and_an_unknown_length_leaves_the_steps_open(pictures: Path) -> None:
    video = VideoSettings(
        target_frames=(1, 25),
        frame_extraction=FrameExtraction.HEAD,
        frame_stride=1,
        frame_sample=1,
        max_frames=129,
        source_fps=None,
    )
    inventory = scan(config_for(pictures))
    known, short = item("a.mp4", (640, 320), 30), item("b.mp4", (640, 320), 10)
    found = ahead(with_items(inventory, known, short, video=video))
    assert [one.cuts for one in found.subsets[0].files] == [((0, 1), (0, 25)), ((0, 1),)]
    assert found.steps == 30
    assert ahead(with_items(inventory, known, item("c.mp4", None), video=video)).steps is None

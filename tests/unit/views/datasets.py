"""Datasets without files, for what is shown of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from wan_train.dataset.model import (
    GUIDE_READING,
    DatasetConfig,
    FrameExtraction,
    Inventory,
    Item,
    MediaKind,
    Problem,
    ProblemKind,
    Severity,
    Subset,
    SubsetInventory,
    VideoSettings,
)
from wan_train.dataset.scan import Check

CONFIG = Path("/data/dataset.toml")
PICTURES = Path("/data/cats")
CLIPS = Path("/data/walks")
VIDEO = VideoSettings(
    target_frames=(1, 25, 45),
    frame_extraction=FrameExtraction.UNIFORM,
    frame_stride=1,
    frame_sample=3,
    max_frames=129,
    source_fps=None,
)


def subset_of(
    index: int = 0, *, directory: Path = PICTURES, video: VideoSettings | None = None, repeats: int = 1, batch: int = 1
) -> Subset:
    return Subset(
        index=index,
        kind=MediaKind.IMAGE if video is None else MediaKind.VIDEO,
        directory=directory,
        jsonl=None,
        cache_directory=directory / "cache",
        resolution=(960, 960) if video is None else (640, 480),
        batch_size=batch,
        num_repeats=repeats,
        enable_bucket=True,
        bucket_no_upscale=False,
        caption_extension=".txt",
        video=video,
    )


def items_of(
    sizes: Iterable[tuple[int, int] | None],
    *,
    directory: Path = PICTURES,
    name: str = "{}.png",
    frames: int | None = None,
) -> tuple[Item, ...]:
    return tuple(
        Item(
            path=directory / name.format(number),
            caption_path=directory / f"{number}.txt",
            caption_characters=40,
            width=size[0] if size else None,
            height=size[1] if size else None,
            frames=frames,
        )
        for number, size in enumerate(sizes)
    )


def inventory(*subsets: SubsetInventory, problems: Sequence[Problem] = ()) -> Inventory:
    config = DatasetConfig(path=CONFIG, text="", datasets=tuple(found.subset for found in subsets))
    return Inventory(config=config, reading=GUIDE_READING, subsets=subsets, problems=tuple(problems))


def inventory_of(sizes: Iterable[tuple[int, int] | None], *, name: str = "{}.png") -> Inventory:
    """One dataset of pictures."""
    return inventory(SubsetInventory(subset=subset_of(), items=items_of(sizes, name=name)))


def mixed() -> Inventory:
    """Pictures of several shapes, some enlarged, some cut heavily, and clips."""
    sizes: list[tuple[int, int] | None] = [(1024, 1024)] * 7 + [(1920, 1080)] * 5 + [(640, 480)] * 2
    sizes += [(3000, 300), (300, 300), (500, 2600)]
    clips = items_of([(640, 360), (480, 640), (320, 240)], directory=CLIPS, name="{}.mp4", frames=60)
    return inventory(
        SubsetInventory(subset=subset_of(repeats=2, batch=2), items=items_of(sizes)),
        SubsetInventory(subset=subset_of(1, directory=CLIPS, video=VIDEO), items=clips),
    )


def check_of(found: Inventory, *problems: Problem) -> Check:
    return Check(config=CONFIG, is_written=True, reading=GUIDE_READING, inventory=found, problems=problems)


def problem(
    path: Path | None, what: str = "is odd", *, severity: Severity = Severity.HARMS, fix: str = "Mend it"
) -> Problem:
    return Problem(kind=ProblemKind.SAME_STEM, severity=severity, what=what, fix=fix, path=path)

"""One file of a dataset on a page: its picture with the trained area framed, its caption, its problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from wan_train.base.units import count
from wan_train.dataset.buckets import Crop
from wan_train.dataset.layout import TrainedFile, is_cropped
from wan_train.dataset.model import MediaKind, Problem
from wan_train.dataset.previews import Preview
from wan_train.views import formatting
from wan_train.views.dataset_page.selection import Contents, ShownSize
from wan_train.views.dataset_tables import BLURRY, percent, sides_cut, times

_LONGEST_CAPTION = 1000
_MOST_PROBLEMS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What cards.html shows of one file. `problems` has the worst first."""

    anchor: str
    name: str
    is_video: bool
    preview: Preview | None
    frame: Crop | None
    """None where nothing is cut away."""
    facts: Sequence[tuple[str, bool]]
    """Changes made to the picture, each with whether to highlight it."""
    items: str | None
    """The clips taken from a video, or why nothing is trained."""
    caption: str
    has_caption: bool
    caption_note: str | None
    problems: Sequence[Problem] = ()
    more_problems: int = 0


def cards(
    shown: ShownSize,
    kind: MediaKind,
    contents: Contents,
    *,
    anchor: str,
    troubles: Mapping[Path, Sequence[Problem]] = MappingProxyType({}),
) -> list[Card]:
    """The cards of the shown files of one size. `anchor` prefixes their anchors; `troubles` has the worst first."""
    return [
        _card(one, kind, contents, f"{anchor}-{index}", troubles.get(one.item.path, ()))
        for index, one in enumerate(shown.shown)
    ]


def _card(one: TrainedFile, kind: MediaKind, contents: Contents, anchor: str, problems: Sequence[Problem]) -> Card:
    caption = contents.captions.get(one.item.path)
    text, note = _caption(one, caption)
    return Card(
        anchor=anchor,
        name=formatting.safe(one.item.path.name),
        is_video=kind is MediaKind.VIDEO,
        preview=contents.previews.get(one.item.path),
        frame=one.crop if one.crop is not None and one.crop.share_lost > 0 else None,
        facts=_facts(one),
        items=_items(one, kind) if one.crop is not None else None,
        caption=text,
        has_caption=bool(caption),
        caption_note=note,
        problems=problems[:_MOST_PROBLEMS],
        more_problems=max(0, len(problems) - _MOST_PROBLEMS),
    )


def _facts(one: TrainedFile) -> list[tuple[str, bool]]:
    crop = one.crop
    if crop is None:
        return [("size unknown" if one.item.width is None else "not trained: too small after the crop", False)]
    facts = [(f"{crop.stored[0]}x{crop.stored[1]} → {crop.bucket[0]}x{crop.bucket[1]}", False)]
    if crop.is_enlarged:
        facts.append((f"enlarged {times(crop.scale)}", crop.scale >= BLURRY))
    elif crop.scale < 1:
        facts.append((f"reduced to {percent(crop.scale)}", False))
    if crop.share_lost > 0:
        facts.append((f"{percent(crop.share_lost)} cut away, {sides_cut(crop)}", is_cropped(one)))
    else:
        facts.append(("nothing cut away", False))
    return facts


def _items(one: TrainedFile, kind: MediaKind) -> str | None:
    if kind is MediaKind.IMAGE:
        return None if one.cuts else "not trained: an earlier file has the same name"
    if one.item.frames is None:
        return "length unknown"
    length = count(one.item.frames, "frame")
    if not one.cuts:
        return f"{length}: no clip is taken"
    counted = sorted(Counter(frames for _, frames in one.cuts).items())
    return f"{length}: " + ", ".join(f"{count(clips, 'clip')} of {frames}" for frames, clips in counted)


def _caption(one: TrainedFile, caption: str | None) -> tuple[str, str | None]:
    """Return the text to show and a note. `caption` is None if it is missing or not UTF-8."""
    if caption and len(caption) > _LONGEST_CAPTION:
        return f"{caption[:_LONGEST_CAPTION]}…", f"({one.item.caption_characters:,} characters)"
    if caption:
        return caption, None
    if one.item.caption_path is None:
        return "no caption", None
    return "empty caption" if caption == "" else "caption is not valid UTF-8", None

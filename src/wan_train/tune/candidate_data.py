"""The data that candidates train on: copies of the user's own caches, else made-up ones of the same sizes.

The trainer uses every cache in a folder, so the measured items get their own folder. Copies need no lock: a run that
changes the caches meanwhile changes only its own files.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan_train.caching.items import stem_of
from wan_train.dataset.layout import TrainedFile, trained_files
from wan_train.dataset.model import Inventory, MediaKind, Subset
from wan_train.engine import caches
from wan_train.recipe.measured import Shape
from wan_train.run.tuning import Buckets

EPOCH_STEPS = 6
"""Steps of a measured epoch. The start of an epoch also takes time and must be measured more than once."""
_LARGEST_STEPS = 1
_TOKENS = 100
_TEXT_WIDTH = 4096
_CHANNELS = 16
_IMAGE_CHANNELS = 20
"""The first frame's latents, and four channels of its mask."""
_ELEMENT = "bfloat16"
_WIDTH = 2
MADE_UP = Shape(width=960, height=960)
"""The shape to measure without a dataset: the guide's resolution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """The caches of one training item, which may be missing."""

    latents: Path
    text: Path
    suffix: str
    """The part of the latents' file name after the stem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """One bucket to measure, with its items. `subset` is None without a dataset."""

    shape: Shape
    subset: Subset | None = None
    items: tuple[Cached, ...] = ()

    @property
    def batch_size(self) -> int:
        return self.subset.batch_size if self.subset is not None else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Picked:
    """The bucket that decides the speed and the one that decides the memory; often the same."""

    commonest: Pick
    largest: Pick


def pick(inventory: Inventory, buckets: Buckets) -> Picked:
    """Return these buckets with their items from the dataset."""
    subsets = {found.subset.index: found.subset for found in inventory.subsets}
    items: dict[tuple[int, Shape], list[Cached]] = {buckets.commonest: [], buckets.largest: []}
    for found in inventory.subsets:
        for one in trained_files(found):
            for shape, cached in _items_of(one, found.subset):
                items.get((found.subset.index, shape), []).append(cached)

    def picked(key: tuple[int, Shape]) -> Pick:
        return Pick(shape=key[1], subset=subsets[key[0]], items=tuple(items[key]))

    return Picked(commonest=picked(buckets.commonest), largest=picked(buckets.largest))


def _items_of(one: TrainedFile, subset: Subset) -> list[tuple[Shape, Cached]]:
    if one.bucket is None or one.item.width is None or one.item.height is None:
        return []
    stem, folder = stem_of(one.item.path), subset.cache_directory
    found = []
    for start, frames in one.cuts:
        if subset.kind is MediaKind.VIDEO:
            name = caches.clip_name(stem, start, frames, one.crop.bucket if one.crop is not None else one.bucket)
        else:
            name = caches.picture_name(stem, one.item.width, one.item.height)
        cached = Cached(latents=folder / name, text=folder / caches.text_name(stem), suffix=name.removeprefix(stem))
        found.append((Shape(width=one.bucket[0], height=one.bucket[1], frames=frames), cached))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateData:
    """The written dataset.toml, and how many of its items are copies of the user's."""

    config: Path
    copied: int
    items: int


def write(folder: Path, picked: Picked, *, image_to_video: bool) -> CandidateData:
    """Write caches and their dataset.toml into an empty folder. Raise OSError."""
    import tomlkit

    alike = picked.commonest.shape == picked.largest.shape and picked.commonest.subset == picked.largest.subset
    wanted = [(picked.commonest, EPOCH_STEPS)] if alike else [
        (picked.commonest, EPOCH_STEPS - _LARGEST_STEPS), (picked.largest, _LARGEST_STEPS),
    ]  # fmt: skip
    datasets: list[dict[str, Any]] = []
    copied = total = 0
    for number, (one, steps) in enumerate(wanted):
        place = folder / f"items-{number}"
        (place / "cache").mkdir(parents=True)
        datasets.append(_entry(one, place))
        for item in range(steps * one.batch_size):
            total += 1
            copied += _write_item(place / "cache", f"item{item:03d}", one, item, image_to_video=image_to_video)
    config = folder / "dataset.toml"
    config.write_text(tomlkit.dumps({"datasets": datasets}), encoding="utf-8")
    return CandidateData(config=config, copied=copied, items=total)


def _entry(one: Pick, place: Path) -> dict[str, Any]:
    subset, shape = one.subset, one.shape
    is_clip = shape.frames > 1 or (subset is not None and subset.kind is MediaKind.VIDEO)
    kind = MediaKind.VIDEO if is_clip else MediaKind.IMAGE
    size = list(subset.resolution) if subset is not None else [shape.width, shape.height]
    entry: dict[str, Any] = {
        f"{kind}_directory": str(place),
        "cache_directory": str(place / "cache"),
        "caption_extension": ".txt",
        "resolution": size,
        "batch_size": one.batch_size,
        "enable_bucket": subset.enable_bucket if subset is not None else True,
        "bucket_no_upscale": subset.bucket_no_upscale if subset is not None else False,
        "num_repeats": 1,
    }
    return {**entry, "target_frames": [shape.frames]} if is_clip else entry


def _write_item(cache: Path, stem: str, one: Pick, number: int, *, image_to_video: bool) -> bool:
    """Write one item's caches. Return whether they are copies of the user's."""
    text = cache / caches.text_name(stem)
    if one.items:
        own = one.items[number % len(one.items)]
        if _is_right(own, one.shape, image_to_video=image_to_video):
            try:
                shutil.copyfile(own.latents, cache / f"{stem}{own.suffix}")
                shutil.copyfile(own.text, text)
            except FileNotFoundError:
                pass  # removed since we looked
            else:
                return True
    shape = one.shape
    is_clip = one.subset is not None and one.subset.kind is MediaKind.VIDEO
    name = (
        caches.clip_name(stem, 0, shape.frames, (shape.width, shape.height))
        if is_clip
        else caches.picture_name(stem, shape.width, shape.height)
    )
    frames, height, width = caches.latent_shape(shape.width, shape.height, shape.frames)
    label = f"{frames}x{height}x{width}_{_ELEMENT}"
    tensors = [(f"latents_{label}", (_CHANNELS, frames, height, width))]
    if image_to_video:
        tensors.append((f"latents_image_{label}", (_IMAGE_CHANNELS, frames, height, width)))
    (cache / name).write_bytes(_noise_file(tensors, {"width": str(shape.width), "height": str(shape.height)}))
    text.write_bytes(_noise_file([(f"varlen_t5_{_ELEMENT}", (_TOKENS, _TEXT_WIDTH))], {"caption1": "a picture"}))
    return False


def _is_right(own: Cached, shape: Shape, *, image_to_video: bool) -> bool:
    latents, text = caches.read(own.latents), caches.read(own.text)
    if latents is None or text is None:
        return False
    flaw = caches.latents_flaw(
        latents,
        bucket=(shape.width, shape.height),
        frames=shape.frames,
        image_to_video=image_to_video,
        element=_ELEMENT,
    )
    return flaw is None and caches.text_flaw(text, element=_ELEMENT) is None


def _noise_file(tensors: Sequence[tuple[str, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """Return a safetensors file of random bfloat16 numbers, 1 to 2 with either sign. Speed does not depend on them."""
    header: dict[str, Any] = {"__metadata__": {"architecture": "wan", "format_version": "1.0.1", **metadata}}
    data = bytearray()
    for name, shape in tensors:
        count = 1
        for length in shape:
            count *= length
        raw = bytearray(os.urandom(count * _WIDTH))
        raw[0::2] = raw[0::2].translate(bytes(byte | 0x80 for byte in range(256)))
        raw[1::2] = raw[1::2].translate(bytes(0x3F | byte & 0x80 for byte in range(256)))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + bytes(data)

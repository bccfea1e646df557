"""The caches that an inventory needs: their names, and everything that each of them depends on."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from wan_train.caching.decide import Folder, Wanted
from wan_train.caching.index import Hasher, text_hash
from wan_train.dataset.buckets import bucket_for, clips, frames_at_target_rate
from wan_train.dataset.model import Inventory, Item, MediaKind, Subset, SubsetInventory
from wan_train.engine import caches
from wan_train.engine.caches import CacheKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """What makes the caches of one kind, as far as their contents depend on it."""

    kind: CacheKind
    model: str
    trainer: str
    element: str
    image_to_video: bool

    @property
    def parts(self) -> dict[str, str]:
        return {"model": self.model, "trainer": self.trainer, "precision": self.element}


def folders(
    inventory: Inventory,
    maker: Maker,
    hashers: Mapping[Path, Hasher],
    *,
    hashed: Mapping[Path, Container[str]] | None = None,
) -> Iterator[Folder]:
    """One folder for each dataset, with sources hashed where needed; raises OSError for a missing source.

    With `hashed`, only the pictures of these items are hashed. Items in no index are decided without a hash.
    """
    for found in inventory.subsets:
        directory = found.subset.cache_directory
        match maker.kind:
            case CacheKind.LATENTS:
                only = hashed[directory] if hashed is not None else None
                wanted = list(_latents(found, maker, hashers[directory], only))
            case CacheKind.TEXT:
                wanted = list(_texts(found, maker))
        yield Folder(
            path=directory,
            kind=maker.kind,
            is_clip=found.subset.kind is MediaKind.VIDEO,
            image_to_video=maker.image_to_video and maker.kind is CacheKind.LATENTS,
            element=maker.element,
            items=tuple(wanted),
        )


def _latents(found: SubsetInventory, maker: Maker, hasher: Hasher, only: Container[str] | None) -> Iterator[Wanted]:
    subset = found.subset
    wanted: dict[str, Wanted] = {}
    for item in found.items:
        one = _clip(item, subset) if subset.kind is MediaKind.VIDEO else _picture(item, subset)
        is_asked = only is None or one.key in only
        sha256 = hasher.source(item.path).sha256 if is_asked else ""
        made_from = {"picture": sha256, **one.made_from, **maker.parts}
        one = replace(one, sources=(item.path,), newest_ns=hasher.stamp(item.path).newest_ns, made_from=made_from)
        twin = wanted.get(one.key)
        wanted[one.key] = one if twin is None else _both(twin, one)
    yield from wanted.values()


def _both(first: Wanted, other: Wanted) -> Wanted:
    """Merge two files whose caches cannot be told apart by the key.

    Of each cache name, the trainer keeps the file that its threads happened to encode first or last, so both count. A
    clip's cache names also have the trained size and the cut, so two clips of one stem may have separate caches.
    Source: get_latent_cache_path, retrieve_latent_cache_batches and encode_datasets in musubi-tuner, both versions.
    """
    pictures = text_hash([first.made_from["picture"], other.made_from["picture"]])
    sizes = ", ".join(dict.fromkeys([first.made_from["size"], other.made_from["size"]]))
    return replace(
        first,
        sources=(*first.sources, *other.sources),
        newest_ns=max(first.newest_ns, other.newest_ns),
        made_from={**first.made_from, "picture": pictures, "size": sizes},
        bucket=first.bucket if first.bucket == other.bucket else None,
        cuts=first.cuts | other.cuts if first.cuts is not None and other.cuts is not None else None,
    )


def _picture(item: Item, subset: Subset) -> Wanted:
    assert item.width is not None and item.height is not None, "a picture that can be read"
    stem = stem_of(item.path)
    name = caches.picture_name(stem, item.width, item.height)
    bucket = bucket_for(
        item.width,
        item.height,
        resolution=subset.resolution,
        enable_bucket=subset.enable_bucket,
        bucket_no_upscale=subset.bucket_no_upscale,
    )
    # Use the bucket, not the resolution, so that a picture with an unchanged bucket is not encoded again.
    return Wanted(key=name, stem=stem, name=name, bucket=bucket, made_from={"size": f"{bucket[0]}x{bucket[1]}"})


def _clip(item: Item, subset: Subset) -> Wanted:
    settings = subset.video
    assert settings is not None, "a dataset of clips"
    stem = stem_of(item.path)
    bucket, cuts = None, None
    size = f"of {subset.resolution[0]}x{subset.resolution[1]}"
    if item.width is not None and item.height is not None:
        # The trainer always scales clips with buckets on.
        bucket = bucket_for(item.width, item.height, resolution=subset.resolution)
        size = f"{bucket[0]}x{bucket[1]}"
        if item.frames is not None:
            kept = frames_at_target_rate(item.frames, settings)
            cuts = frozenset(caches.clip_name(stem, *cut, bucket) for cut in clips(kept, settings))
    words = (
        f"{settings.frame_extraction} of {','.join(map(str, settings.target_frames))}, every {settings.frame_stride}, "
        f"{settings.frame_sample} times, at most {settings.max_frames}, from {settings.source_fps} a second"
    )
    return Wanted(key=stem, stem=stem, name=None, bucket=bucket, cuts=cuts, made_from={"size": size, "cuts": words})


def _texts(found: SubsetInventory, maker: Maker) -> Iterator[Wanted]:
    captions: dict[str, list[str]] = {}
    for item in found.items:
        words = caption_of(item)
        if words is not None:
            captions.setdefault(stem_of(item.path), []).append(words)
    for stem, several in captions.items():
        name = caches.text_name(stem)
        yield Wanted(
            key=name,
            stem=stem,
            name=name,
            captions=tuple(dict.fromkeys(several)),
            made_from={"caption": text_hash(dict.fromkeys(several)), **maker.parts},
        )


def caption_of(item: Item) -> str | None:
    """The caption as the trainer reads it: a record's as it is; a file's as UTF-8, with unified line ends, stripped,
    and with any byte order mark.
    """
    if item.caption is not None:
        return item.caption
    if item.caption_path is None:
        return None
    text = item.caption_path.read_bytes().decode("utf-8")
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def stem_of(path: Path) -> str:
    """The stem in the cache names of a picture or clip."""
    return os.path.splitext(path.name)[0]  # noqa: PTH122 - the trainer's own rule for stems

"""The loops of the two caching programs."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from PIL import Image
from safetensors.torch import save_file
from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]  # has no types of its own

from wan_train.dataset.buckets import bucket_for, clips
from wan_train.dataset.model import Subset, VideoSettings
from wan_train.rehearsal import data
from wan_train.rehearsal.data import Item, fit, items_of, load_datasets
from wan_train.rehearsal.tiny_model import LatentEncoder, default_device, encode_text

logger = logging.getLogger(__name__)

T = TypeVar("T")
FORMAT_VERSION = "1.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The source of one latent cache: frames at their bucket's size."""

    cache: Path
    frames: list[Image.Image]
    original: tuple[int, int]
    is_clip: bool


def cache_latents(args: argparse.Namespace) -> None:
    """Write the latent caches of every dataset; without `--keep_cache` delete caches without an item."""
    subsets = load_datasets(Path(args.dataset_config))
    logger.info("Loading VAE model from %s", args.vae)
    logger.info("rehearsal: a tiny encoder made from a fixed seed stands in for it")
    encoder = LatentEncoder(args.device or default_device())
    for subset in subsets:
        logger.info("Encoding dataset [%d]", subset.index)
        kept: set[Path] = set()
        for batch in tqdm(_batches(_samples(subset), subset.batch_size)):
            for sample in batch:
                kept.add(sample.cache)
                if not (args.skip_existing and sample.cache.exists()):
                    _save_latents(encoder, sample, i2v=args.i2v)
        _drop_orphans(subset.cache_directory.glob("*_wan.safetensors"), kept, keep=args.keep_cache)


def cache_text(args: argparse.Namespace) -> None:
    """Write the text-encoder caches of every dataset; without `--keep_cache` delete caches without an item."""
    subsets = load_datasets(Path(args.dataset_config))
    before = [set(subset.cache_directory.glob("*_wan_te.safetensors")) for subset in subsets]
    logger.info("Loading T5: %s", args.t5)
    logger.info("rehearsal: a table of words made from a fixed seed stands in for it")
    logger.info("Encoding with T5")
    kept: list[set[Path]] = [set() for _ in subsets]
    for subset, existing, wanted in zip(subsets, before, kept, strict=True):
        logger.info("Encoding dataset [%d]", subset.index)
        for batch in tqdm(_batches(items_of(subset), subset.batch_size)):
            for item in batch:
                cache = data.text_cache(subset, item.path.stem)
                wanted.add(cache)
                if not (args.skip_existing and cache in existing):
                    _save_text(cache, item)
    for existing, wanted in zip(before, kept, strict=True):
        _drop_orphans(existing, wanted, keep=args.keep_cache)


def _samples(subset: Subset) -> Iterator[Sample]:
    for item in items_of(subset):
        yield from _picture(subset, item) if subset.video is None else _clip(subset, subset.video, item)


def _picture(subset: Subset, item: Item) -> Iterator[Sample]:
    with Image.open(item.path) as opened:
        picture = opened.convert("RGB")
    frames = [fit(picture, data.bucket_of(subset, picture.size))]
    cache = data.picture_cache(subset, item.path.stem, picture.size)
    yield Sample(cache=cache, frames=frames, original=picture.size, is_clip=False)


def _clip(subset: Subset, video: VideoSettings, item: Item) -> Iterator[Sample]:
    frames = data.read_clip(item.path, source_fps=video.source_fps)
    # Clips are bucketed even if the dataset disables buckets, and their names contain the bucket.
    bucket = bucket_for(*frames[0].size, resolution=subset.resolution)
    fitted = [fit(frame, bucket) for frame in frames]
    for start, length in clips(len(fitted), video):
        cache = data.clip_cache(subset, item.path.stem, start, length, bucket)
        yield Sample(cache=cache, frames=fitted[start : start + length], original=bucket, is_clip=True)


def _batches(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    waiting = iter(items)
    while batch := tuple(islice(waiting, size)):
        yield batch


def _save_latents(encoder: LatentEncoder, sample: Sample, *, i2v: bool) -> None:
    latents = encoder.encode(sample.frames)
    shape = "x".join(str(length) for length in latents.shape[1:])
    tensors = {f"latents_{shape}_float32": latents}
    if i2v:
        tensors[f"latents_image_{shape}_float32"] = encoder.encode_first(sample.frames)
    metadata = {
        "architecture": "wan",
        "width": str(sample.original[0]),
        "height": str(sample.original[1]),
        "format_version": FORMAT_VERSION,
    }
    if sample.is_clip:
        metadata["frame_count"] = str(len(sample.frames))
    sample.cache.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, sample.cache, metadata=metadata)


def _save_text(cache: Path, item: Item) -> None:
    metadata = {"architecture": "wan", "caption1": item.caption, "format_version": FORMAT_VERSION}
    cache.parent.mkdir(parents=True, exist_ok=True)
    save_file({"varlen_t5_float32": encode_text(item.caption)}, cache, metadata=metadata)


def _drop_orphans(found: Iterable[Path], wanted: set[Path], *, keep: bool) -> None:
    for cache in sorted(found):
        if cache in wanted:
            continue
        if keep:
            logger.info("Keep cache file not in the dataset: %s", cache)
        else:
            cache.unlink()
            logger.info("Removed old cache file: %s", cache)

"""Problems of readable pictures and clips: size, rotation, colours, speed, duplicates.

The trainer opens pictures with Pillow and converts them to RGB (v0.3.4 keeps RGBA and drops alpha after scaling). It
never rotates them. Sources: get_image_data in dataset/image_video_dataset.py at d0a1930; dataset/datasources.py and
cache_latents.py at v0.3.4. Pillow's conversions were measured at 10.4 and 13.0, with equal results.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from wan_train.dataset.buckets import RESOLUTION_STEP, TARGET_FPS, bucket_of, clips, crop_for, frames_at_target_rate
from wan_train.dataset.model import (
    FrameExtraction,
    Problem,
    ProblemKind,
    Subset,
    VideoSettings,
    harms,
    loses,
    note,
    stops,
)
from wan_train.dataset.pictures import Picture, largest_unwarned_picture
from wan_train.dataset.video import Clip

_ENDINGS = {
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "DIB": (".bmp",),
    "AVIF": (".avif",),
}
_MUCH_CROPPED = 0.25
_MUCH_ENLARGED = 2.0
_TURNS = {
    2: "is mirrored",
    3: "is stored upside down",
    4: "is stored upside down and mirrored",
    5: "is stored on its side and mirrored",
    6: "is stored on its side",
    7: "is stored on its side and mirrored",
    8: "is stored on its side",
}


def check_picture(path: Path, picture: Picture, subset: Subset) -> Iterator[Problem]:
    """Problems that a picture's header shows."""
    if picture.width * picture.height > largest_unwarned_picture():
        megabytes = picture.width * picture.height * 3 // 1_000_000
        yield note(
            ProblemKind.TOO_LARGE,
            f"is {picture.width}x{picture.height}; decoding it takes {megabytes} MB",
            "Scale it down to cache faster",
            path,
        )
    yield from _shape(path, picture, subset)
    if picture.orientation in _TURNS:
        yield harms(
            ProblemKind.ROTATED,
            f"{_TURNS[picture.orientation]}, and the trainer ignores its EXIF rotation",
            "Rotate the picture and remove its EXIF orientation, or use --fix",
            path,
            is_fixable=True,
        )
    if picture.has_alpha:
        yield note(
            ProblemKind.TRANSPARENT,
            "may have transparent parts; the colour stored beneath them is trained, often black",
            "Add a background",
            path,
        )
    yield from _colours(path, picture)
    if picture.is_animated:
        yield loses(
            ProblemKind.ANIMATED,
            "is an animation; only its first frame is trained",
            "Convert it to .mp4 to train it as a clip",
            path,
        )
    endings = _ENDINGS.get(picture.format, ())
    if path.suffix.lower() not in endings:
        yield note(
            ProblemKind.WRONG_ENDING,
            f"is {_NAMES.get(picture.format, picture.format)} inside; the trainer reads it anyway",
            "Rename it if other programs cannot open it",
            path,
        )


_NAMES = {"JPEG": "a JPEG", "MPO": "a JPEG", "PNG": "a PNG", "WEBP": "a WebP", "AVIF": "an AVIF", "GIF": "a GIF"}


def _shape(path: Path, picture: Picture, subset: Subset) -> Iterator[Problem]:
    size = f"is {picture.width}x{picture.height}"
    bucket = bucket_of(subset, (picture.width, picture.height))
    if 0 in bucket:
        what = f"{size}; with bucket_no_upscale a side under {RESOLUTION_STEP} pixels becomes 0"
        fix = "Remove the picture, or set bucket_no_upscale = false"
        yield stops(ProblemKind.TOO_SMALL, what, fix, path)
        return
    crop = crop_for((picture.width, picture.height), bucket)
    if crop.share_lost >= _MUCH_CROPPED:
        what = f"{size} and is trained at {bucket[0]}x{bucket[1]}: {crop.share_lost:.0%} is cropped"
        fix = "Crop it to what matters" + ("" if subset.enable_bucket else ", or set enable_bucket = true")
        yield harms(ProblemKind.CROPPED, what, fix, path)
    if crop.scale > _MUCH_ENLARGED:
        what = f"{size} and is enlarged {crop.scale:.1f} times to {bucket[0]}x{bucket[1]}: the blur is trained"
        fix = "Use a larger original, or set bucket_no_upscale = true"
        yield harms(ProblemKind.TOO_SMALL, what, fix, path)


def _colours(path: Path, picture: Picture) -> Iterator[Problem]:
    if picture.mode.startswith("I") or picture.mode == "F":
        what = "has more than 8 bits per grey pixel; the trainer turns it almost white"
        yield harms(ProblemKind.COLOURS, what, "Save it with 8 bits", path)
    elif picture.mode == "CMYK":
        what = "is CMYK, which the trainer converts without its colour profile"
        yield harms(ProblemKind.COLOURS, what, "Save it as RGB", path)


_SAME_SPEED = 0.05
"""Relative tolerance: 15.98 and 29.97 fps count as 16 and 30."""


def check_clip(path: Path, clip: Clip, settings: VideoSettings) -> Iterator[Problem]:
    """Problems that a clip's header shows.

    Source: load_video and VideoDataset.retrieve_latent_cache_batches at both versions, see `buckets`.
    """
    yield from _speed(path, clip, settings)
    if clip.frames is None:
        return
    kept = frames_at_target_rate(clip.frames, settings)
    cuts = clips(kept, settings)
    if not cuts:
        what = f"has {kept} frames, fewer than any of target_frames, so it is not trained"
        yield loses(ProblemKind.TOO_FEW_FRAMES, what, "Add a smaller number to target_frames", path)
        return
    # `head` with source_fps stops reading once it has enough, so calculate the whole length at 16 fps here.
    length = int(clip.frames * TARGET_FPS / settings.source_fps) if settings.source_fps is not None else clip.frames
    used = max(start + count for start, count in cuts)
    if settings.frame_extraction in {FrameExtraction.HEAD, FrameExtraction.FULL} and length - used > 3:
        yield note(
            ProblemKind.UNUSED_FRAMES,
            f"has {length} frames; only the first {used} are trained",
            'Use frame_extraction = "chunk" or "uniform", or larger target_frames (max_frames for "full")',
            path,
        )


def is_same_speed(fps: float, other: float) -> bool:
    """Whether two frame rates are the same within the tolerance."""
    return abs(fps - other) <= other * _SAME_SPEED


def _speed(path: Path, clip: Clip, settings: VideoSettings) -> Iterator[Problem]:
    if clip.fps is None:
        return
    if clip.is_variable:
        yield harms(
            ProblemKind.FRAME_RATE,
            f"has a variable frame rate ({clip.fps:.3g} fps on average); source_fps cannot correct it",
            f"Convert it to a constant rate: ffmpeg -i IN -vf fps={TARGET_FPS:g} -crf 14 OUT.mp4",
            path,
        )
        return
    # The trainer drops frames and adds none, so a source_fps below 16 changes nothing.
    kept = clip.fps * min(1.0, TARGET_FPS / (settings.source_fps or TARGET_FPS))
    if is_same_speed(kept, TARGET_FPS):
        return
    is_slow = kept > TARGET_FPS
    read_as = (
        f"is trained as {TARGET_FPS:g} fps" if settings.source_fps is None else f"source_fps is {settings.source_fps:g}"
    )
    error = f"{kept / TARGET_FPS:.2g} times too slow" if is_slow else f"{TARGET_FPS / kept:.2g} times too fast"
    what = f"has {clip.fps:g} fps and {read_as}: motion is trained {error}"
    fix = (
        f"Set source_fps = {float(f'{clip.fps:.5g}')} for a folder of clips with this frame rate, "
        f"or convert them: ffmpeg -i IN -vf fps={TARGET_FPS:g} -crf 14 OUT.mp4"
        if clip.fps >= TARGET_FPS
        else "Remove it, or convert it to 16 fps with a program that interpolates frames"
    )
    yield harms(ProblemKind.FRAME_RATE, what, fix, path, is_fixable=clip.fps >= TARGET_FPS)


_HEAD = 64 * 1024
_HASH_SIDE = 8
_SAME_LOOK = 3
"""Bits of 128 that may differ. Re-saving or scaling changes 0 to 3; a crop or another subject changes 20 or more."""


def duplicates(sizes: Mapping[Path, int]) -> Iterator[Problem]:
    """Files identical to an earlier one. Only files of equal size are read, fully only if their first 64 KiB match."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path, size in sizes.items():
        by_size[size].append(path)
    for size, paths in by_size.items():
        if len(paths) == 1:
            continue
        for suspects in _split(paths, _head_digest):
            for first, *others in _split(suspects, _digest) if size > _HEAD else (suspects,):
                for other in others:
                    yield harms(
                        ProblemKind.DUPLICATE,
                        f"is identical to {first.name}, so it counts twice",
                        "Remove one; to repeat all, use num_repeats",
                        other,
                    )


def near_duplicates(hashes: Mapping[Path, int], *, known: Iterable[Path]) -> Iterator[Problem]:
    """Pictures that look like an earlier one by `perceptual_hash`; `known` were already reported as duplicates."""
    reported = set(known)
    # Hashes that differ in at most three bits share at least one of four 32-bit parts, so only those are compared.
    parts: dict[tuple[int, int], list[Path]] = defaultdict(list)
    for path, bits in hashes.items():
        if path in reported:
            continue
        keys = [(part, bits >> (32 * part) & 0xFFFFFFFF) for part in range(_SAME_LOOK + 1)]
        near = (other for key in keys for other in parts[key])
        match = next((other for other in near if (hashes[other] ^ bits).bit_count() <= _SAME_LOOK), None)
        if match is None:
            for key in keys:
                parts[key].append(path)
            continue
        yield note(ProblemKind.NEAR_DUPLICATE, f"looks like {match.name}", "Keep one, unless you want both", path)


def perceptual_hash(grey: bytes) -> int | None:
    """The 128-bit hash of a picture scaled to 9x9 greys: where it gets brighter to the right and downwards.

    None for a picture without structure, since all such pictures have similar hashes.
    """
    side = _HASH_SIDE + 1
    bits = 0
    for y in range(_HASH_SIDE):
        for x in range(_HASH_SIDE):
            here, right, below = grey[y * side + x], grey[y * side + x + 1], grey[(y + 1) * side + x]
            bits = bits << 2 | (right > here) << 1 | (below > here)
    return bits if max(grey) - min(grey) > side else None


def _split(paths: Iterable[Path], key: Callable[[Path], bytes]) -> Iterator[list[Path]]:
    """Groups of at least two files with the same key; unreadable files are left out."""
    groups: dict[bytes, list[Path]] = defaultdict(list)
    for path in paths:
        try:
            groups[key(path)].append(path)
        except OSError:
            continue
    return (group for group in groups.values() if len(group) > 1)


def _head_digest(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        return hashlib.sha256(file.read(_HEAD)).digest()


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

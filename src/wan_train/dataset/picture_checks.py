"""What the trainer makes of a picture that is sound: turned, cropped, enlarged, without its transparency.

The trainer opens with Pillow, converts to RGB (v0.3.4: leaves RGBA and cuts its alpha off after scaling) and never
turns: get_image_data in dataset/image_video_dataset.py at d0a1930, dataset/datasources.py and cache_latents.py at
v0.3.4. What Pillow's conversion does was measured at 10.4 and 13.0, with equal results.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from wan_train.dataset.buckets import RESOLUTION_STEP, bucket_for
from wan_train.dataset.crops import crop_for
from wan_train.dataset.media import Picture, largest_unwarned_picture
from wan_train.dataset.model import Problem, ProblemKind, Severity, Subset

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


def judge(path: Path, picture: Picture, subset: Subset) -> Iterator[Problem]:
    """Everything that a header tells."""
    if picture.width * picture.height > largest_unwarned_picture():
        megabytes = picture.width * picture.height * 3 // 1_000_000
        yield _problem(
            ProblemKind.TOO_LARGE,
            Severity.NOTE,
            f"is {picture.width}x{picture.height}; decoding it takes {megabytes} MB",
            "Scale it down to cache faster",
            path,
        )
    yield from _shape(path, picture, subset)
    if picture.orientation in _TURNS:
        yield _problem(
            ProblemKind.ROTATED,
            Severity.HARMS,
            f"{_TURNS[picture.orientation]} with an EXIF mark to turn it, which the trainer ignores",
            "Turn its pixels and remove the mark",
            path,
        )
    if picture.has_alpha:
        yield _problem(
            ProblemKind.TRANSPARENT,
            Severity.NOTE,
            "may have transparent parts; they are trained in the colour stored beneath them, often black",
            "Put a background behind it",
            path,
        )
    yield from _colours(path, picture)
    if picture.is_animated:
        yield _problem(
            ProblemKind.ANIMATED,
            Severity.LOSES,
            "is an animation; all but its first frame is left out",
            "Train it as a clip: convert it to .mp4",
            path,
        )
    endings = _ENDINGS.get(picture.format, ())
    if path.suffix.lower() not in endings:
        yield _problem(
            ProblemKind.WRONG_ENDING,
            Severity.NOTE,
            f"is {_NAMES.get(picture.format, picture.format)} inside; the trainer finds that out and reads it",
            "Rename it if other programs stumble over it",
            path,
        )


_NAMES = {"JPEG": "a JPEG", "MPO": "a JPEG", "PNG": "a PNG", "WEBP": "a WebP", "AVIF": "an AVIF", "GIF": "a GIF"}


def _shape(path: Path, picture: Picture, subset: Subset) -> Iterator[Problem]:
    size = f"is {picture.width}x{picture.height}"
    bucket = bucket_for(
        picture.width,
        picture.height,
        resolution=subset.resolution,
        enable_bucket=subset.enable_bucket,
        bucket_no_upscale=subset.bucket_no_upscale,
    )
    if 0 in bucket:
        what = f"{size}; bucket_no_upscale leaves nothing of a side under {RESOLUTION_STEP}"
        mend = "Remove the picture or allow upscaling"
        yield _problem(ProblemKind.TOO_SMALL, Severity.STOPS, what, mend, path)
        return
    crop = crop_for((picture.width, picture.height), bucket)
    if crop.share_lost >= _MUCH_CROPPED:
        what = f"{size} and is trained at {bucket[0]}x{bucket[1]}: {crop.share_lost:.0%} of it is cut away"
        mend = "Crop it to what matters" + ("" if subset.enable_bucket else ", or set enable_bucket = true")
        yield _problem(ProblemKind.CROPPED, Severity.HARMS, what, mend, path)
    if crop.scale > _MUCH_ENLARGED:
        what = f"{size} and is enlarged {crop.scale:.1f} times to {bucket[0]}x{bucket[1]}: its blur is learned"
        mend = "Use a larger original, or bucket_no_upscale = true"
        yield _problem(ProblemKind.TOO_SMALL, Severity.HARMS, what, mend, path)


def _colours(path: Path, picture: Picture) -> Iterator[Problem]:
    if picture.mode.startswith("I") or picture.mode == "F":
        what = "has more than 8 bits of grey, of which the trainer makes nearly pure white"
        yield _problem(ProblemKind.COLOURS, Severity.HARMS, what, "Save it with 8 bits", path)
    elif picture.mode == "CMYK":
        what = "has the colours of print (CMYK), which the trainer converts without their profile, and so wrongly"
        yield _problem(ProblemKind.COLOURS, Severity.HARMS, what, "Save it as RGB", path)


def _problem(kind: ProblemKind, severity: Severity, what: str, mend: str, path: Path) -> Problem:
    return Problem(kind=kind, severity=severity, what=what, mend=mend, path=path)

"""A photo turned as its EXIF mark says, the mark taken off, as little of its quality lost as can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wan_train.dataset.media import read_picture

_MOST_OFF = 12.0
"""Mean difference of grey levels (of 255); encoding a JPEG anew in its own quality gives under 3."""
_SIDEWAYS = frozenset({5, 6, 7, 8})


class NotUprightError(OSError):
    """The turned file is not what it should be."""


def upright(path: Path, made: Path) -> None:
    """Write `path` turned upright to `made`, in its own format, and compare the two; raises OSError.

    PNG and lossless WebP keep every pixel. A JPEG is encoded anew with its own quantisation tables, turned along, so
    that hardly anything is rounded a second time; colour profile and other EXIF entries stay.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        image.load()
        turned = ImageOps.exif_transpose(image)
        sideways = image.getexif().get(0x0112) in _SIDEWAYS
        options = _options(image, path, sideways=sideways)
        options["exif"] = turned.getexif()
        if (profile := image.info.get("icc_profile")) is not None:
            options["icc_profile"] = profile
        format_name = "JPEG" if image.format == "MPO" else image.format
        with made.open("wb") as file:
            turned.save(file, format_name, **options)
        expected = turned.convert("L").resize((64, 64), Image.Resampling.BOX).tobytes()
        size = turned.size
    with Image.open(made) as written:
        got = written.convert("L").resize((64, 64), Image.Resampling.BOX).tobytes()
        off = sum(abs(one - other) for one, other in zip(expected, got, strict=True)) / len(got)
        again = read_picture(made)
        if written.size != size or off > _MOST_OFF or getattr(again, "orientation", None) != 1:
            raise NotUprightError(0, "the turned picture does not look like the original, so it was not used")


def _options(image: Any, path: Path, *, sideways: bool) -> dict[str, Any]:  # noqa: ANN401 - Pillow's plugins differ
    from PIL import JpegImagePlugin

    match image.format:
        case "JPEG" | "MPO":
            tables = {number: _turned(table) if sideways else table for number, table in image.quantization.items()}
            sampling = JpegImagePlugin.get_sampling(image)
            # 4:2:2 turned would be 4:4:0, which cannot be written; all colour detail is kept instead.
            return {"qtables": tables, "subsampling": 0 if sampling < 0 or (sideways and sampling == 1) else sampling}
        case "WEBP":
            is_lossless = b"VP8L" in path.read_bytes()[:64]
            return {"lossless": True} if is_lossless else {"quality": 95, "method": 6}
        case "AVIF":
            return {"quality": 90}
        case _:
            return {}


def _turned(table: list[int]) -> list[int]:
    """An 8x8 quantisation table along with its picture: rows become columns."""
    return [table[column * 8 + row] for row in range(8) for column in range(8)]

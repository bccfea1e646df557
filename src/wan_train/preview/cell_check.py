"""Checks of a drawn cell: every frame is opened, because the trainer's exit code 0 proves nothing here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_train.base.text import one_line
from wan_train.preview.model import Prompt

_BLANK = 0.5
"""Spread of grey values below which a picture shows nothing. Latents of NaN are decoded to one colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """What was seen in the first frame of a cell: size in pixels, mean and spread of its grey values (0 to 255)."""

    width: int
    height: int
    mean: float
    deviation: float


def look(frames: Sequence[Path], prompt: Prompt) -> Looks | str:
    """What a drawn cell looks like, or what is wrong with it, as a clause. Opens every frame."""
    from PIL import Image, ImageStat

    seen: list[Looks] = []
    for frame in frames:
        try:
            # Pillow raises one of these for a broken file.
            with Image.open(frame) as picture:
                grey = picture.convert("L")
        except (
            OSError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
        ) as error:
            return f"{frame.name} cannot be opened: {one_line(str(error)) or type(error).__name__}"
        statistics = ImageStat.Stat(grey)
        seen.append(
            Looks(width=grey.width, height=grey.height, mean=statistics.mean[0], deviation=statistics.stddev[0])
        )
    first = seen[0]
    if any((each.width, each.height) != (first.width, first.height) for each in seen):
        return "its frames have different sizes"
    # Image-to-video keeps the area and takes the proportions of the start picture.
    if prompt.image is None and (first.width, first.height) != (prompt.width, prompt.height):
        return f"it has {first.width}x{first.height} pixels instead of {prompt.width}x{prompt.height}"
    if all(each.deviation < _BLANK for each in seen):
        return "it is blank: every pixel has the same colour, as when the model computes NaN"
    return first

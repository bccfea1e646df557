"""Eight captioned pictures for a rehearsal without a dataset: `python -m wan_train.rehearsal.example_pictures DIR`."""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
SCALE = 2
"""Pictures are drawn this much larger and then reduced, which smooths every edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One picture: its file name without suffix, its caption, its size in pixels and its paint function."""

    name: str
    caption: str
    size: tuple[int, int]
    paint: Callable[[Canvas], None]


class Canvas:
    """A picture being drawn. All coordinates are fractions of its width and height."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.width, self.height = size[0] * SCALE, size[1] * SCALE
        self.image = Image.new("RGB", (self.width, self.height))
        self.pen = ImageDraw.Draw(self.image)

    def at(self, x: float, y: float) -> tuple[float, float]:
        return x * self.width, y * self.height

    def sky(self, top: Colour, bottom: Colour) -> None:
        """A vertical blend over the whole picture."""
        for row in range(self.height):
            share = row / max(self.height - 1, 1)
            colour = tuple(round(a + (b - a) * share) for a, b in zip(top, bottom, strict=True))
            self.pen.line([(0, row), (self.width, row)], fill=colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """A filled circle; the radius is a fraction of the shorter side."""
        cx, cy = self.at(x, y)
        r = radius * min(self.width, self.height)
        self.pen.ellipse([cx - r, cy - r, cx + r, cy + r], fill=colour)

    def shape(self, points: list[tuple[float, float]], colour: Colour) -> None:
        self.pen.polygon([self.at(x, y) for x, y in points], fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self.pen.rectangle([*self.at(left, top), *self.at(right, bottom)], fill=colour)

    def finished(self) -> Image.Image:
        return self.image.resize((self.width // SCALE, self.height // SCALE), Image.Resampling.LANCZOS)


def _red_circle(canvas: Canvas) -> None:
    canvas.sky((250, 246, 238), (236, 228, 214))
    canvas.disc(0.53, 0.55, 0.32, (214, 200, 180))
    canvas.disc(0.5, 0.5, 0.32, (206, 44, 40))
    canvas.disc(0.41, 0.4, 0.07, (232, 108, 96))


def _blue_square(canvas: Canvas) -> None:
    canvas.sky((255, 224, 130), (255, 196, 70))
    canvas.box(0.32, 0.26, 0.72, 0.78, (210, 152, 40))
    canvas.box(0.28, 0.22, 0.68, 0.74, (36, 82, 168))


def _green_triangle(canvas: Canvas) -> None:
    canvas.sky((238, 240, 244), (206, 212, 222))
    canvas.shape([(0.5, 0.14), (0.9, 0.82), (0.1, 0.82)], (44, 138, 78))
    canvas.shape([(0.5, 0.14), (0.5, 0.82), (0.1, 0.82)], (62, 164, 98))


def _sunset(canvas: Canvas) -> None:
    canvas.sky((58, 44, 110), (252, 150, 84))
    canvas.disc(0.62, 0.6, 0.16, (255, 226, 140))
    canvas.box(0, 0.66, 1, 1, (34, 46, 92))
    for row in range(7):
        half, y = 0.13 - row * 0.015, 0.69 + row * 0.04
        canvas.box(0.62 - half, y, 0.62 + half, y + 0.014, (255, 190, 110))


def _mountains(canvas: Canvas) -> None:
    canvas.sky((132, 186, 232), (226, 240, 250))
    canvas.shape([(-0.1, 1), (0.28, 0.3), (0.66, 1)], (94, 110, 140))
    canvas.shape([(0.2, 0.45), (0.28, 0.3), (0.36, 0.45), (0.28, 0.41)], (244, 248, 252))
    canvas.shape([(0.34, 1), (0.7, 0.22), (1.1, 1)], (70, 84, 116))
    canvas.shape([(0.615, 0.4), (0.7, 0.22), (0.79, 0.4), (0.7, 0.35)], (250, 252, 255))
    canvas.shape([(0, 1), (0, 0.84), (0.4, 0.78), (1, 0.88), (1, 1)], (66, 122, 74))


def _night(canvas: Canvas) -> None:
    canvas.sky((10, 14, 40), (44, 50, 98))
    stars = random.Random(7)  # noqa: S311 - where the stars stand, the same every time
    for _ in range(60):
        canvas.disc(stars.random(), stars.random() * 0.8, stars.uniform(0.002, 0.006), (240, 240, 220))
    canvas.disc(0.68, 0.24, 0.13, (246, 240, 206))
    canvas.disc(0.62, 0.21, 0.12, (20, 24, 56))
    canvas.shape([(0, 1), (0, 0.88), (0.35, 0.82), (0.7, 0.9), (1, 0.84), (1, 1)], (12, 22, 30))


def _flower(canvas: Canvas) -> None:
    canvas.sky((206, 234, 214), (150, 204, 160))
    canvas.box(0.485, 0.45, 0.515, 1, (46, 120, 60))
    canvas.shape([(0.5, 0.86), (0.74, 0.68), (0.66, 0.86)], (58, 142, 72))
    for petal in range(8):
        angle = petal * math.tau / 8
        canvas.disc(0.5 + 0.2 * math.cos(angle), 0.36 + 0.15 * math.sin(angle), 0.13, (222, 92, 150))
    canvas.disc(0.5, 0.36, 0.12, (250, 204, 64))


def _house(canvas: Canvas) -> None:
    canvas.sky((170, 214, 244), (232, 244, 252))
    canvas.box(0, 0.72, 1, 1, (112, 172, 84))
    canvas.box(0.3, 0.44, 0.7, 0.8, (242, 224, 188))
    canvas.shape([(0.25, 0.46), (0.5, 0.2), (0.75, 0.46)], (178, 62, 52))
    canvas.box(0.46, 0.58, 0.55, 0.8, (112, 72, 48))
    canvas.box(0.34, 0.54, 0.42, 0.64, (120, 178, 222))
    canvas.box(0.59, 0.54, 0.67, 0.64, (120, 178, 222))
    canvas.disc(0.86, 0.18, 0.08, (255, 220, 96))


SCENES = (
    Scene(name="01-red-circle", caption="a red circle on cream paper", size=(512, 512), paint=_red_circle),
    Scene(name="02-blue-square", caption="a blue square on a yellow wall", size=(512, 384), paint=_blue_square),
    Scene(
        name="03-green-triangle",
        caption="a green triangle on grey paper",
        size=(384, 512),
        paint=_green_triangle,
    ),
    Scene(
        name="04-sunset",
        caption="a sunset over the sea, orange sky, dark water",
        size=(512, 288),
        paint=_sunset,
    ),
    Scene(
        name="05-mountains",
        caption="two mountains with snow under a blue sky",
        size=(512, 342),
        paint=_mountains,
    ),
    Scene(name="06-night", caption="a crescent moon and stars over dark hills", size=(342, 512), paint=_night),
    Scene(name="07-flower", caption="a pink flower with a yellow middle", size=(288, 512), paint=_flower),
    Scene(name="08-house", caption="a small house with a red roof on a meadow", size=(512, 448), paint=_house),
)


def draw(folder: Path) -> list[Path]:
    """Write eight PNG pictures, with the same pixels every time, and their `.txt` captions. Return the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for scene in SCENES:
        canvas = Canvas(scene.size)
        scene.paint(canvas)
        picture = folder / f"{scene.name}.png"
        canvas.finished().save(picture)
        picture.with_suffix(".txt").write_text(f"{scene.caption}\n", encoding="utf-8")
        pictures.append(picture)
    return pictures


def main() -> None:
    """Draw into the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Draw eight captioned pictures for a rehearsal.")
    parser.add_argument("folder", type=Path)
    draw(parser.parse_args().folder)


if __name__ == "__main__":
    main()

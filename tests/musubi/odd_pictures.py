"""Pictures and captions that people really have, each with what wan-train says of it and what it says is learned."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from wan_train.dataset.model import ProblemKind, Severity

LARGE, SMALL = (90, 60), (50, 40)
"""Scaled down and enlarged at the tests' resolution of 64x64."""

Make = Callable[[Path], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Odd:
    """A picture `name` that `make` writes, and what is said of it.

    `learned_as` is the plain picture that the trainer is said to see in it, `seen_as` what a person sees, where that
    is another and has the same size.
    """

    name: str
    make: Make
    says: frozenset[tuple[ProblemKind, Severity]] = frozenset()
    learned_as: Image.Image | None = None
    seen_as: Image.Image | None = None


def art(seed: int, size: tuple[int, int] = LARGE) -> Image.Image:
    """Smooth colours, different for each seed."""
    coarse = Image.frombytes("RGB", (4, 4), random.Random(seed).randbytes(48))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def _saved(picture: Image.Image, format_name: str | None = None, **options: object) -> Make:
    return lambda path: picture.save(path, format_name, **options)


def _holed(picture: Image.Image) -> Image.Image:
    """With its right half transparent, the colours kept beneath."""
    width, height = picture.size
    alpha = Image.new("L", picture.size, 255)
    ImageDraw.Draw(alpha).rectangle([width // 2, 0, width, height], fill=0)
    holed = picture.convert("RGBA")
    holed.putalpha(alpha)
    return holed


def _on(colour: str, holed: Image.Image) -> Image.Image:
    ground = Image.new("RGBA", holed.size, colour)
    return Image.alpha_composite(ground, holed).convert("RGB")


def _turned(seed: int, mark: int) -> Odd:
    stored = art(seed)
    exif = Image.Exif()
    exif[0x0112] = mark
    upright = stored.copy()
    upright.getexif()[0x0112] = mark
    return Odd(
        name=f"turned {mark}.png",
        make=_saved(stored, exif=exif),
        says=frozenset({(ProblemKind.ROTATED, Severity.HARMS)}),
        learned_as=stored,
        seen_as=ImageOps.exif_transpose(upright) if mark < 5 else None,
    )


def _paletted(seed: int) -> Odd:
    picture = art(seed).quantize(16)
    return Odd(
        name="palette.png",
        make=_saved(picture, transparency=0),
        says=frozenset({(ProblemKind.TRANSPARENT, Severity.HARMS)}),
        learned_as=picture.convert("RGB"),
    )


def _cmyk(seed: int) -> Odd:
    file = io.BytesIO()
    art(seed).convert("CMYK").save(file, "JPEG")
    return Odd(
        name="print.jpg",
        make=lambda path: _write(path, file.getvalue()),
        says=frozenset({(ProblemKind.COLOURS, Severity.HARMS)}),
        # The plain arithmetic of inks, without any profile.
        learned_as=Image.open(file).convert("RGB"),
    )


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def odd_pictures(*, newest: bool) -> tuple[Odd, ...]:
    """All of them with which a training goes on. `newest` is v0.3.4, which enlarges RGBA with its alpha."""
    holed, small_holed = _holed(art(20)), _holed(art(21, SMALL))
    transparent = frozenset({(ProblemKind.TRANSPARENT, Severity.HARMS)})
    enlarged = (ProblemKind.TOO_SMALL, Severity.HARMS)
    cropped = (ProblemKind.CROPPED, Severity.HARMS)
    ending = frozenset({(ProblemKind.WRONG_ENDING, Severity.NOTE)})
    animation = frozenset({(ProblemKind.ANIMATED, Severity.LOSES)})
    grey16 = Image.new("I;16", LARGE, 9000)
    return (
        *(_turned(number, mark) for number, mark in enumerate((2, 3, 4, 5, 6, 7, 8))),
        Odd(name="holed.png", make=_saved(holed), says=transparent, learned_as=art(20), seen_as=_on("white", holed)),
        Odd(
            name="holed too.webp",
            make=_saved(holed, lossless=True, exact=True),
            says=transparent,
            learned_as=art(20),
            seen_as=_on("white", holed),
        ),
        Odd(
            name="small and holed.png",
            make=_saved(small_holed),
            says=transparent,
            learned_as=_on("black", small_holed) if newest else art(21, SMALL),
            seen_as=_on("white", small_holed),
        ),
        Odd(name="opaque.png", make=_saved(art(22).convert("RGBA")), learned_as=art(22)),
        Odd(
            name="grey and holed.png",
            make=_saved(_holed(art(23)).convert("LA")),
            says=transparent,
            learned_as=art(23).convert("L").convert("RGB"),
            seen_as=_on("white", _holed(art(23).convert("L").convert("RGB"))),
        ),
        _paletted(24),
        _cmyk(25),
        Odd(
            name="deep.png",
            make=_saved(grey16),
            says=frozenset({(ProblemKind.COLOURS, Severity.HARMS)}),
            learned_as=Image.new("RGB", LARGE, "white"),
            seen_as=Image.new("RGB", LARGE, (35, 35, 35)),
        ),
        Odd(name="bits.png", make=_saved(art(26).convert("1")), learned_as=art(26).convert("1").convert("RGB")),
        Odd(name="grey.jpg", make=_saved(art(27).convert("L"), "JPEG", quality=100)),
        Odd(
            name="moving too.webp",
            make=_saved(art(28), save_all=True, append_images=[art(29)], lossless=True),
            says=animation,
            learned_as=art(28),
            seen_as=art(29),
        ),
        Odd(
            name="moving.png",
            make=_saved(art(30), save_all=True, append_images=[art(31)]),
            says=animation,
            learned_as=art(30),
            seen_as=art(31),
        ),
        Odd(name="webp.jpg", make=_saved(art(32), "WEBP", lossless=True), says=ending, learned_as=art(32)),
        Odd(name="tiff.png", make=_saved(art(33), "TIFF"), says=ending, learned_as=art(33)),
        Odd(
            name="gif.png",
            make=_saved(art(34).quantize(64), "GIF"),
            says=ending,
            learned_as=art(34).quantize(64).convert("RGB"),
        ),
        Odd(name="UPPER.PNG", make=_saved(art(35), "PNG"), learned_as=art(35)),
        Odd(name="UPPER CASE.JPEG", make=_saved(art(36), "JPEG")),
        Odd(
            name="dot.png",
            make=_saved(Image.new("RGB", (1, 1), "red")),
            says=frozenset({enlarged}),
            learned_as=Image.new("RGB", (1, 1), "red"),
        ),
        Odd(name="tiny.bmp", make=_saved(art(37, (7, 5))), says=frozenset({enlarged}), learned_as=art(37, (7, 5))),
        Odd(
            name="wide.png", make=_saved(art(38, (2000, 20))), says=frozenset({cropped}), learned_as=art(38, (2000, 20))
        ),
        Odd(
            name="tall.png",
            make=_saved(art(39, (3, 900))),
            says=frozenset({cropped, enlarged}),
            learned_as=art(39, (3, 900)),
        ),
        *(
            Odd(name=f"{stem}.png", make=_saved(art(seed)), learned_as=art(seed))
            for seed, stem in enumerate(NAMES, start=40)
        ),
    )


NAMES = (
    "[a] *b* ?",
    "-rf",
    "a.b.c",
    "x_0064x0064_wan",
    "x_wan_te",
    "ünïcödé 猫",
    "tab\there",
    "new\nline",
    "100% {sure} $HOME 'q' \"q\"",
)


CAPTIONS: tuple[tuple[str, bytes, str], ...] = (
    ("marked", b"\xef\xbb\xbfa cat", "\ufeffa cat"),
    ("windows", b"a cat\r\non a wall\r\n", "a cat\non a wall"),
    ("empty", b"", ""),
    ("blank", b" \n\t\n", ""),
    ("nul", b"a\0cat", "a\0cat"),
    ("long", b"cat " * 3000, ("cat " * 3000).strip()),
    ("chat", "ein Kätzchen, 猫".encode(), "ein Kätzchen, 猫"),
)
"""Stem, bytes of the file, and the words that are to stand in the cache."""

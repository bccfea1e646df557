"""Each problem that the trainer does not tell of, in a real file made here."""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from support.tokenizers_like_t5 import write as write_tokenizer
from wan_train.dataset.checks import check_clip, duplicates, near_duplicates, perceptual_hash
from wan_train.dataset.config import load
from wan_train.dataset.deep_scan import Depth
from wan_train.dataset.model import (
    GUIDE_READING,
    DatasetError,
    DatasetOverrides,
    FrameExtraction,
    Problem,
    ProblemKind,
    Severity,
    VideoSettings,
)
from wan_train.dataset.pictures import Picture, Unreadable, read_picture
from wan_train.dataset.resolve import resolve_dataset
from wan_train.dataset.scan import Check, check
from wan_train.dataset.video import Clip

from .support import draw
from .test_scan import png_of_size

Make = Callable[[Path], None]


def look_at(folder: Path, depth: Depth = Depth.QUICK) -> Check:
    overrides = DatasetOverrides(resolution=(320, 320))
    return check(resolve_dataset(str(folder)), reading=GUIDE_READING, overrides=overrides, depth=depth)


def art(seed: int, size: tuple[int, int] = (320, 300)) -> Image.Image:
    """Pictures that look different from each other."""
    numbers = random.Random(seed)
    coarse = Image.frombytes("RGB", (8, 8), numbers.randbytes(192))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def oriented(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    art(1).save(path / "x.jpg", exif=exif)


def transparent(path: Path) -> None:
    picture = art(1).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(path / "x.png")


def opaque(path: Path) -> None:
    art(1).convert("RGBA").save(path / "x.png")


def animated(path: Path) -> None:
    art(1).save(path / "x.webp", save_all=True, append_images=[art(2)])


def webp_called_jpg(path: Path) -> None:
    art(1).save(path / "x.jpg", "WEBP")


def heic_called_jpg(path: Path) -> None:
    (path / "x.jpg").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 100)


def damaged_in_the_middle(path: Path) -> None:
    file = io.BytesIO()
    art(1).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    (path / "x.png").write_bytes(data)


@pytest.mark.parametrize(
    ("make", "kind", "severity", "said"),
    [
        (oriented, ProblemKind.ROTATED, Severity.HARMS, "on its side"),
        (transparent, ProblemKind.TRANSPARENT, Severity.HARMS, "transparent parts"),
        (animated, ProblemKind.ANIMATED, Severity.LOSES, "animation"),
        (webp_called_jpg, ProblemKind.WRONG_ENDING, Severity.NOTE, "a WebP inside"),
        (heic_called_jpg, ProblemKind.UNREADABLE_MEDIA, Severity.STOPS, "a HEIC photo"),
        (damaged_in_the_middle, ProblemKind.UNREADABLE_MEDIA, Severity.STOPS, "cannot be read"),
        (lambda p: art(1).convert("CMYK").save(p / "x.jpg"), ProblemKind.COLOURS, Severity.HARMS, "CMYK"),
        (lambda p: Image.new("I;16", (320, 320), 9000).save(p / "x.png"), ProblemKind.COLOURS, Severity.HARMS, "white"),
        (lambda p: art(1, (1600, 200)).save(p / "x.png"), ProblemKind.CROPPED, Severity.HARMS, "50% is cropped"),
        (lambda p: art(1, (60, 60)).save(p / "x.png"), ProblemKind.TOO_SMALL, Severity.HARMS, "enlarged 5.3 times"),
    ],
)
def test_what_a_picture_hides_is_told(
    tmp_path: Path, make: Make, kind: ProblemKind, severity: Severity, said: str
) -> None:
    draw(tmp_path / "fine.png", (320, 320))
    make(tmp_path)
    (tmp_path / "x.txt").write_text("a cat")
    (problem,) = look_at(tmp_path).problems
    assert (problem.kind, problem.severity) == (kind, severity)
    assert said in problem.what


def test_an_alpha_channel_without_a_hole_is_no_problem_once_looked_into(tmp_path: Path) -> None:
    opaque(tmp_path)
    (tmp_path / "x.txt").write_text("a cat")
    assert look_at(tmp_path).problems == ()


@pytest.mark.parametrize(
    ("text", "kind", "severity"),
    [
        (b"a cat\r\non a wall\r\n", ProblemKind.CAPTION_LINE_ENDS, Severity.NOTE),
        (b"a cat on a wall " * 200, ProblemKind.LONG_CAPTION, Severity.HARMS),
        ("猫".encode() * 1000, ProblemKind.LONG_CAPTION, Severity.HARMS),
    ],
)
def test_what_a_caption_hides_is_told(tmp_path: Path, text: bytes, kind: ProblemKind, severity: Severity) -> None:
    draw(tmp_path / "x.png", (320, 320), caption=None)
    (tmp_path / "x.txt").write_bytes(text)
    (problem,) = look_at(tmp_path).problems
    assert (problem.kind, problem.severity) == (kind, severity)
    if kind is ProblemKind.LONG_CAPTION:
        assert "estimate" in problem.what


@pytest.mark.parametrize("cuts", [False, True])
def test_captions_are_counted_in_tokens_where_the_tokenizer_is(tmp_path: Path, cuts: bool) -> None:
    """The limit of 512 holds with the end mark; `cuts`: also where the tokenizer's file says to cut off there."""
    file = write_tokenizer(tmp_path / "tokenizer", cuts=cuts)
    folder = tmp_path / "pictures"
    folder.mkdir()
    texts = ["cat " * 511, "cat " * 512, "cat &amp; " * 170, "cat &amp; " * 171, "ﷺ" * 40]
    for number, text in enumerate(texts):
        art(number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    found = check(
        resolve_dataset(str(folder)),
        reading=GUIDE_READING,
        overrides=DatasetOverrides(resolution=(320, 320)),
        tokenizer=file,
    )
    said = {problem.path.name: problem.what.partition(" tokens")[0] for problem in found.problems if problem.path}
    assert said == {"1.txt": "has 513", "3.txt": "has 514", "4.txt": "has 722"}
    assert all(problem.kind is ProblemKind.LONG_CAPTION for problem in found.problems)


@pytest.mark.parametrize(
    ("frames", "fps", "source_fps", "extraction", "kinds"),
    [
        (45, 16.0, None, FrameExtraction.HEAD, []),
        (48, 15.98, None, FrameExtraction.HEAD, []),
        (100, 16.0, None, FrameExtraction.HEAD, [ProblemKind.UNUSED_FRAMES]),
        (100, 16.0, None, FrameExtraction.CHUNK, []),
        (200, 16.0, None, FrameExtraction.FULL, [ProblemKind.UNUSED_FRAMES]),
        (10, 16.0, None, FrameExtraction.HEAD, [ProblemKind.TOO_FEW_FRAMES]),
        (45, 30.0, None, FrameExtraction.HEAD, [ProblemKind.FRAME_RATE]),
        (85, 30.0, 30.0, FrameExtraction.HEAD, []),
        (85, 24.0, 30.0, FrameExtraction.HEAD, [ProblemKind.FRAME_RATE]),
        (400, 30.0, 30.0, FrameExtraction.HEAD, [ProblemKind.UNUSED_FRAMES]),
        (None, None, None, FrameExtraction.HEAD, []),
    ],
)
def test_what_a_clip_hides_is_told(
    frames: int | None,
    fps: float | None,
    source_fps: float | None,
    extraction: FrameExtraction,
    kinds: list[ProblemKind],
) -> None:
    video = VideoSettings(
        target_frames=(25, 45),
        frame_extraction=extraction,
        frame_stride=1,
        frame_sample=1,
        max_frames=129,
        source_fps=source_fps,
    )
    clip = Clip(width=320, height=320, frames=frames, fps=fps)
    assert [problem.kind for problem in check_clip(Path("x.mp4"), clip, video)] == kinds


def test_the_same_bytes_are_found_and_the_same_looks(tmp_path: Path) -> None:
    art(1).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    art(1).save(tmp_path / "c.jpg", quality=70)
    art(2).save(tmp_path / "d.png")
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text("a cat")
    found = {(problem.kind, problem.path.name) for problem in look_at(tmp_path).problems if problem.path}
    assert found == {(ProblemKind.DUPLICATE, "b.png"), (ProblemKind.NEAR_DUPLICATE, "c.jpg")}


def test_files_of_one_size_and_beginning_that_differ_are_no_duplicates(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(bytes(100_000) + b"a")
    other.write_bytes(bytes(100_000) + b"b")
    assert list(duplicates({one: 100_001, other: 100_001, tmp_path / "gone": 100_001})) == []


@given(st.integers(0, 2**128 - 1), st.sets(st.integers(0, 127), max_size=8))
def test_looks_are_the_same_up_to_three_bits(bits: int, changed: set[int]) -> None:
    other = bits
    for bit in changed:
        other ^= 1 << bit
    found = list(near_duplicates({Path("a"): bits, Path("b"): other}, known=()))
    assert bool(found) == (len(changed) <= 3)


def test_pictures_without_structure_are_not_called_alike() -> None:
    assert perceptual_hash(bytes([200]) * 81) is None


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*"}, {"icc_profile": b"p" * 100}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (17, 300), (2000, 3)])
def test_webp_headers_say_what_pillow_says(
    tmp_path: Path, options: dict[str, Any], mode: str, size: tuple[int, int]
) -> None:
    path = tmp_path / "x.webp"
    art(1, size).convert(mode).save(path, **options)
    found = read_picture(path)
    with Image.open(path) as image:
        assert isinstance(found, Picture)
        assert (found.width, found.height, found.format) == (*image.size, "WEBP")
        assert found.has_alpha == (image.mode == "RGBA")
    path.write_bytes(path.read_bytes()[:-1])
    assert isinstance(read_picture(path), Unreadable)


def test_many_pictures_are_decoded_only_when_asked(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(png_of_size(9000, 9000 - number))
        (tmp_path / f"{number}.txt").write_text("a cat")
    found = look_at(tmp_path)
    assert "2 pictures were not decoded" in found.left_out[0]
    assert "--thorough" in found.left_out[0]
    (tmp_path / "0.png").write_bytes(png_of_size(15_000, 11_000))
    (tmp_path / "1.png").unlink()
    assert "1 picture was not decoded" in look_at(tmp_path).left_out[0]


def test_what_cannot_be_read_at_all_comes_as_problems_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "dataset.toml").write_text("[[datasets]]\nimage_dir = 'x'\n")
    found = look_at(tmp_path)
    assert found.stops
    assert found.inventory is None
    assert {problem.kind for problem in found.problems} >= {ProblemKind.UNKNOWN_KEY, ProblemKind.MISSING_KEY}


def test_the_worst_comes_first(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", (60, 60), caption=None)
    draw(tmp_path / "b.png", (320, 320), caption="a\r\ncat")
    assert [group.severity for group in look_at(tmp_path).groups] == [Severity.STOPS, Severity.HARMS, Severity.NOTE]


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
endings = st.sampled_from([".png", ".jpg", ".PNG", ".webp", ".txt", ".mp4", ".gif", ".Jpg", ".bmp", ""])
contents = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=50).map(lambda text: text.encode("utf-16")),
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBPVP8 ", b"BM", b"GIF89a"]),
    st.binary(max_size=200).map(lambda data: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + data),
    st.binary(max_size=200).map(lambda data: b"\xff\xd8\xff\xe1" + data),
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.dictionaries(st.tuples(names, endings), contents, max_size=8))
def test_any_tree_of_files_is_described_in_printable_words(tmp_path: Path, tree: dict[tuple[str, str], bytes]) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    draw(folder / "fine.png", (320, 320))
    for (name, ending), data in tree.items():
        path = folder / (name + ending)
        if len(path.name.encode()) < 200 and path.name not in {".", "..", "dataset.toml"} and not path.exists():
            path.write_bytes(data)
    found = look_at(folder, Depth.THOROUGH)
    assert found.inventory is not None
    assert all(problem.line.isprintable() or "\u3000" in problem.line for problem in found.problems if _plain(problem))


def _plain(problem: Problem) -> bool:
    # Spaces other than the plain one are shown as they are, and Python does not call them printable.
    return not any(character.isspace() and character != " " for character in str(problem.path))


def test_malformed_files_are_refused_in_words(tmp_path: Path, pictures: Path) -> None:
    """Each a sound file with some bytes or lines changed at random, with a fixed seed."""
    sound = (
        f"[general]\nresolution = [960, 960]\ncaption_extension = '.txt'\nbatch_size = 1\nenable_bucket = true\n\n"
        f"[[datasets]]\nimage_directory = '{pictures}'\ncache_directory = '{pictures}/cache'\nnum_repeats = 2\n\n"
        f"[[datasets]]\nvideo_directory = '{pictures}'\ncache_directory = '{pictures}/cache2'\n"
        "target_frames = [1, 25]\nframe_extraction = 'head'\nsource_fps = 30.0\n"
    )
    numbers = random.Random(5)
    pieces = [
        "[",
        "]",
        "[[",
        "'",
        '"',
        "=",
        "\n",
        "\0",
        "{",
        "}",
        "-1",
        "1e999",
        "nan",
        "true",
        "\\u",
        "é",
        "[[[[",
        "0x",
    ]
    path = tmp_path / "dataset.toml"
    refusals: list[DatasetError] = []
    for _ in range(1000):
        text = list(sound)
        for _ in range(numbers.randint(1, 4)):
            at = numbers.randrange(len(text))
            match numbers.randrange(4):
                case 0:
                    del text[at : at + numbers.randint(1, 30)]
                case 1:
                    text.insert(at, numbers.choice(pieces))
                case 2:
                    text[at] = chr(numbers.choice([0, 9, 13, 27, 127, 233, 0x2028, 0x1F600]))
                case _:
                    other = numbers.randrange(len(text))
                    text[at:at] = text[other : other + 40]
        path.write_bytes("".join(text).encode("utf-8", "replace"))
        try:
            load(path)
        except DatasetError as error:
            refusals.append(error)
    assert len(refusals) > 150
    assert all(error.problems and all(problem.line for problem in error.problems) for error in refusals)

"""`--fix`: what it mends, what it leaves alone, and that nothing is lost whenever it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from wan_train.dataset import footage, mend_caption, mending
from wan_train.dataset.check import Check, check
from wan_train.dataset.locate import locate
from wan_train.dataset.mend_caption import Reading, Unclear
from wan_train.dataset.model import GUIDE_READING, DatasetOverrides, ProblemKind
from wan_train.errors import BadInputError


def look_at(folder: Path) -> Check:
    return check(locate(str(folder)), reading=GUIDE_READING, overrides=DatasetOverrides(resolution=(320, 320)))


def mend_all(folder: Path) -> list[str]:
    """Mend everything; what was said of it."""
    planned = mending.plan(look_at(folder))
    with mending.alone_in({folder}):
        for mend in planned.mends:
            mending.perform(mend, "now")
    return [mend.what for mend in planned.mends]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("un café à Orléans".encode("cp1252"), "un café à Orléans"),
        ("“naïve” \u2013 5 €".encode("cp1252"), "“naïve” \u2013 5 €"),
        ("ein Mädchen im Grünen".encode("latin-1"), "ein Mädchen im Grünen"),
        ("a café".encode("utf-16"), "a café"),
        ("日本の猫".encode("utf-16-be").join([b"\xfe\xff", b""]), "日本の猫"),
        ("\ufeffa cat".encode(), "a cat"),
        (b"a cat\r\non a wall\r", "a cat\non a wall\n"),
        ("\ufeffcafé\r\n".encode("utf-16-le"), "café\n"),
    ],
)
def test_a_caption_gets_the_text_that_was_meant(data: bytes, text: str) -> None:
    reading = mend_caption.read(data)
    assert isinstance(reading, Reading)
    assert reading.text == text


@pytest.mark.parametrize(
    "data",
    [
        "привет, кошка на стене".encode("cp1251"),
        "привет, кошка".encode("koi8-r"),
        "日本の猫が壁の上に座っている".encode("shift-jis"),
        "墙上的猫".encode("gbk"),
        "γάτα στον τοίχο".encode("cp1253"),
        "kočka na zdi, žlutý".encode("cp1250"),
        "un café à Orléans".encode("cp850"),
        "un café à Orléans".encode("mac-roman"),
        b"a\0c\0a\0t\0",
        b"cat\x81",
        b"\xff\xfe\x00\xd8",
        "cat".encode("utf-32"),
        b"x" * (1024 * 1024 + 1),
        b"a plain cat",
    ],
)
def test_a_caption_is_left_alone_where_its_text_is_not_sure(data: bytes) -> None:
    assert isinstance(mend_caption.read(data), Unclear)


def test_captions_are_mended_the_originals_kept_and_the_second_time_there_is_nothing_to_do(pictures: Path) -> None:
    original = "une fête\r\n".encode("cp1252")
    (pictures / "a.txt").write_bytes(original)
    assert mend_all(pictures) == ["Windows-1252 to UTF-8: “une fête”, Windows line ends made plain"]
    assert (pictures / "a.txt").read_bytes() == "une fête\n".encode()
    assert (pictures / mending.BACKUP / "now" / "a.txt").read_bytes() == original
    assert not (pictures / mending.BACKUP / "staging").exists()
    assert mend_all(pictures) == []
    assert not any(problem.path == pictures / "a.txt" for problem in look_at(pictures).problems)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp"])
def test_a_photo_is_turned_as_its_mark_says(tmp_path: Path, orientation: int, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "camera"
    picture = Image.linear_gradient("L").resize((320, 240)).convert("RGB")
    picture.paste((255, 0, 0), (0, 0, 80, 60))
    options = {"lossless": True} if ending == ".webp" else {"quality": 90} if ending == ".jpg" else {}
    picture.save(path, exif=exif, icc_profile=b"profile", **options)
    before = path.stat().st_size
    path.chmod(0o640)
    (tmp_path / "x.txt").write_text("a cat")
    assert mend_all(tmp_path) == ["turned upright"]
    with Image.open(path) as turned:
        size = (240, 320) if orientation >= 5 else (320, 240)
        assert turned.size == size
        assert turned.getexif().get(0x0112) is None
        assert turned.getexif()[0x010F] == "camera"
        assert turned.info["icc_profile"] == b"profile"
        red = {2: (300, 20), 3: (300, 220), 4: (20, 220), 5: (20, 20), 6: (220, 20), 7: (220, 300), 8: (20, 300)}
        colour = turned.convert("RGB").getpixel(red[orientation])
    assert isinstance(colour, tuple)
    assert colour[0] > 200
    assert colour[1] < 60
    assert 0.7 < path.stat().st_size / before < 1.4
    assert path.stat().st_mode & 0o777 == 0o640
    assert look_at(tmp_path).problems == ()


def test_turning_a_photo_four_times_hardly_changes_it(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    noise = Image.effect_noise((320, 240), 30).convert("RGB")
    noise.save(path, quality=80)
    with Image.open(path) as first:
        before = first.convert("L").tobytes()
    (tmp_path / "x.txt").write_text("a cat")
    for _ in range(4):
        with Image.open(path) as image:
            exif = image.getexif()
            exif[0x0112] = 6
            image.save(path, quality="keep", exif=exif)
        assert mend_all(tmp_path) == ["turned upright"]
    with Image.open(path) as last:
        after = last.convert("L").tobytes()
    assert sum(abs(one - other) for one, other in zip(before, after, strict=True)) / len(before) < 2


def test_links_are_left_alone_with_the_reason(pictures: Path, tmp_path: Path) -> None:
    real = tmp_path / "real.txt"
    real.write_bytes("fête".encode("cp1252"))
    (pictures / "a.txt").unlink()
    (pictures / "a.txt").symlink_to(real)
    planned = mending.plan(look_at(pictures))
    assert planned.mends == ()
    assert "it is a link" in planned.refusals[0].why
    assert real.read_bytes() == "fête".encode("cp1252")


def test_two_programs_do_not_mend_one_folder_at_once(pictures: Path) -> None:
    with mending.alone_in({pictures}), pytest.raises(BadInputError, match="at work"), mending.alone_in({pictures}):
        pass


def clip(path: Path, fps: int, frames: int = 60) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=fps)
        stream.width, stream.height = 160, 96
        for number in range(frames):
            picture = Image.new("RGB", (160, 96), (4 * number % 256, 90, 30))
            for packet in stream.encode(av.VideoFrame.from_image(picture)):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    path.with_suffix(".txt").write_text("a lamp")


def test_clips_of_several_speeds_become_copies_with_sixteen_frames_a_second(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 32)
    clip(tmp_path / "b.avi", 24)
    clip(tmp_path / "c.mp4", 16)
    clip(tmp_path / "slow.mp4", 8)
    planned = mending.plan(look_at(tmp_path))
    assert [each.problem.path for each in planned.refusals] == [tmp_path / "slow.mp4"]
    assert "made up" in planned.refusals[0].why
    assert mend_all(tmp_path) == ["replaced by a copy with 16 frames a second"] * 2
    for name, frames in (("a.mp4", 30), ("b.mp4", 40)):
        found = footage.read_clip(tmp_path / name)
        assert isinstance(found, footage.Clip)
        assert found.fps == pytest.approx(16)
        assert found.frames == pytest.approx(frames, abs=1)
    assert not (tmp_path / "b.avi").exists()
    assert {path.name for path in (tmp_path / mending.BACKUP / "now").iterdir()} == {"a.mp4", "b.avi"}
    rates = [problem.path for problem in look_at(tmp_path).problems if problem.kind is ProblemKind.FRAME_RATE]
    assert rates == [tmp_path / "slow.mp4"]


def test_where_all_clips_have_one_speed_source_fps_is_the_better_mend(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 30)
    clip(tmp_path / "b.mp4", 30)
    planned = mending.plan(look_at(tmp_path))
    assert planned.mends == ()
    assert all("set source_fps = 30.0" in each.why for each in planned.refusals)


def test_a_clip_whose_stream_is_broken_is_told(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 16)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    start = data.index(b"mdat") + 4
    data[start : start + 2000] = bytes(2000)
    (tmp_path / "a.mp4").write_bytes(data)
    kinds = {problem.kind for problem in look_at(tmp_path).problems}
    assert ProblemKind.UNREADABLE_MEDIA in kinds


def test_a_clip_that_only_players_turn_upright_is_told_and_left(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    clip(path, 16)
    one = b"\0\1\0\0"
    upright = one + bytes(12) + one + bytes(12) + b"\x40\0\0\0"
    quarter = bytes(4) + one + bytes(4) + b"\xff\xff\0\0" + bytes(16) + b"\x40\0\0\0"
    head, tag, tail = path.read_bytes().partition(b"tkhd")
    path.write_bytes(head + tag + tail.replace(upright, quarter, 1))
    rotated = [problem for problem in look_at(tmp_path).problems if problem.kind is ProblemKind.ROTATED]
    assert [problem.path for problem in rotated] == [path]
    planned = mending.plan(look_at(tmp_path))
    assert planned.mends == ()
    assert "only by hand" in planned.refusals[0].why


KILLED = """
import sys
from pathlib import Path
from wan_train.cli.main import run
sys.exit(run(["dataset", "check", sys.argv[1], "--fix", "--yes", "--json"]))
"""


@pytest.mark.parametrize("after", [0.02, 0.1])
def test_a_kill_in_the_middle_loses_nothing(tmp_path: Path, after: float) -> None:
    """Killed at a moment counted from the first mended file; every name holds its old bytes or the mended ones."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    old, new = "une fête\r\n".encode("cp1252"), "une fête\n".encode()
    names = [f"{number:03d}" for number in range(60)]
    for name in names:
        Image.new("L", (320, 300), 9).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_bytes(old)
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (folder / mending.BACKUP).exists() and child.poll() is None:
        time.sleep(0.001)
    time.sleep(after)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    for name in names:
        now = (folder / f"{name}.txt").read_bytes()
        assert now in {old, new}
        if now == new:
            assert old in {path.read_bytes() for path in (folder / mending.BACKUP).rglob(f"{name}.txt*")}
    mend_all(folder)
    assert {(folder / f"{name}.txt").read_bytes() for name in names} == {new}
    assert not list((folder / mending.BACKUP).glob("staging"))

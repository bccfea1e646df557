"""`--fix`: what it mends, what it leaves alone, and that nothing is lost whenever it is killed."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

from dataset.support import draw
from wan_train.base.errors import BadInputError
from wan_train.dataset import captions, fix, video
from wan_train.dataset.deep_scan import Depth
from wan_train.dataset.model import (
    GUIDE_READING,
    NEWEST_READING,
    CannotFixError,
    DatasetOverrides,
    ProblemKind,
    Severity,
)
from wan_train.dataset.resolve import resolve_dataset
from wan_train.dataset.scan import Check, check


def look_at(folder: Path) -> Check:
    return check(resolve_dataset(str(folder)), reading=GUIDE_READING, overrides=DatasetOverrides(resolution=(320, 320)))


def fix_all(folder: Path) -> list[str]:
    """Fix everything; what was said of it."""
    planned = fix.plan(look_at(folder))
    with fix.locked({folder}):
        for one in planned.fixes:
            fix.apply(one, "now")
    return [one.what for one in planned.fixes]


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
    assert captions.repaired(data)[0] == text


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
    with pytest.raises(CannotFixError):
        captions.repaired(data)


def test_captions_are_mended_the_originals_kept_and_the_second_time_there_is_nothing_to_do(pictures: Path) -> None:
    original = "une fête\r\n".encode("cp1252")
    (pictures / "a.txt").write_bytes(original)
    assert fix_all(pictures) == ["Windows-1252 to UTF-8: “une fête”, Windows line ends replaced"]
    assert (pictures / "a.txt").read_bytes() == "une fête\n".encode()
    assert (pictures / fix.BACKUP / "now" / "a.txt").read_bytes() == original
    assert not (pictures / fix.BACKUP / "staging").exists()
    assert fix_all(pictures) == []
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
    assert fix_all(tmp_path) == ["turned upright"]
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
        assert fix_all(tmp_path) == ["turned upright"]
    with Image.open(path) as last:
        after = last.convert("L").tobytes()
    assert sum(abs(one - other) for one, other in zip(before, after, strict=True)) / len(before) < 2


def test_links_are_left_alone_with_the_reason(pictures: Path, tmp_path: Path) -> None:
    real = tmp_path / "real.txt"
    real.write_bytes("fête".encode("cp1252"))
    (pictures / "a.txt").unlink()
    (pictures / "a.txt").symlink_to(real)
    planned = fix.plan(look_at(pictures))
    assert planned.fixes == ()
    assert "it is a link" in planned.skipped[0].why
    assert real.read_bytes() == "fête".encode("cp1252")


def test_two_programs_do_not_mend_one_folder_at_once(pictures: Path) -> None:
    with fix.locked({pictures}), pytest.raises(BadInputError, match="is running"), fix.locked({pictures}):
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


def test_where_all_clips_have_one_speed_source_fps_is_written_and_nothing_encoded(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    clip(folder / "a.mp4", 30)
    clip(folder / "b.mp4", 30)
    bytes_before = (folder / "a.mp4").read_bytes()
    config = folder / "dataset.toml"
    text = f"""# mine
[general]
caption_extension = ".txt"
enable_bucket = true # keep

[[datasets]]
video_directory = "{folder}" # here
cache_directory = "{folder}/cache"
target_frames = [5]
"""
    config.write_text(text)
    assert fix_all(folder) == ["source_fps = 30.0 in datasets[0]"]
    lines = config.read_text().splitlines()
    assert [line for line in lines if line not in text.splitlines()] == ["source_fps = 30.0"]
    assert "# mine" in lines
    assert "enable_bucket = true # keep" in lines
    assert (folder / fix.BACKUP / "now" / "dataset.toml").read_text() == text
    assert (folder / "a.mp4").read_bytes() == bytes_before
    assert ProblemKind.FRAME_RATE not in {problem.kind for problem in look_at(folder).problems}
    assert fix.plan(look_at(folder)).fixes == ()


def test_clips_of_several_speeds_are_left_with_a_way_out(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 32)
    clip(tmp_path / "b.avi", 24)
    clip(tmp_path / "slow.mp4", 8)
    found = look_at(tmp_path)
    planned = fix.plan(found)
    assert planned.fixes == ()
    assert [each.problem.path for each in planned.skipped] == [tmp_path / "a.mp4", tmp_path / "b.avi"]
    assert all("several frame rates" in each.why for each in planned.skipped)
    assert all("ffmpeg -i IN -vf fps=16" in each.problem.fix for each in planned.skipped)


def test_a_clip_that_only_players_turn_is_named_with_the_command_that_turns_it(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 16)
    marked(tmp_path / "a.mp4", 0, 1, -1, 0)
    found = look_at(tmp_path)
    (rotated,) = [problem for problem in found.problems if problem.kind is ProblemKind.ROTATED]
    assert "ffmpeg -i IN -crf 14 OUT.mp4" in rotated.fix
    assert fix.plan(found).fixes == ()


def test_without_a_dataset_toml_the_command_that_writes_one_is_told(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 30)
    planned = fix.plan(look_at(tmp_path))
    assert planned.fixes == ()
    assert f"wan-train dataset write {tmp_path} --source-fps 30.0" in planned.skipped[0].why


def test_a_dataset_toml_changed_while_the_question_was_open_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    clip(folder / "a.mp4", 30)
    config = folder / "dataset.toml"
    config.write_text(f'[[datasets]]\nvideo_directory = "{folder}"\ncaption_extension = ".txt"\n')
    (one,) = fix.plan(look_at(folder)).fixes
    config.write_text(config.read_text() + "# just now\n")
    with pytest.raises(CannotFixError, match="just now"):
        fix.apply(one, "now")
    assert config.read_text().endswith("# just now\n")


@pytest.mark.parametrize("source_fps", [None, 8.0, 16.0])
def test_no_source_fps_mends_a_clip_slower_than_sixteen(tmp_path: Path, source_fps: float | None) -> None:
    """The trainer makes no frames up: with source_fps = 8.0 every frame is kept and motion is as fast as without."""
    folder = tmp_path / "clips"
    folder.mkdir()
    clip(folder / "a.mp4", 8)
    entry = f'[[datasets]]\nvideo_directory = "{folder}"\ncaption_extension = ".txt"\n'
    (folder / "dataset.toml").write_text(entry + (f"source_fps = {source_fps}\n" if source_fps else ""))
    problems = [problem for problem in look_at(folder).problems if problem.kind is ProblemKind.FRAME_RATE]
    assert [problem.path for problem in problems] == [folder / "a.mp4"]
    assert "motion is trained 2 times too fast" in problems[0].what
    assert "source_fps =" not in problems[0].fix
    planned = fix.plan(look_at(folder))
    assert planned.fixes == planned.skipped == ()


def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    clip(tmp_path / "whole.mp4", 16, frames=24)
    with av.open(str(tmp_path / "whole.mp4")) as given, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        stream = given.streams.video[0]
        out = cut.add_stream_from_template(stream)
        for packet in given.demux(stream):
            if packet.size:
                packet.pts -= int(0.5 / stream.time_base)
                packet.dts -= int(0.5 / stream.time_base)
                packet.stream = out
                cut.mux(packet)
    found = video.read_clip(tmp_path / "cut.mp4")
    decoded = video.decode(tmp_path / "cut.mp4", at_most=None)
    assert isinstance(found, video.Clip)
    assert isinstance(decoded, video.Decoded)
    assert found.frames == decoded.frames == 16


def test_a_clip_whose_stream_is_broken_is_told(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 16)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    start = data.index(b"mdat") + 4
    data[start : start + 2000] = bytes(2000)
    (tmp_path / "a.mp4").write_bytes(data)
    kinds = {problem.kind for problem in look_at(tmp_path).problems}
    assert ProblemKind.UNREADABLE_MEDIA in kinds


def marked(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Give an MP4 a display matrix of these four in place of the upright one."""

    def matrix(*values: int) -> bytes:
        across, down, to_right, below = (struct.pack(">i", value << 16) for value in values)
        return across + down + bytes(4) + to_right + below + bytes(12) + b"\x40\0\0\0"

    head, tag, tail = path.read_bytes().partition(b"tkhd")
    path.write_bytes(head + tag + tail.replace(matrix(1, 0, 0, 1), matrix(a, b, c, d), 1))


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
    while not (folder / fix.BACKUP).exists() and child.poll() is None:
        time.sleep(0.001)
    time.sleep(after)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    for name in names:
        now = (folder / f"{name}.txt").read_bytes()
        assert now in {old, new}
        if now == new:
            assert old in {path.read_bytes() for path in (folder / fix.BACKUP).rglob(f"{name}.txt*")}
    fix_all(folder)
    assert {(folder / f"{name}.txt").read_bytes() for name in names} == {new}
    assert not list((folder / fix.BACKUP).glob("staging"))


def clip_at(path: Path, times: list[float], *, source_fps: float | None = None) -> None:
    """A clip whose frames are shown at these seconds, its dataset.toml beside it."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=120, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 160, 96, "yuv420p", Fraction(1, 120)
        for time_ in times:
            frame = av.VideoFrame.from_image(Image.new("RGB", (160, 96), (int(50 * time_),) * 3))
            frame.pts, frame.time_base = round(120 * time_), Fraction(1, 120)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    path.with_suffix(".txt").write_text("a lamp")
    speed = f"source_fps = {source_fps}\n" if source_fps else ""
    (path.parent / "dataset.toml").write_text(
        f'[[datasets]]\nvideo_directory = "{path.parent}"\ncaption_extension = ".txt"\n{speed}'
    )


def test_progress_counts_pictures_and_clips(pictures: Path) -> None:
    clip(pictures / "c.mp4", 16)
    clip(pictures / "d.mp4", 16)
    (pictures / "dataset.toml").write_text(
        f"[general]\ncaption_extension = '.txt'\n"
        f"[[datasets]]\nimage_directory = '{pictures}'\ncache_directory = '{pictures}/c1'\n"
        f"[[datasets]]\nvideo_directory = '{pictures}'\ncache_directory = '{pictures}/c2'\n"
    )
    told: list[tuple[int, int]] = []
    check(
        resolve_dataset(str(pictures)),
        reading=GUIDE_READING,
        overrides=DatasetOverrides(),
        depth=Depth.THOROUGH,
        progress=lambda done, all_: told.append((done, all_)),
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


FAST_THEN_SLOW = [number / 30 for number in range(30)] + [1 + number / 15 for number in range(30)]


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("source_fps", [None, 20.0])
def test_a_clip_of_variable_frame_rate_is_named_as_one(tmp_path: Path, ending: str, source_fps: float | None) -> None:
    """No source_fps is right for it: the trainer takes frames as evenly spaced, whatever their times."""
    clip_at(tmp_path / f"a.{ending}", FAST_THEN_SLOW, source_fps=source_fps)
    (found,) = [each for each in look_at(tmp_path).problems if each.kind is ProblemKind.FRAME_RATE]
    assert found.what.startswith("has a variable frame rate (20")
    assert "ffmpeg -i IN -vf fps=16" in found.fix
    assert "source_fps =" not in found.fix
    planned = fix.plan(look_at(tmp_path))
    assert planned.fixes == planned.skipped == ()


@pytest.mark.parametrize("dropped", [0, 1])
def test_a_clip_of_steady_rate_is_not_variable_for_one_dropped_frame(tmp_path: Path, dropped: int) -> None:
    clip_at(tmp_path / "a.mp4", [number / 30 for number in range(60) if number != 20 * dropped])
    (found,) = [each for each in look_at(tmp_path).problems if each.kind is ProblemKind.FRAME_RATE]
    assert "variable" not in found.what


def test_a_caption_in_another_case_is_named_and_renamed(pictures: Path) -> None:
    (pictures / "a.png").rename(pictures / "UP.PNG")
    (pictures / "a.txt").rename(pictures / "UP.TXT")
    text = (pictures / "UP.TXT").read_bytes()
    (found,) = [each for each in look_at(pictures).problems if each.kind is ProblemKind.MISSING_CAPTION]
    assert found.line.endswith(
        "UP.PNG: has no caption: the trainer expects UP.txt, and UP.TXT exists. Rename it, or use --fix."
    )
    assert fix_all(pictures) == ["renamed to UP.txt"]
    assert (pictures / "UP.txt").read_bytes() == text
    assert not (pictures / "UP.TXT").exists()
    assert (pictures / fix.BACKUP / "now" / "UP.TXT").read_bytes() == text
    assert {each.kind for each in look_at(pictures).problems} <= {ProblemKind.NEAR_DUPLICATE}


@pytest.mark.parametrize("is_taken", [False, True])
def test_a_caption_is_renamed_where_the_disk_has_no_hard_links(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, is_taken: bool
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    (pictures / "a.txt").rename(pictures / "a.TXT")
    planned = fix.plan(look_at(pictures))
    monkeypatch.setattr(os, "link", refuse)
    if is_taken:
        (pictures / "a.txt").write_text("another program's")
        with fix.locked({pictures}), pytest.raises(FileExistsError):
            fix.apply(planned.fixes[0], "now")
        assert (pictures / "a.txt").read_text() == "another program's"
        assert (pictures / "a.TXT").read_text() == "a drawing"
    else:
        assert fix_all(pictures) == ["renamed to a.txt"]
        assert (pictures / "a.txt").read_text() == "a drawing"
        assert not (pictures / "a.TXT").exists()
    assert (pictures / fix.BACKUP / "now" / "a.TXT").read_text() == "a drawing"


def test_each_dataset_of_a_folder_gives_its_captions_its_own_extension(pictures: Path) -> None:
    clip(pictures / "c.mp4", 16)
    (pictures / "c.txt").rename(pictures / "c.CAP")
    (pictures / "a.txt").rename(pictures / "a.TXT")
    (pictures / "dataset.toml").write_text(
        f"[[datasets]]\nimage_directory = '{pictures}'\ncaption_extension = '.txt'\n"
        f"cache_directory = '{pictures}/c1'\n"
        f"[[datasets]]\nvideo_directory = '{pictures}'\ncaption_extension = '.cap'\n"
        f"cache_directory = '{pictures}/c2'\n"
    )
    assert sorted(fix_all(pictures)) == ["renamed to a.txt", "renamed to c.cap"]
    assert (pictures / "c.cap").read_text() == "a lamp"


def test_where_every_caption_is_in_another_case_each_is_named_and_training_stops(pictures: Path) -> None:
    for path in pictures.glob("*.txt"):
        path.rename(path.with_suffix(".TXT"))
    for reading in (GUIDE_READING, NEWEST_READING):
        found = check(
            resolve_dataset(str(pictures)), reading=reading, overrides=DatasetOverrides(resolution=(320, 320))
        )
        stops = [each.kind for each in found.problems if each.severity is Severity.STOPS]
        assert stops == [ProblemKind.MISSING_CAPTION] * 2
    assert len(fix_all(pictures)) == 2
    assert {each.kind for each in look_at(pictures).problems} <= {ProblemKind.NEAR_DUPLICATE}


@pytest.mark.parametrize("files", [("up.txt", "UP.TXT"), ("up.mp4", "up.txt"), ("Up.png", "up.TXT")])
def test_a_caption_that_may_be_anothers_is_not_renamed(pictures: Path, files: tuple[str, ...]) -> None:
    """Two candidates, the caption of a clip, or two pictures that could mean it: nobody knows which is meant."""
    draw(pictures / "UP.PNG", (320, 300), caption=None)
    for name in files:
        if name.endswith(".png"):
            draw(pictures / name, (320, 310), caption=None)
        else:
            (pictures / name).write_text("words")
    assert fix_all(pictures) == []
    missing = {each.path: each for each in look_at(pictures).problems if each.kind is ProblemKind.MISSING_CAPTION}
    assert missing[pictures / "UP.PNG"].fix == "Write UP.txt beside it"


def test_the_command_that_fixes_is_named_only_where_it_can_help(pictures: Path) -> None:
    def command() -> str | None:
        inventory = look_at(pictures).inventory
        assert inventory is not None
        return fix.command_for(inventory)

    (pictures / "a.txt").write_bytes("un café à Orléans".encode("cp1252"))
    assert command() == f"wan-train dataset check {pictures} --fix"
    (pictures / "a.txt").write_bytes("日本".encode("euc-jp"))
    assert command() is None
    (pictures / "a.txt").unlink()
    assert command() is None

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from wan_train.dataset.config import load
from wan_train.dataset.layout import latent_bytes, summary, text_bytes
from wan_train.dataset.model import NEWEST_READING, DatasetError, Problem, ProblemKind, Severity
from wan_train.dataset.scan import scan

from .support import config_for, draw


def problems_of(folder: Path, extra: str = "") -> tuple[Problem, ...]:
    return scan(config_for(folder, extra)).problems


def only(folder: Path, extra: str = "") -> Problem:
    (problem,) = problems_of(folder, extra)
    return problem


def test_captioned_pictures_are_counted_measured_and_without_complaint(pictures: Path) -> None:
    inventory = scan(config_for(pictures))
    assert inventory.problems == ()
    inventory.require()
    (found,) = inventory.subsets
    assert [(item.path.name, item.width, item.height, item.caption_characters) for item in found.items] == [
        ("a.png", 320, 320, 9),
        ("b.jpg", 640, 320, 9),
    ]


@pytest.mark.parametrize("ending", [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".PNG", ".JPG", ".BMP"])
def test_endings_are_seen_in_lower_and_in_upper_case(tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    draw(folder / f"x{ending}", (64, 64))
    assert len(scan(config_for(folder)).subsets[0].items) == 1


@pytest.mark.parametrize("name", ["x.Png", "x.gif", "x.tiff"])
def test_pictures_the_trainer_passes_over_are_named(pictures: Path, name: str) -> None:
    draw(pictures / name, (64, 64))
    kinds = {(problem.kind, problem.severity) for problem in problems_of(pictures)}
    assert (ProblemKind.IGNORED_FILE, Severity.LOSES) in kinds
    assert len(scan(config_for(pictures)).subsets[0].items) == 2


def test_avif_is_read_by_the_newer_trainer_only(pictures: Path) -> None:
    draw(pictures / "x.avif", (320, 320))
    assert only(pictures).kind is ProblemKind.IGNORED_FILE
    newer = scan(config_for(pictures), reading=NEWEST_READING)
    assert newer.problems == ()
    assert len(newer.subsets[0].items) == 3


def test_hidden_files_and_the_cache_are_not_material(pictures: Path) -> None:
    draw(pictures / ".thumb.png", (64, 64), caption=None)
    (pictures / "cache").mkdir()
    draw(pictures / "cache" / "x.png", (64, 64), caption=None)
    assert problems_of(pictures) == ()


def test_an_empty_folder_stops_and_says_where_the_pictures_may_be(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "inner").mkdir(parents=True)
    assert only(folder).kind is ProblemKind.EMPTY_DATASET
    draw(folder / "inner" / "x.png", (64, 64))
    assert str(folder / "inner") in only(folder).fix
    with pytest.raises(DatasetError, match="contains no pictures"):
        scan(config_for(folder)).require()


def test_videos_in_a_picture_dataset_are_pointed_out(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "x.mp4").touch()
    assert only(folder).fix == "It contains 1 video; use video_directory"
    (folder / "y.mp4").touch()
    assert only(folder).fix == "It contains 2 videos; use video_directory"


def test_a_missing_caption_stops_one_trainer_and_costs_the_other_a_picture(pictures: Path) -> None:
    (pictures / "b.txt").unlink()
    problem = only(pictures)
    assert (problem.kind, problem.severity) == (ProblemKind.MISSING_CAPTION, Severity.STOPS)
    assert "Write b.txt beside it" in problem.line
    newer = scan(config_for(pictures), reading=NEWEST_READING)
    assert [problem.severity for problem in newer.problems] == [Severity.LOSES]
    assert [item.path.name for item in newer.subsets[0].items] == ["a.png"]
    newer.require()


def test_no_captions_at_all_is_one_problem_and_stops_both_trainers(pictures: Path) -> None:
    (pictures / "a.txt").unlink()
    (pictures / "b.txt").unlink()
    for inventory in (scan(config_for(pictures)), scan(config_for(pictures), reading=NEWEST_READING)):
        (problem,) = inventory.problems
        assert (problem.kind, problem.severity) == (ProblemKind.NO_CAPTIONS, Severity.STOPS)
        assert problem.what == "has no .txt caption for any of 2 files"
    (pictures / "b.jpg").unlink()
    assert only(pictures).what == "has no .txt caption for its one file"


@pytest.mark.parametrize(
    ("data", "kind", "severity"),
    [
        (b"", ProblemKind.EMPTY_CAPTION, Severity.HARMS),
        (b" \n\t ", ProblemKind.EMPTY_CAPTION, Severity.HARMS),
        (b"\xef\xbb\xbfa cat", ProblemKind.CAPTION_ENCODING, Severity.NOTE),
        (b"caf\xe9", ProblemKind.CAPTION_ENCODING, Severity.STOPS),
        ("a cat".encode("utf-16"), ProblemKind.CAPTION_ENCODING, Severity.STOPS),
        (b"a\0cat", ProblemKind.CAPTION_ENCODING, Severity.HARMS),
    ],
)
def test_captions_are_read(pictures: Path, data: bytes, kind: ProblemKind, severity: Severity) -> None:
    (pictures / "a.txt").write_bytes(data)
    problem = only(pictures)
    assert (problem.kind, problem.severity, problem.path) == (kind, severity, pictures / "a.txt")


def test_a_caption_without_a_picture_is_noted(pictures: Path) -> None:
    (pictures / "c.txt").write_text("alone")
    assert (only(pictures).kind, only(pictures).severity) == (ProblemKind.ORPHAN_CAPTION, Severity.NOTE)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp"])
def test_a_cut_off_picture_is_found(pictures: Path, ending: str) -> None:
    path = draw(pictures / f"cut.{ending}", (300, 200))
    whole = path.read_bytes()
    for kept in (len(whole) // 2, len(whole) - 40 if ending != "bmp" else len(whole) - 700):
        path.write_bytes(whole[:kept])
        problem = only(pictures)
        assert (problem.kind, problem.severity) == (ProblemKind.TRUNCATED_MEDIA, Severity.STOPS)
        assert "cut off" in problem.what


def test_a_lost_end_mark_or_trailing_bytes_alone_do_not_condemn_a_picture(pictures: Path) -> None:
    """What the decoder still reads whole is trained, so it is no problem."""
    path = draw(pictures / "tail.jpg", (300, 200))
    path.write_bytes(path.read_bytes() + b"\0" * 200_000)
    path = draw(pictures / "end.png", (300, 200))
    path.write_bytes(path.read_bytes()[:-12])
    assert problems_of(pictures) == ()


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"\xff\xd8\xff\xe0", b"BM"])
def test_what_only_pretends_to_be_a_picture_stops(pictures: Path, data: bytes) -> None:
    (pictures / "fake.png").write_bytes(data)
    (pictures / "fake.txt").write_text("fake")
    assert (only(pictures).kind, only(pictures).severity) == (ProblemKind.UNREADABLE_MEDIA, Severity.STOPS)


def test_a_decompression_bomb_is_a_problem_not_a_warning(pictures: Path) -> None:
    for name, side, severity in (("large", 10_000, Severity.NOTE), ("bomb", 50_000, Severity.STOPS)):
        path = pictures / f"{name}.png"
        path.write_bytes(png_of_size(side, side))
        path.with_suffix(".txt").write_text("huge")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = only(pictures)
        assert (found.kind, found.severity) == (ProblemKind.TOO_LARGE, severity)
        path.unlink()
        path.with_suffix(".txt").unlink()


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_folders_and_broken_links_with_a_pictures_name_stop(pictures: Path) -> None:
    (pictures / "folder.png").mkdir()
    (pictures / "folder.txt").write_text("x")
    (pictures / "link.png").symlink_to(pictures / "gone.png")
    (pictures / "link.txt").write_text("x")
    (pictures / "loop.png").symlink_to(pictures / "loop.png")
    (pictures / "loop.txt").write_text("x")
    found = problems_of(pictures)
    assert [problem.severity for problem in found] == [Severity.STOPS] * 3
    assert {problem.path for problem in found} == {pictures / f"{n}.png" for n in ("folder", "link", "loop")}


def test_pipes_and_devices_stop_the_training_not_the_check(pictures: Path) -> None:
    os.mkfifo(pictures / "c.png")
    (pictures / "c.txt").write_text("a cat")
    (pictures / "a.txt").unlink()
    os.mkfifo(pictures / "a.txt")
    (pictures / "b.txt").unlink()
    (pictures / "b.txt").symlink_to("/dev/zero")
    found = {problem.path.name for problem in scan(config_for(pictures)).stopping if problem.path}
    assert found == {"a.txt", "b.txt", "c.png"}


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_record_with_a_name_that_no_file_can_have_stops(tmp_path: Path, kind: str) -> None:
    records = [f'{{"{kind}_path": "/x{odd}.png", "caption": "x"}}' for odd in ("\\ud800", "\\u0000")]
    found = scan(load(jsonl_config(tmp_path, kind, records)))
    assert len(found.stopping) == 2
    assert all(problem.line.isprintable() for problem in found.stopping)


def test_of_two_pictures_with_one_stem_and_size_one_is_lost(pictures: Path) -> None:
    draw(pictures / "a.jpg", (320, 320))
    problem = only(pictures)
    assert (problem.kind, problem.severity) == (ProblemKind.SAME_STEM, Severity.LOSES)
    assert summary(scan(config_for(pictures))).items_with_repeats == 2


def test_one_stem_in_two_sizes_is_trained_twice_and_noted(pictures: Path) -> None:
    draw(pictures / "a.jpg", (320, 640))
    assert (only(pictures).kind, only(pictures).severity) == (ProblemKind.SAME_STEM, Severity.NOTE)
    assert summary(scan(config_for(pictures))).items_with_repeats == 3


@pytest.mark.parametrize(("captions", "severity"), [(("a", "a"), Severity.NOTE), (("a", "b"), Severity.HARMS)])
def test_records_of_one_stem_share_a_caption_cache(
    pictures: Path, tmp_path: Path, captions: tuple[str, str], severity: Severity
) -> None:
    (tmp_path / "more").mkdir()
    paths = (pictures / "a.png", draw(tmp_path / "more" / "a.png", (320, 640), caption=None))
    records = [
        json.dumps({"image_path": str(path), "caption": words}) for path, words in zip(paths, captions, strict=True)
    ]
    (found,) = scan(load(jsonl_config(tmp_path, "image", records))).problems
    assert (found.kind, found.severity) == (ProblemKind.SAME_STEM, severity)


@pytest.mark.parametrize(("size", "severity"), [((320, 320), Severity.LOSES), ((640, 320), Severity.NOTE)])
def test_clips_of_one_stem_share_a_cache_only_in_one_trained_size(
    tmp_path: Path, size: tuple[int, int], severity: Severity
) -> None:
    records = []
    for folder, frame in (("one", (320, 320)), ("other", size)):
        clip = tmp_path / folder / "a"
        clip.mkdir(parents=True)
        draw(clip / "0.png", frame, caption=None)
        records.append(json.dumps({"video_path": str(clip), "caption": "a cat"}))
    inventory = scan(load(jsonl_config(tmp_path, "video", records)))
    (found,) = inventory.problems
    assert (found.kind, found.severity) == (ProblemKind.SAME_STEM, severity)
    assert summary(inventory).items_with_repeats == (1 if severity is Severity.LOSES else 2)


def test_a_name_too_long_for_its_cache_file_stops(pictures: Path) -> None:
    draw(pictures / f"{'n' * 229}.png", (300, 320))
    assert problems_of(pictures) == ()
    draw(pictures / f"{'m' * 230}.png", (320, 300))
    assert (only(pictures).kind, only(pictures).severity) == (ProblemKind.LONG_NAME, Severity.STOPS)


def test_names_beyond_what_the_file_system_takes_are_problems_not_crashes(pictures: Path, tmp_path: Path) -> None:
    (pictures / f"{'n' * 251}.png").touch()
    config = config_for(pictures)
    config.path.write_text(config.text.replace('".txt"', '".caption"').replace("/cache'", f"/{'c' * 300}/cache'"))
    assert scan(load(config.path)).stopping
    record = json.dumps({"video_path": f"{tmp_path}/{'v' * 300}", "caption": "x"})
    assert scan(load(jsonl_config(tmp_path, "video", [record]))).stopping


def test_a_picture_smaller_than_a_patch_stops_only_where_it_is_not_enlarged(pictures: Path) -> None:
    draw(pictures / "tiny.png", (4, 40))
    assert {problem.severity for problem in problems_of(pictures)} == {Severity.HARMS}
    found = only(pictures, "bucket_no_upscale = true")
    assert (found.kind, found.severity) == (ProblemKind.TOO_SMALL, Severity.STOPS)


@pytest.mark.parametrize("name", ["a b", "it's", 'say "x"', "new\nline", "-x", "\u65e5\u672c", "[x]", "a.b.c", "$(id)"])
def test_hostile_names_are_ordinary_pictures(pictures: Path, name: str) -> None:
    path = pictures / f"{name}.png"
    draw(pictures / "plain.png", (300, 320)).rename(path)
    (pictures / "plain.txt").rename(pictures / f"{name}.txt")
    assert problems_of(pictures) == ()
    (pictures / f"{name}.txt").unlink()
    assert only(pictures).line.isprintable()


def test_pillow_is_imported_only_when_a_picture_is_looked_at() -> None:
    code = (
        "import sys, wan_train.dataset.scan, wan_train.dataset.resolve, wan_train.dataset.writing\n"
        "print([name for name in ('PIL', 'av', 'torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_many_problems_of_a_kind_are_counted_not_all_listed(pictures: Path) -> None:
    for number in range(25):
        (pictures / f"{number}.png").touch()
        (pictures / f"{number}.txt").write_text("x")
    inventory = scan(config_for(pictures))
    assert len(inventory.stopping) == 25
    with pytest.raises(DatasetError) as caught:
        inventory.require()
    assert "25 problems" in caught.value.message
    assert "and 15 more of this kind" in caught.value.message
    assert len(caught.value.problems) == 25


def test_videos_beside_the_pictures_are_noted_unless_a_dataset_takes_them(pictures: Path) -> None:
    (pictures / "clip.mp4").write_bytes(b"not really")
    (pictures / "clip.txt").write_text("a clip")
    assert "also contains 1 video" in only(pictures).line
    config = config_for(pictures)
    both = config.text + (f"[[datasets]]\nvideo_directory = '{pictures}'\ncache_directory = '{pictures}/cache_video'\n")
    config.path.write_text(both)
    kinds = {problem.kind for problem in scan(load(config.path)).problems}
    assert ProblemKind.IGNORED_FILE not in kinds


def test_a_subfolder_that_is_a_dataset_itself_is_not_called_unread(pictures: Path) -> None:
    inner = pictures / "inner"
    inner.mkdir()
    draw(inner / "x.png", (300, 320))
    assert "is a subfolder with media" in only(pictures).line
    config = config_for(pictures)
    config.path.write_text(
        config.text + f"[[datasets]]\nimage_directory = '{inner}'\ncache_directory = '{inner}/cache'\n"
    )
    assert scan(load(config.path)).problems == ()


def test_an_ending_with_two_dots_is_found_by_the_older_trainer_only(pictures: Path) -> None:
    config = config_for(pictures)
    config.path.write_text(config.text.replace('".txt"', '".tags.txt"'))
    for stem in ("a", "b"):
        (pictures / f"{stem}.txt").rename(pictures / f"{stem}.tags.txt")
    scan(load(config.path)).require()
    with pytest.raises(DatasetError, match="finds no captions with the extension"):
        scan(load(config.path), reading=NEWEST_READING).require()


def jsonl_config(tmp_path: Path, kind: str, lines: list[str]) -> Path:
    (tmp_path / "items.jsonl").write_text("\n".join(lines) + "\n")
    path = tmp_path / "dataset.toml"
    path.write_text(
        f"[[datasets]]\n{kind}_jsonl_file = '{tmp_path}/items.jsonl'\ncache_directory = '{tmp_path}/c'\n"
        "enable_bucket = true\nresolution = [320, 320]\n"
    )
    return path


def test_a_folder_of_pictures_may_be_a_video(pictures: Path, tmp_path: Path) -> None:
    for number in range(9):
        draw(pictures / f"{number:03}.png", (320, 320), caption=None)
    record = json.dumps({"video_path": str(pictures), "caption": "a cat"})
    path = jsonl_config(tmp_path, "video", [record])
    path.write_text(path.read_text() + "target_frames = [1, 9, 45]\n")
    inventory = scan(load(path))
    assert [item.frames for item in inventory.subsets[0].items] == [11]
    counted = summary(inventory)
    assert counted.items_with_repeats == 2
    assert [bucket.frames for bucket in counted.subsets[0].buckets] == [1, 9]


def videos_config(folder: Path) -> Path:
    path = folder / "dataset.toml"
    path.write_text(f"[[datasets]]\nvideo_directory = '{folder}'\ncaption_extension = '.txt'\ntarget_frames = [1]\n")
    return path


def test_a_clip_without_frames_is_named_and_needs_no_pyav(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "x.avi"), "w") as file:
        stream = file.add_stream("mpeg4", rate=16)
        stream.width, stream.height = 160, 96
        file.start_encoding()
    (tmp_path / "x.txt").write_text("a lamp")
    (found,) = [each for each in scan(load(videos_config(tmp_path))).problems if each.severity is Severity.NOTE]
    assert (found.kind, found.path) == (ProblemKind.FRAMES_UNKNOWN, tmp_path / "x.avi")
    assert "PyAV" not in found.sentences


@pytest.mark.parametrize(("names", "said"), [("x", "1 video is unknown"), ("xy", "2 videos is unknown")])
def test_without_pyav_the_length_of_clips_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str, said: str
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for name in names:
        (tmp_path / f"{name}.mp4").write_bytes(b"video")
        (tmp_path / f"{name}.txt").write_text("a lamp")
    (found,) = [each for each in scan(load(videos_config(tmp_path))).problems if "length" in each.what]
    assert (found.kind, found.severity) == (ProblemKind.FRAMES_UNKNOWN, Severity.NOTE)
    assert said in found.what
    assert "pip install av" in found.fix


def test_repeats_buckets_and_batches_are_summed_up(pictures: Path) -> None:
    for number in range(3):
        draw(pictures / f"{number}.png", (400, 400), caption="x" * 300)
    inventory = scan(config_for(pictures, "num_repeats = 3\nbatch_size = 2"))
    counted = summary(inventory)
    assert (counted.files, counted.captions, counted.items_with_repeats) == (5, 5, 15)
    assert [(bucket.width, bucket.height, bucket.items) for bucket in counted.subsets[0].buckets] == [
        (320, 320, 4),
        (448, 224, 1),
    ]
    assert counted.batches_per_epoch == 6 + 2
    assert counted.latent_bytes == 4 * latent_bytes(320, 320) + latent_bytes(448, 224)
    assert counted.text_bytes == 3 * text_bytes(300) + 2 * text_bytes(9)
    assert counted.cache_bytes == counted.latent_bytes + counted.text_bytes


def test_cache_sizes_agree_with_the_trainers_files() -> None:
    assert latent_bytes(960, 960) == 460_800
    assert latent_bytes(960, 960, 45) == 12 * 460_800
    assert latent_bytes(960, 960, image_to_video=True) == 460_800 * 36 // 16
    assert text_bytes(10_000) == 512 * 8192


pieces = st.sampled_from(["a", "b.c", "d e", "f[1]", "g\n", "\u00e9", ".h", "-i", "j'", "x" * 200])
endings = st.sampled_from([".png", ".PNG", ".Png", ".jpg", ".txt", ".gif", "", ".mp4", ".webp", ".json"])
contents = st.sampled_from([b"", b"x", b"\xff", b"\x89PNG\r\n\x1a\n", png_of_size(20, 30), png_of_size(10_000, 10_000)])


@given(
    files=st.dictionaries(st.tuples(pieces, endings).map("".join), contents, max_size=10), seed=st.integers(0, 10**9)
)
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_folder_is_described_without_an_exception(tmp_path: Path, files: dict[str, bytes], seed: int) -> None:
    folder = tmp_path / f"{seed}-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    inventory = scan(config_for(folder))
    summary(inventory)
    assert all(problem.line.isprintable() for problem in inventory.problems)
    assert inventory.stopping or inventory.subsets[0].items

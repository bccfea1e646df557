from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from wan_train.base.errors import ExitCode
from wan_train.base.text import visible
from wan_train.dataset.config import load
from wan_train.dataset.model import (
    GUIDE_READING,
    NEWEST_READING,
    DatasetError,
    FrameExtraction,
    MediaKind,
    ProblemKind,
    Severity,
    TrainerReading,
)
from wan_train.dataset.schema import UNUSED
from wan_train.dataset.snapshot import snapshot_text

Write = Callable[[str], Path]


def refusal(path: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        load(path)
    assert caught.value.exit_code is ExitCode.BAD_INPUT
    assert caught.value.problems
    return caught.value.message


def sound(folder: Path, lines: str = "", general: str = "") -> str:
    return (
        f'[general]\ncaption_extension = ".txt"\n{general}\n'
        f"[[datasets]]\nimage_directory = '{folder}'\ncache_directory = '{folder}/cache'\n{lines}\n"
    )


def test_values_of_an_entry_win_over_general_and_both_over_the_trainers_defaults(
    pictures: Path, configured: Write
) -> None:
    text = sound(pictures, "batch_size = 3", "batch_size = 2\nnum_repeats = 7")
    (subset,) = load(configured(text)).datasets
    assert subset.kind is MediaKind.IMAGE
    assert subset.directory == pictures
    assert (subset.batch_size, subset.num_repeats) == (3, 7)
    assert subset.resolution == (960, 544)
    assert subset.enable_bucket is False


def test_one_number_is_a_square_resolution(pictures: Path, configured: Write) -> None:
    (subset,) = load(configured(sound(pictures, "resolution = 512"))).datasets
    assert subset.resolution == (512, 512)


def test_a_video_dataset_has_its_own_settings(pictures: Path, configured: Write) -> None:
    text = f"""
[[datasets]]
video_directory = '{pictures}'
caption_extension = ".txt"
cache_directory = '{pictures}/v'
target_frames = [1, 25]
frame_extraction = "uniform"
frame_sample = 4
source_fps = 30.0
"""
    (subset,) = load(configured(text)).datasets
    assert subset.kind is MediaKind.VIDEO
    assert subset.video is not None
    assert subset.video.target_frames == (1, 25)
    assert subset.video.frame_extraction is FrameExtraction.UNIFORM
    assert subset.video.source_fps == 30.0
    assert subset.video.max_frames == 129


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("resoluton = [960, 960]", "datasets[0].resoluton: is not a key of an image dataset. Did you mean resolution?"),
        ('batch_size = "1"', "datasets[0].batch_size: expected a whole number, found text in quotes"),
        ("batch_size = true", "datasets[0].batch_size: expected a whole number"),
        ("num_repeats = 0", "datasets[0].num_repeats: is 0. Use 1 or more"),
        ("enable_bucket = 1", "datasets[0].enable_bucket: expected true or false, found a whole number"),
        ("resolution = [960]", "datasets[0].resolution: expected [width, height]"),
        ("resolution = [960, 960.0]", "datasets[0].resolution: expected [width, height]"),
        ("resolution = [960, -1]", "datasets[0].resolution: is [960, -1]"),
        ("resolution = [100, 100]", "multiples of 16 where enable_bucket is off"),
        ("resolution = [16, 16]\nenable_bucket = true", "at least 32x32 pixels"),
        ('caption_extension = "txt"', 'Write ".txt"'),
        ("target_frames = [1]", "datasets[0].target_frames: is for video datasets only"),
        ("image_directori = '/x'", "datasets[0].image_directori: is not a key of an image dataset"),
        ("video_directory = '/tmp'", "has both image_directory and video_directory"),
        ("image_jsonl_file = '/x.jsonl'", "has both image_directory and image_jsonl_file"),
    ],
)
def test_a_wrong_line_is_named_with_its_path_and_its_mend(
    pictures: Path, configured: Write, lines: str, said: str
) -> None:
    message = refusal(configured(sound(pictures, lines)))
    assert said in message
    assert "1 problem" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "contains no dataset"),
        ("[general]\nresolution = [960, 960]", "contains no dataset"),
        ("resolution = 5\n[[datasets]]\nimage_directory='/x'", "general.resolution"),
        ("image_directory = '/x'", "datasets[0].image_directory"),
        (
            "[dataset]\nimage_directory = '/x'",
            "dataset: is unknown at the top of a dataset.toml. Did you mean datasets?",
        ),
        ("[datasets]\nimage_directory = '/x'", "datasets: must be a list of tables"),
        ("general = 3", "general: must be a table"),
        ("[general]\nimage_directory = '/x'", "general.image_directory: is not allowed under [general]"),
        ("[[datasets]]\nnum_repeats = 2", "datasets[0]: has no folder of pictures or videos"),
        ("[[datasets]]\nimage_directory = ''", "datasets[0].image_directory: is empty"),
        ("[[datasets]]\nvideo_directory = '/x'\nsource_fps = 30", "Write 30.0"),
        ("[[datasets]]\nvideo_directory = '/x'\nsource_fps = inf", "datasets[0].source_fps"),
        ("[[datasets]]\nvideo_directory = '/x'\nframe_extraction = 'tail'", "Use one of head, chunk, slide"),
        ("[[datasets]]\nvideo_directory = '/x'\ntarget_frames = []", "datasets[0].target_frames"),
        ("[[datasets]]\nimage_jsonl_file = '/x.jsonl'", "datasets[0].cache_directory: is required"),
        ("[general]\nresolution = [960, 960\n[[datasets]]", "is not valid TOML: 1 problem\n  "),
        ("[general]\na = 1\na = 2\n", "Duplicate key (at line 3, column 6)"),
        ("x = " + "[" * 5000, "nested too deeply"),
    ],
)
def test_a_wrong_file_is_explained(configured: Write, text: str, said: str) -> None:
    assert said in refusal(configured(text))


def test_all_problems_come_at_once(pictures: Path, configured: Write) -> None:
    text = f"""
seed = 5
[general]
batch_size = 0
cache_directory = "x"
[[datasets]]
image_directory = '{pictures}'
flip = true
[[datasets]]
resolution = "big"
"""
    with pytest.raises(DatasetError) as caught:
        load(configured(text))
    keys = {problem.key for problem in caught.value.problems}
    assert keys == {
        "seed",
        "general.batch_size",
        "general.cache_directory",
        "datasets[0].flip",
        "datasets[1]",
        "datasets[1].resolution",
    }
    assert all(problem.key in caught.value.message for problem in caught.value.problems)


def test_a_missing_folder_and_a_missing_caption_ending_are_named(tmp_path: Path, configured: Write) -> None:
    message = refusal(configured(f"[[datasets]]\nimage_directory = '{tmp_path}/gone'"))
    assert f"{tmp_path}/gone: does not exist" in message
    assert "datasets[0].caption_extension: is missing" in message


def test_a_file_in_place_of_a_folder_is_named(pictures: Path, configured: Write) -> None:
    assert "is a file, not a folder" in refusal(configured(sound(pictures / "a.png")))


def test_two_datasets_may_not_share_a_cache_even_through_a_link(pictures: Path, configured: Write) -> None:
    other = pictures.parent / "other"
    other.mkdir()
    (pictures.parent / "link").symlink_to(pictures)
    text = sound(pictures) + f"[[datasets]]\nimage_directory='{other}'\ncache_directory='{pictures}/../link/cache'\n"
    assert "datasets[1].cache_directory" in (message := refusal(configured(text)))
    assert "is also the cache of datasets[0]" in message


@pytest.mark.parametrize("character", "[]*?")
def test_a_cache_path_the_trainer_would_glob_is_refused(pictures: Path, configured: Write, character: str) -> None:
    text = sound(pictures).replace("/cache'", f"/ca{character}che'")
    assert f"contains {character}; the trainer reads that as a pattern" in refusal(configured(text))


def test_brackets_in_the_picture_folder_alone_are_fine(tmp_path: Path, configured: Write) -> None:
    folder = tmp_path / "set [1] *?"
    folder.mkdir()
    text = sound(folder).replace(f"{folder}/cache", str(tmp_path / "cache"))
    assert load(configured(text)).datasets[0].directory == folder


def test_relative_paths_are_taken_from_the_files_folder_then_from_the_working_directory(
    pictures: Path, configured: Write, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "more").mkdir(parents=True)
    text = (
        '[general]\ncaption_extension = ".txt"\n'
        '[[datasets]]\nimage_directory = "pictures"\ncache_directory = "pictures/cache"\n'
        '[[datasets]]\ncache_directory = "more/cache"\nimage_directory = "more"\n'
    )
    first, second = load(configured(text), cwd=elsewhere).datasets
    assert (first.directory, first.cache_directory) == (pictures, pictures / "cache")
    assert (second.directory, second.cache_directory) == (elsewhere / "more", elsewhere / "more" / "cache")


@pytest.mark.parametrize("reading", [GUIDE_READING, NEWEST_READING])
@pytest.mark.parametrize("key", sorted(UNUSED))
def test_keys_of_other_models_are_noted_whatever_their_value_and_the_trainers_version(
    pictures: Path, configured: Write, key: str, reading: TrainerReading
) -> None:
    config = load(configured(sound(pictures, f"{key} = '/nowhere'")), reading=reading)
    (found,) = config.remarks
    assert (found.kind, found.severity) == (ProblemKind.UNUSED_KEY, Severity.NOTE)
    assert found.line.startswith(f"datasets[0].{key}: is not used by Wan 2.2 A14B; the run ignores it.")
    assert key not in snapshot_text(config)


def test_a_folder_on_windows_is_called_one(pictures: Path, configured: Write) -> None:
    for path in (r"C:\cats", "D:/cats/img", r"\\box\share"):
        message = refusal(configured(sound(pictures).replace(str(pictures), path, 1)))
        assert "is a Windows path, not a path on this machine" in message


def test_relative_paths_are_looked_for_where_the_trainer_is_started_too(configured: Write, tmp_path: Path) -> None:
    root = tmp_path / "musubi-tuner"
    (root / "dataset" / "img").mkdir(parents=True)
    text = (
        '[[datasets]]\nimage_directory = "dataset/img"\ncache_directory = "dataset/cache"\ncaption_extension = ".txt"\n'
    )
    (subset,) = load(configured(text), reading=replace(GUIDE_READING, root=root)).datasets
    assert subset.directory == root / "dataset/img"
    assert subset.cache_directory == root / "dataset/cache"


def test_harmless_oddities_are_remarks_not_refusals(pictures: Path, configured: Write) -> None:
    text = f"""
[[datasets]]
video_directory = '{pictures}'
caption_extension = ".txt"
target_frames = [1, 24]
frame_extraction = "chunk"
"""
    remarks = load(configured(text)).remarks
    assert [remark.severity for remark in remarks] == [Severity.NOTE, Severity.HARMS]
    assert "[1, 24] down to [1, 21]" in remarks[0].line


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"# caf\xe9\n[general]\n", "line 1 is not UTF-8 (byte 0xe9)"),
        ("[general]\n".encode("utf-16"), "is UTF-16"),
        (b"[general]\n\0", "line 2 contains a NUL byte"),
    ],
)
def test_wrong_encodings_are_told_apart(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "dataset.toml"
    path.write_bytes(data)
    assert said in refusal(path)


def test_a_byte_order_mark_and_windows_line_ends_are_no_obstacle(pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "dataset.toml"
    path.write_bytes(b"\xef\xbb\xbf" + sound(pictures).replace("\n", "\r\n").encode())
    assert load(path).datasets[0].directory == pictures


@pytest.mark.parametrize("name", ["gone.toml", "folder.toml", "notes.txt"])
def test_what_is_not_a_dataset_toml_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    assert "cannot be read" in refusal(tmp_path / name)


def test_control_characters_in_names_are_made_visible(configured: Write) -> None:
    message = refusal(configured('[[datasets]]\nimage_directory = "/x\\u001b[2Jy\\n"\n"\\u001bkey" = 1'))
    assert "\x1b" not in message
    assert "\\x1bkey" in message


scalars = st.one_of(
    st.booleans(), st.integers(-5, 2000), st.floats(allow_nan=False), st.text(max_size=8).map(lambda t: f'"{t}"')
)
KEYS = """
resolution batch_size image_directory video_directory cache_directory target_frames zzz general datasets
frame_extraction source_fps caption_extension enable_bucket image_jsonl_file
"""
keys = st.sampled_from(KEYS.split())
values = st.one_of(scalars.map(lambda v: str(v).lower()), st.lists(scalars, max_size=3).map(str), st.text(max_size=10))
lines = st.one_of(
    st.tuples(keys, values).map(lambda pair: f"{pair[0]} = {pair[1]}"),
    st.sampled_from(["[general]", "[[datasets]]", "[datasets]", "[general.x]", "# c", "[[general]]"]),
    st.text(max_size=20),
)


@given(text=st.lists(lines, max_size=12).map("\n".join))
@hypothesis_settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_file_gives_anything_but_a_configuration_or_a_clear_refusal(tmp_path: Path, text: str) -> None:
    path = tmp_path / "dataset.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    refused: DatasetError | None = None
    try:
        assert load(path).datasets
    except DatasetError as error:
        refused = error
    if refused is not None:
        assert refused.problems
        assert all(visible(line) == line for line in refused.message.split("\n"))


@given(data=st.binary(max_size=300))
@hypothesis_settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_bytes_are_refused_in_words(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "dataset.toml"
    path.write_bytes(data)
    with pytest.raises(DatasetError):
        load(path)

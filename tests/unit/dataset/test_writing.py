from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from wan_train.dataset.config import load
from wan_train.dataset.model import DatasetError, MediaKind
from wan_train.dataset.writing import text_for_directory, write_for_directory


def test_a_folder_of_pictures_gets_exactly_the_guides_values(pictures: Path) -> None:
    assert tomllib.loads(text_for_directory(pictures)) == {
        "general": {
            "resolution": [960, 960],
            "caption_extension": ".txt",
            "batch_size": 1,
            "enable_bucket": True,
            "bucket_no_upscale": False,
        },
        "datasets": [{"image_directory": str(pictures), "cache_directory": f"{pictures}/cache", "num_repeats": 1}],
    }


def test_the_file_explains_itself(pictures: Path) -> None:
    text = text_for_directory(pictures)
    assert text.startswith("# What is trained.")
    assert "num_repeats = 1 # how often" in text
    assert "video" not in text


def test_what_is_written_is_accepted_and_never_overwritten(pictures: Path) -> None:
    target = pictures / "dataset.toml"
    text = write_for_directory(pictures, target)
    assert target.read_text() == text
    assert load(target).datasets[0].resolution == (960, 960)
    with pytest.raises(DatasetError, match="exists already"):
        write_for_directory(pictures, target)
    assert target.read_text() == text
    assert sorted(path.name for path in pictures.iterdir()) == ["a.png", "a.txt", "b.jpg", "b.txt", "dataset.toml"]


def test_a_folder_of_videos_gets_a_video_dataset(tmp_path: Path) -> None:
    (tmp_path / "clip.MP4").touch()
    (entry,) = tomllib.loads(text_for_directory(tmp_path))["datasets"]
    assert entry == {
        "video_directory": str(tmp_path),
        "cache_directory": f"{tmp_path}/cache",
        "target_frames": [1, 25, 45],
        "frame_extraction": "head",
        "num_repeats": 1,
    }


def test_pictures_and_videos_get_two_datasets_with_two_caches(pictures: Path) -> None:
    (pictures / "clip.mov").touch()
    target = pictures / "dataset.toml"
    write_for_directory(pictures, target)
    first, second = load(target).datasets
    assert (first.kind, second.kind) == (MediaKind.IMAGE, MediaKind.VIDEO)
    assert (first.cache_directory, second.cache_directory) == (pictures / "cache", pictures / "cache_video")


@pytest.mark.parametrize("name", ['a "quoted" name', "it's", "new\nline", "-x", "\u65e5\u672c\u8a9e", "tab\tand \x1b"])
def test_hostile_folder_names_survive(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "a.png").touch()
    target = folder / "dataset.toml"
    write_for_directory(folder, target)
    assert load(target).datasets[0].directory == folder


def test_a_folder_whose_cache_the_trainer_would_not_find_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "set [2]"
    folder.mkdir()
    (folder / "a.png").touch()
    with pytest.raises(DatasetError, match="reads that as a pattern"):
        write_for_directory(folder, tmp_path / "dataset.toml")
    assert not (tmp_path / "dataset.toml").exists()


def test_a_folder_name_toml_cannot_hold_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "a.png").touch()
    with pytest.raises(DatasetError, match="not UTF-8"):
        text_for_directory(folder)


def test_a_folder_without_media_or_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="contains no pictures and no videos"):
        text_for_directory(tmp_path)
    with pytest.raises(DatasetError, match="No such file or directory"):
        text_for_directory(tmp_path / "gone")


def test_a_target_that_cannot_be_written_is_refused(pictures: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset\.toml: No such file or directory"):
        write_for_directory(pictures, pictures / "gone" / "dataset.toml")

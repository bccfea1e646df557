"""`dataset write`: several folders and resolutions, comments that stay, and values as the trainer reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wan_train.dataset.config import load
from wan_train.dataset.model import DatasetConfig, DatasetError, DatasetPreset, FrameExtraction, MediaKind
from wan_train.dataset.writing import ConfigValues, compose, preset_path, preset_terms

from .support import draw


def written(folders: list[Path], values: ConfigValues, existing: str | None = None) -> tuple[str, DatasetConfig]:
    text = compose(folders, values, existing=existing)
    path = folders[0].parent / "written.toml"
    path.write_text(text, encoding="utf-8")
    return text, load(path)


def test_two_resolutions_are_two_datasets_with_two_caches(pictures: Path) -> None:
    text, config = written([pictures], ConfigValues(resolutions=((960, 960), (480, 480))))
    assert [subset.resolution for subset in config.datasets] == [(960, 960), (480, 480)]
    assert [subset.cache_directory.name for subset in config.datasets] == ["cache_960x960", "cache_480x480"]
    assert "\n\n[[datasets]]" in text
    assert text.count("# pictures and their captions") == 2


def test_folders_of_pictures_and_of_clips_go_into_one_file(pictures: Path, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "x.mp4").touch()
    values = ConfigValues(
        num_repeats=3,
        batch_size=2,
        target_frames=(1, 33),
        frame_extraction=FrameExtraction.UNIFORM,
        frame_sample=4,
        source_fps=30,
    )
    _, config = written([pictures, clips], values)
    assert [subset.kind for subset in config.datasets] == [MediaKind.IMAGE, MediaKind.VIDEO]
    assert {subset.batch_size for subset in config.datasets} == {2}
    assert {subset.num_repeats for subset in config.datasets} == {3}
    video = config.datasets[1].video
    assert video is not None
    assert (video.target_frames, video.frame_sample, video.source_fps) == ((1, 33), 4, 30.0)
    assert video.frame_extraction is FrameExtraction.UNIFORM


def test_what_is_there_stays_with_its_comments(pictures: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    draw(other / "x.png", (64, 64))
    existing = f"""# mine
[general]
resolution = [640, 640] # small
caption_extension = ".caption"
enable_bucket = true

[[datasets]] # cats
image_directory = "{pictures}"
cache_directory = "{tmp_path}/elsewhere" # a fast disk
num_repeats = 7
"""
    text, config = written([pictures, other], ConfigValues(batch_size=4), existing)
    for kept in ("# mine", "# small", "# cats", "# a fast disk", "num_repeats = 7", '".caption"'):
        assert kept in text
    assert [subset.num_repeats for subset in config.datasets] == [7, 1]
    assert {subset.batch_size for subset in config.datasets} == {4}
    assert config.datasets[1].directory == other
    again, _ = written([pictures, other], ConfigValues(batch_size=4), text)
    assert again == text


def test_of_several_resolutions_those_that_are_there_keep_their_caches(pictures: Path) -> None:
    two, _ = written([pictures], ConfigValues(resolutions=((960, 960), (480, 480))))
    _, config = written([pictures], ConfigValues(resolutions=((480, 480), (640, 640))), two)
    caches = {subset.resolution: subset.cache_directory.name for subset in config.datasets}
    assert caches[480, 480] == "cache_480x480"
    assert len(set(caches.values())) == 2
    _, config = written([pictures], ConfigValues(resolutions=((480, 480),)), two)
    assert [(subset.resolution, subset.cache_directory.name) for subset in config.datasets] == [
        ((480, 480), "cache_480x480")
    ]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (ConfigValues(source_fps=30.0), "is for clips"),
        (ConfigValues(batch_size=0), "batch_size"),
        (ConfigValues(resolutions=((8, 8),)), "resolution"),
        (ConfigValues(caption_extension="txt"), "has no leading dot"),
    ],
)
def test_what_would_not_work_is_refused(pictures: Path, values: ConfigValues, said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        compose([pictures], values, existing=None)


@pytest.mark.parametrize("existing", ["[[datasets", "datasets = []\n", "datasets = 3\n", ""])
def test_a_file_that_cannot_be_followed_is_refused_not_replaced(pictures: Path, existing: str) -> None:
    with pytest.raises(DatasetError, match="--output"):
        compose([pictures], ConfigValues(), existing=existing)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.tuples(st.integers(2, 60), st.integers(2, 60)), max_size=3, unique=True),
    batch_size=st.one_of(st.none(), st.integers(1, 8)),
    repeats=st.one_of(st.none(), st.integers(1, 8)),
)
def test_any_wishes_are_read_back_as_they_were_said(
    pictures: Path, sizes: list[tuple[int, int]], batch_size: int | None, repeats: int | None
) -> None:
    resolutions = tuple((16 * width, 16 * height) for width, height in sizes)
    values = ConfigValues(resolutions=resolutions, batch_size=batch_size, num_repeats=repeats)
    _, config = written([pictures], values)
    assert tuple(subset.resolution for subset in config.datasets) == (resolutions or ((960, 960),))
    assert len({subset.cache_directory for subset in config.datasets}) == len(config.datasets)
    for subset in config.datasets:
        assert (subset.batch_size, subset.num_repeats) == (batch_size or 1, repeats or 1)


SIZES = {
    DatasetPreset.QUALITY: ([960], [304]),
    DatasetPreset.BALANCED: ([640], [304]),
    DatasetPreset.TURBO: ([480], [208]),
    DatasetPreset.SEVERAL: ([320, 480, 640, 960], [256, 320, 368]),
}


@pytest.mark.parametrize("preset", list(DatasetPreset))
def test_a_preset_gives_pictures_and_clips_their_own_sizes(pictures: Path, preset: DatasetPreset) -> None:
    (pictures / "x.mp4").touch()
    text, config = written([pictures], ConfigValues(preset=preset))
    sizes = {kind: [one.resolution[0] for one in config.datasets if one.kind is kind] for kind in MediaKind}
    assert (sizes[MediaKind.IMAGE], sizes[MediaKind.VIDEO]) == SIZES[preset]
    assert all(one.enable_bucket and one.bucket_no_upscale and one.caption_extension for one in config.datasets)
    for one in config.datasets:
        if one.video is not None:
            assert (one.video.frame_extraction, one.video.max_frames) == (FrameExtraction.FULL, 81)
    assert "target_frames" not in text
    assert len({one.cache_directory for one in config.datasets}) == len(config.datasets)
    again, _ = written([pictures], ConfigValues(preset=preset), text)
    assert again == text


def test_a_preset_for_one_kind_of_media_writes_only_that_kind(pictures: Path, tmp_path: Path) -> None:
    _, config = written([pictures], ConfigValues(preset=DatasetPreset.SEVERAL))
    assert [one.kind for one in config.datasets] == [MediaKind.IMAGE] * 4
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "x.mp4").touch()
    _, config = written([clips], ConfigValues(preset=DatasetPreset.SEVERAL))
    assert [(one.kind, one.num_repeats) for one in config.datasets] == [
        (MediaKind.VIDEO, 2),
        (MediaKind.VIDEO, 1),
        (MediaKind.VIDEO, 1),
    ]


def test_other_values_count_more_than_a_preset(pictures: Path) -> None:
    (pictures / "x.mp4").touch()
    values = ConfigValues(preset=DatasetPreset.SEVERAL, max_frames=49, num_repeats=3, source_fps=30, batch_size=2)
    _, config = written([pictures], values)
    assert {(one.num_repeats, one.batch_size) for one in config.datasets} == {(3, 2)}
    assert {(one.video.max_frames, one.video.source_fps) for one in config.datasets if one.video} == {(49, 30.0)}


def test_a_preset_changes_only_the_folders_it_is_for(pictures: Path, tmp_path: Path) -> None:
    (pictures / "x.mp4").touch()
    other = tmp_path / "other"
    other.mkdir()
    draw(other / "x.png", (64, 64))
    before, _ = written([pictures, other], ConfigValues(source_fps=25, target_frames=(1, 25)))
    _, config = written([pictures], ConfigValues(preset=DatasetPreset.TURBO), before)
    by_folder = {(one.directory, one.kind): one for one in config.datasets}
    kept = by_folder[other, MediaKind.IMAGE]
    assert (kept.resolution, kept.bucket_no_upscale) == ((960, 960), False)
    clips = by_folder[pictures, MediaKind.VIDEO]
    assert clips.video is not None
    assert (clips.resolution, clips.bucket_no_upscale, clips.video.source_fps) == ((208, 208), True, 25.0)
    assert (clips.video.frame_extraction, clips.video.target_frames) == (FrameExtraction.FULL, (1,))


def test_the_dataset_presets_are_the_files_and_name_their_source() -> None:
    assert sorted(path.stem for path in preset_path(DatasetPreset.TURBO).parent.glob("*.toml")) == sorted(DatasetPreset)
    for preset in DatasetPreset:
        assert len(preset_terms(preset).summary) <= 66
        assert "# Source: " in preset_path(preset).read_text(encoding="utf-8")

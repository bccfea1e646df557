from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from wan_train.dataset.config import load
from wan_train.dataset.model import DatasetError, DatasetOverrides
from wan_train.dataset.snapshot import snapshot_text, with_overrides

Write = Callable[[str], Path]

WITH_COMMENTS = """\
# my set
[general] # for all
resolution = [960 , 960] # square
caption_extension = ".txt"
batch_size = 0x1

# the faces
[[datasets]]
image_directory = "pictures" # here
cache_directory = "pictures/cache"
num_repeats = 2 # twice
# more can be added here
"""


def test_comments_stay_and_paths_become_absolute(pictures: Path, configured: Write) -> None:
    path = configured(WITH_COMMENTS)
    text = snapshot_text(load(path))
    assert text == (
        WITH_COMMENTS.replace('"pictures"', f'"{pictures}"')
        .replace('"pictures/cache"', f'"{pictures}/cache"')
        .replace("[960 , 960]", "[960, 960]")
        .replace("0x1", "1")
    )
    assert path.read_text() == WITH_COMMENTS


def test_overrides_reach_every_place_where_the_key_takes_effect(pictures: Path, configured: Write) -> None:
    text = WITH_COMMENTS + (
        "[[datasets]]\nimage_directory = 'pictures'\ncache_directory = 'pictures/other'\nresolution = 320\n"
    )
    config = load(configured(text))
    overrides = DatasetOverrides(resolution=(640, 480), batch_size=4, num_repeats=3)
    data = tomllib.loads(snapshot_text(config, overrides))
    assert data["general"]["resolution"] == [640, 480]
    assert data["general"]["batch_size"] == 4
    assert data["general"]["num_repeats"] == 3
    assert data["datasets"][0]["num_repeats"] == 3
    assert data["datasets"][1]["resolution"] == [640, 480]
    assert "num_repeats" not in data["datasets"][1]
    assert "# twice" in snapshot_text(config, overrides)
    assert pictures.is_dir()


def test_the_configuration_with_overrides_is_what_its_snapshot_reads_back_as(
    pictures: Path, configured: Write, tmp_path: Path
) -> None:
    assert pictures.is_dir()
    config = with_overrides(
        load(configured(WITH_COMMENTS)), DatasetOverrides(resolution=(320, 320), batch_size=2, num_repeats=5)
    )
    copy = tmp_path / "run" / "dataset.toml"
    copy.parent.mkdir()
    copy.write_text(snapshot_text(config))
    assert load(copy, cwd=copy.parent).datasets == config.datasets


def test_a_file_without_general_gets_one_only_when_an_override_needs_it(pictures: Path, configured: Write) -> None:
    config = load(configured(f"# top\n[[datasets]]\nimage_directory = '{pictures}'\ncaption_extension = '.txt'\n"))
    assert "general" not in tomllib.loads(snapshot_text(config))
    text = snapshot_text(config, DatasetOverrides(batch_size=2))
    assert tomllib.loads(text)["general"] == {"batch_size": 2}
    assert "# top" in text


@pytest.mark.parametrize(
    "text",
    [
        "general.caption_extension = '.txt'\ndatasets = [{image_directory = 'pictures'}]\n",
        "general = {caption_extension = '.txt'}\n[[datasets]]\nimage_directory = 'pictures'\n",
        "[[datasets]]\nimage_directory = 'pictures'\n[general]\n'caption_extension' = '.txt'\n",
        "[general]\n[[datasets]]\nimage_directory = 'pictures'\ncaption_extension = '.txt'\n",
    ],
)
def test_unusual_layouts_keep_their_meaning(pictures: Path, configured: Write, text: str) -> None:
    config = load(configured(text))
    data = tomllib.loads(snapshot_text(config, DatasetOverrides(num_repeats=2)))
    assert data["datasets"][0]["image_directory"] == str(pictures)
    assert data["general"]["num_repeats"] == 2
    assert "[[datasets]]" in snapshot_text(config)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (DatasetOverrides(batch_size=0), "batch size: is 0"),
        (DatasetOverrides(num_repeats=-1), "repeats: is -1"),
        (DatasetOverrides(resolution=(100, 100)), "resolution for datasets[0]: is 100x100"),
    ],
)
def test_impossible_overrides_are_refused(
    pictures: Path, configured: Write, overrides: DatasetOverrides, said: str
) -> None:
    assert pictures.is_dir()
    with pytest.raises(DatasetError) as caught:
        with_overrides(load(configured(WITH_COMMENTS)), overrides)
    assert said in caught.value.message


names = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="/\0[]*?"), min_size=1, max_size=40
).filter(lambda name: name not in {".", ".."} and len(name.encode()) < 120)


@given(name=names)
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_folder_name_survives(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "sets" / name
    folder.mkdir(parents=True, exist_ok=True)
    quoted = "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08x}" for c in name)
    path = tmp_path / "dataset.toml"
    path.write_text(f'[[datasets]]\ncaption_extension = ".txt"\nimage_directory = "sets/{quoted}"\n')
    data = tomllib.loads(snapshot_text(load(path)))
    assert data["datasets"][0]["image_directory"] == str(folder)

from __future__ import annotations

from pathlib import Path

import pytest

from wan_train.base.errors import BadInputError
from wan_train.dataset.resolve import ExistingConfig, NewConfig, resolve_dataset


def refusal(text: str, cwd: Path) -> str:
    with pytest.raises(BadInputError) as caught:
        resolve_dataset(text, cwd=cwd)
    return f"{caught.value.message} {caught.value.hint}"


def test_a_folder_of_pictures_needs_a_dataset_toml(pictures: Path, tmp_path: Path) -> None:
    wanted = NewConfig(directory=pictures, toml_path=pictures / "dataset.toml")
    assert resolve_dataset(str(pictures)) == wanted
    assert resolve_dataset("pictures", cwd=tmp_path) == wanted
    assert resolve_dataset("./pictures/", cwd=tmp_path) == wanted
    assert resolve_dataset("pictures/dataset.toml", cwd=tmp_path) == wanted


def test_a_dataset_toml_is_found_by_itself_and_by_its_folder(pictures: Path) -> None:
    config = pictures / "dataset.toml"
    config.touch()
    assert resolve_dataset(str(config)) == ExistingConfig(toml_path=config)
    assert resolve_dataset(str(pictures)) == ExistingConfig(toml_path=config)


@pytest.mark.parametrize("form", ["'{}'", '"{}"', "  {}  ", "{}\n", "\u201c{}\u201d", "file://{}", "'{}' "])
def test_what_pasting_adds_is_taken_off(pictures: Path, form: str) -> None:
    assert resolve_dataset(form.format(pictures)) == NewConfig(directory=pictures, toml_path=pictures / "dataset.toml")


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("my set", "my\\ set"),
        ("my set", "file://{}/my%20set"),
        ("it's (1)", "it\\'s\\ \\(1\\)"),
        ("'quoted'", "'quoted'"),
        ("~", "~"),
        ("-x", "-x"),
        ("back\\slash", "back\\slash"),
        (" space", " space"),
    ],
)
def test_names_are_found_as_a_terminal_writes_them_and_as_they_are(tmp_path: Path, name: str, typed: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "a.png").touch()
    found = resolve_dataset(typed.format(tmp_path), cwd=tmp_path)
    assert found == NewConfig(directory=folder, toml_path=folder / "dataset.toml")


def test_the_home_is_understood(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pictures.parent))
    assert resolve_dataset("~/pictures") == NewConfig(directory=pictures, toml_path=pictures / "dataset.toml")
    assert "does not exist" in refusal("~nobody-of-that-name/x", pictures)


def test_a_mistyped_name_is_answered_with_the_right_one(pictures: Path, tmp_path: Path) -> None:
    assert f"Did you mean {pictures}?" in refusal("pictrues", tmp_path)
    assert f"Did you mean {pictures}?" in refusal("picturs/sub/dataset.toml", tmp_path)
    assert "does not exist" in refusal("x" * 300, tmp_path)


@pytest.mark.parametrize("text", ["", "   ", "\n", "a\0b"])
def test_nothing_and_nonsense_are_refused(tmp_path: Path, text: str) -> None:
    assert refusal(text, tmp_path)


def test_a_picture_instead_of_its_folder_is_explained(pictures: Path) -> None:
    said = refusal(str(pictures / "a.png"), pictures)
    assert "is not a dataset.toml" in said
    assert f"or the folder: {pictures}" in said


def test_an_empty_folder_is_explained_by_what_lies_in_it(pictures: Path, tmp_path: Path) -> None:
    assert f"Use the folder itself: {pictures}" in refusal(str(tmp_path), tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "Add pictures" in refusal(str(empty), tmp_path)
    (empty / "a.gif").touch()
    assert "a.gif has an unsupported type" in refusal(str(empty), tmp_path)

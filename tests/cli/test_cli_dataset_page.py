"""`dataset check`: what will be trained, and `--html`: a page that never replaces what is no such page."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from support.trainers import ScriptedBox

PAGE_START = b"<!DOCTYPE html>"


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    """Two captioned pictures: one twice as wide as high, one small."""
    folder = tmp_path / "cats"
    folder.mkdir()
    for name, size in (("wide", (1440, 720)), ("small", (480, 480))):
        Image.new("RGB", size, "teal").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name} cat", encoding="utf-8")
    return folder


def test_sizes_crops_and_steps_are_told(quiet_box: ScriptedBox, cats: Path) -> None:
    words = ("--epochs", "7", "--repeats", "3", "--batch-size", "2")
    done = quiet_box.run_cli("dataset", "check", str(cats), *words, COLUMNS="100")
    assert done.returncode == 0, done.stderr
    assert "960x960, batch 2, 3 repeats" in done.stdout
    assert "small.png (2x)" in done.stdout
    assert "4 per epoch x 7 epochs = 28 per expert" in done.stdout


def test_json_has_each_files_crop(quiet_box: ScriptedBox, cats: Path) -> None:
    done = quiet_box.run_cli("dataset", "check", str(cats), "--json", "--resolution", "480", "--epochs", "5")
    assert done.returncode == 0, done.stderr
    trained = json.loads(done.stdout)["trained"]
    assert (trained["epochs"], trained["steps_per_epoch"], trained["steps"]) == (5, 2, 10)
    (dataset,) = trained["datasets"]
    assert [(file["path"], file["trained"]["width"], file["trained"]["height"]) for file in dataset["files"]] == [
        (str(cats / "small.png"), 480, 480),
        (str(cats / "wide.png"), 672, 336),
    ]


@pytest.mark.parametrize("words", [["--epochs", "0"], ["--epochs", "-3"]])
def test_impossible_epochs_are_refused_by_their_flag(quiet_box: ScriptedBox, cats: Path, words: list[str]) -> None:
    done = quiet_box.run_cli("dataset", "check", str(cats), *words)
    assert done.returncode == 2
    assert "--epochs" in done.stderr


def test_a_page_is_written_and_made_anew(quiet_box: ScriptedBox, cats: Path) -> None:
    target = cats / "page.html"
    before = sorted(path.name for path in cats.iterdir())
    done = quiet_box.run_cli("dataset", "check", str(cats), "--html", str(target))
    assert done.returncode == 0, done.stderr
    assert str(target) in done.stdout
    first = target.read_bytes()
    assert first.startswith(PAGE_START)
    assert b"a small cat" in first
    assert first.count(b"data:image/jpeg;base64,") == 2
    assert sorted(path.name for path in cats.iterdir()) == sorted([*before, "page.html"])

    (cats / "small.txt").write_text("a mended cat", encoding="utf-8")
    done = quiet_box.run_cli("dataset", "check", str(cats), "--html", str(target))
    assert done.returncode == 0, done.stderr
    assert b"a mended cat" in target.read_bytes()


def test_a_page_is_written_also_of_what_stops(quiet_box: ScriptedBox, cats: Path) -> None:
    (cats / "wide.txt").unlink()
    done = quiet_box.run_cli("dataset", "check", str(cats), "--html", str(cats / "page.html"))
    assert done.returncode == 2
    page = (cats / "page.html").read_bytes()
    assert b"has no caption" in page


def test_a_page_of_a_dataset_toml_that_cannot_be_read(quiet_box: ScriptedBox, cats: Path) -> None:
    (cats / "dataset.toml").write_text("[[datasets]\n", encoding="utf-8")
    done = quiet_box.run_cli("dataset", "check", str(cats), "--html", str(cats / "page.html"))
    assert done.returncode == 2
    assert (cats / "page.html").read_bytes().startswith(PAGE_START)


def test_another_file_is_replaced_only_with_yes(quiet_box: ScriptedBox, cats: Path) -> None:
    target = cats / "mine.html"
    target.write_text("<p>my own page", encoding="utf-8")
    done = quiet_box.run_cli("dataset", "check", str(cats), "--html", str(target))
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert target.read_text(encoding="utf-8") == "<p>my own page"

    done = quiet_box.run_cli("dataset", "check", str(cats), "--html", str(target), "--yes")
    assert done.returncode == 0, done.stderr
    assert target.read_bytes().startswith(PAGE_START)


@pytest.mark.parametrize("name", ["small.png", "dataset.toml", "page", "", "no/such/page.html", "folder.html"])
def test_a_place_that_cannot_be_a_page_is_refused_and_untouched(quiet_box: ScriptedBox, cats: Path, name: str) -> None:
    (cats / "folder.html").mkdir()
    before = {path: path.read_bytes() for path in cats.iterdir() if path.is_file()}
    done = quiet_box.run_cli("dataset", "check", str(cats), "--html", str(cats / name) if name else "", "--yes")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert {path: path.read_bytes() for path in cats.iterdir() if path.is_file()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_said(quiet_box: ScriptedBox, cats: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    done = quiet_box.run_cli("dataset", "check", str(cats), "--html", str(closed / "page.html"))
    assert done.returncode == 2
    assert "Permission denied" in done.stderr

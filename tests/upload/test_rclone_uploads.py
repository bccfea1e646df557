"""Uploads by the real rclone into local folders: what is sent, compared, refused, and never sent twice."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from upload_world import HIGH, KEPT, LOW, Place, lora

from wan_train.upload.rclone import find_rclone
from wan_train.upload.status import due, unverified

RUN = "20261122-141500-mylora"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rclone: Path) -> Path:
    """A folder that rclone's own configuration calls `shelf:`."""
    assert rclone
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("RCLONE_CONFIG_SHELF_TYPE", "alias")
    monkeypatch.setenv("RCLONE_CONFIG_SHELF_REMOTE", str(folder))
    return folder


def test_everything_comes_into_a_folder_of_the_run(place: Place, shelf: Path) -> None:
    lora(place.path / KEPT, 0.5)
    line = place.json("upload", "mylora", "rclone:shelf:loras", "--with", "dataset")
    there = shelf / "loras" / RUN
    for name in (HIGH, LOW, KEPT, "recipe.toml", "dataset.toml"):
        assert (there / name).read_bytes() == (place.path / name).read_bytes()
    assert len(list((there / "dataset/0").iterdir())) == 6
    assert (there / "dataset/0/2.txt").read_text(encoding="utf-8") == "blkcat, a cat number 2"
    (told,) = line["uploads"]
    assert (told["state"], told["verified"]) == ("verified", 11)
    assert told["download"] == f"rclone copy shelf:loras/{RUN} . --include '*.safetensors'"
    assert unverified(place.run, ["rclone:shelf:loras"], ["dataset"]) == ()


def test_a_local_folder_needs_no_configuration(place: Place, tmp_path: Path, rclone: Path) -> None:
    assert rclone
    line = place.json("upload", "mylora", f"rclone:{tmp_path}/a network volume")
    assert (tmp_path / "a network volume" / RUN / HIGH).is_file()
    assert line["uploads"][0]["download"] is None, "it is no way home"


def test_what_was_sent_before_a_kill_is_compared_and_not_sent_again(place: Place, shelf: Path) -> None:
    target = "rclone:shelf:"
    place.upload(target)
    before = {path.name: path.stat().st_mtime_ns for path in (shelf / RUN).iterdir()}
    inodes = {path.name: path.stat().st_ino for path in (shelf / RUN).iterdir()}
    place.run.uploads.unlink()  # as if the uploader had been killed before it recorded anything
    place.upload(target)
    assert unverified(place.run, [target]) == ()
    assert {path.name: path.stat().st_mtime_ns for path in (shelf / RUN).iterdir()} == before
    assert {path.name: path.stat().st_ino for path in (shelf / RUN).iterdir()} == inodes


def test_damage_there_is_found_and_repaired(place: Place, shelf: Path) -> None:
    place.upload("rclone:shelf:")
    place.run.uploads.unlink()
    (shelf / RUN / LOW).write_bytes(b"\0" * (place.path / LOW).stat().st_size)
    place.upload("rclone:shelf:")
    assert (shelf / RUN / LOW).read_bytes() == (place.path / LOW).read_bytes()


def test_a_remote_that_nobody_set_up(place: Place, shelf: Path) -> None:
    assert shelf
    code, _, err = place.call("upload", "mylora", "rclone:nowhere:loras")
    assert code == 3
    assert err.count("\n") < 12
    assert "error: rclone:nowhere:loras: rclone has no remote named 'nowhere'" in err
    assert "hint: List its remotes: `rclone listremotes`" in err
    assert "`wan-train upload 20261122-141500-mylora rclone:nowhere:loras`" in err
    failed = place.known("rclone:nowhere:loras").failed
    assert failed is not None
    assert failed.final


def test_a_place_that_refuses_is_tried_again_later(place: Place, shelf: Path) -> None:
    folder = shelf / "loras"
    folder.mkdir()
    (folder / RUN).write_text("no folder", encoding="utf-8")  # root may write anywhere, so modes would refuse nothing
    problem = place.upload("rclone:shelf:loras").problems["rclone:shelf:loras"]
    assert "the remote did not accept the files" in problem.reason
    assert place.clock.slept == [2, 8, 30]
    assert not due(place.run, ["rclone:shelf:loras"], now=place.clock.now())
    (folder / RUN).unlink()
    place.clock.at += 60
    assert due(place.run, ["rclone:shelf:loras"], now=place.clock.now())
    assert not place.upload("rclone:shelf:loras").problems


def test_without_rclone_the_message_says_how_to_get_it(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    code, _, err = place.call("upload", "mylora", "rclone:shelf:")
    assert code == 3
    assert "error: rclone:shelf:: rclone is not installed" in err
    assert "hint: Install it: `wan-train provision" in err


def test_an_rclone_that_does_not_run_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "rclone"
    broken.write_text("#!/bin/false\n", encoding="utf-8")
    broken.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_rclone(tmp_path / "none") is None


def test_one_bad_target_does_not_keep_a_good_one_waiting(place: Place, shelf: Path) -> None:
    code, _, err = place.call("upload", "mylora", "rclone:nowhere:", "rclone:shelf:")
    assert code == 3
    assert "rclone:nowhere:" in err
    assert (shelf / RUN / HIGH).is_file()
    code, out, _ = place.call("status")
    assert code == 0
    assert "rclone:shelf:: 4 files verified" in out

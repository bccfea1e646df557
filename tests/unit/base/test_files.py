"""Files written whole or not at all, and moved without replacing anything."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wan_train.base.files import copy_whole, move_without_overwriting, write_whole


def test_text_and_bytes(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "夜")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "夜"
    write_whole(tmp_path / "a", b"\0\1", durable=False)
    assert (tmp_path / "a").read_bytes() == b"\0\1"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_others_cannot_read_it_unless_asked(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "x")
    write_whole(tmp_path / "b", "x", mode=0o700)
    assert ((tmp_path / "a").stat().st_mode & 0o777, (tmp_path / "b").stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    """A real short write: the kernel refuses everything beyond the limit on file sizes."""
    path = tmp_path / "record"
    path.write_text("old")
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old_limit[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_whole(path, "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "record"
    program = (
        "import sys; from pathlib import Path; from wan_train.base.files import write_whole\n"
        "path = Path(sys.argv[1]); print('go', flush=True)\n"
        "while True:\n"
        "    for letter in 'ab': write_whole(path, letter * 200_000, durable=False)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        for _ in range(200):
            if path.exists():
                content = path.read_text()
                assert len(content) == 200_000
                assert len(set(content)) == 1
        child.kill()
    if path.exists():
        assert len(path.read_text()) == 200_000


def test_an_error_names_the_file_that_was_to_be_written(tmp_path: Path) -> None:
    missing, folder = tmp_path / "none" / "a", tmp_path / "folder"
    (folder / "full").mkdir(parents=True)
    (tmp_path / "picture").write_text("x")
    with pytest.raises(FileNotFoundError) as opening:
        write_whole(missing, "x")
    with pytest.raises(IsADirectoryError) as renaming:
        write_whole(folder, "x")
    with pytest.raises(FileNotFoundError) as copying:
        copy_whole(tmp_path / "picture", missing)
    with pytest.raises(IsADirectoryError) as replacing:
        copy_whole(tmp_path / "picture", folder)
    for error, path in ((opening, missing), (renaming, folder), (copying, missing), (replacing, folder)):
        assert (error.value.filename, error.value.filename2) == (str(path), None)
    with pytest.raises(FileNotFoundError) as reading:
        copy_whole(missing, tmp_path / "b")
    assert str(reading.value.filename) == str(missing)


def test_a_copy_has_its_name_on_disk_before_it_is_relied_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut cannot be tried here: what was renamed is only safe once its directory was flushed."""
    source, target = tmp_path / "a", tmp_path / "copies" / "a"
    source.write_text("picture")
    target.parent.mkdir()
    flushed: list[tuple[Path, bool]] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        flushed.append((Path(f"/proc/self/fd/{descriptor}").readlink(), target.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    copy_whole(source, target)
    assert target.read_text() == "picture"
    assert flushed[-1] == (target.parent, True)


def test_moving_keeps_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("result")
    move_without_overwriting(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "b").read_text() == "result"


def test_moving_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("precious")
    with pytest.raises(FileExistsError):
        move_without_overwriting(tmp_path / "a", tmp_path / "b")
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("new", "precious")
    (tmp_path / "c").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        move_without_overwriting(tmp_path / "a", tmp_path / "c")

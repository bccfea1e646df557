"""SkyPilot's environment, made by a stand-in for uv."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from wan_train.base.errors import NotReadyError
from wan_train.launch.sky_home import is_made, make, missing_programs, stamp


def uv(folder: Path, text: str) -> str:
    path = folder / "uv"
    path.write_text(f'#!/bin/sh\necho "$*" >>{folder}/asked\n{text}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


MAKES = 'case $1 in venv) for last; do :; done; mkdir -p "$last/bin"; : >"$last/bin/python";; esac'


def test_it_is_made_once_with_the_pinned_versions(tmp_path: Path) -> None:
    program, said, folder = uv(tmp_path, MAKES), list[str](), tmp_path / "sky"
    first = make(folder, uv=program, say=said.append)
    second = make(folder, uv=program, say=said.append)
    assert first == second
    assert (tmp_path / "asked").read_text().count("skypilot[vast]==0.14.1 vastai==1.9.1") == 1
    assert len(said) == 1
    assert is_made(folder)
    assert folder.stat().st_mode & 0o077 == 0


def test_a_fetch_that_failed_is_told_and_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "sky"
    fails = uv(tmp_path, f"{MAKES}\n[ $1 = venv ] || {{ echo 'while fetching' >&2; echo 'no such host' >&2; exit 2; }}")
    with pytest.raises(NotReadyError, match=r"failed: while fetching; no such host$"):
        make(folder, uv=fails, say=print)
    assert not is_made(folder)
    make(folder, uv=uv(tmp_path, MAKES), say=print)
    assert is_made(folder)


def test_other_versions_are_made_anew(tmp_path: Path) -> None:
    folder, program = tmp_path / "sky", uv(tmp_path, MAKES)
    make(folder, uv=program, say=print)
    (folder / "env/ready").write_text("skypilot==0.13.0 vastai==1.9.1")
    assert not is_made(folder)
    make(folder, uv=program, say=print)
    assert (folder / "env/ready").read_text() == stamp()


@pytest.mark.parametrize("text", ["", "x", "80", "99999"])
def test_a_damaged_port_is_chosen_anew(tmp_path: Path, text: str) -> None:
    folder, program = tmp_path / "sky", uv(tmp_path, MAKES)
    make(folder, uv=program, say=print)
    (folder / "port").write_text(text)
    assert make(folder, uv=program, say=print).port in range(46600, 49900)


def test_missing_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing_programs() == ("ssh", "rsync")

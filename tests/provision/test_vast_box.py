"""A box that goes on by itself: the boot unit under a real supervisord, and as a line of the on-start script."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from provision_world import World

from wan_train.base.settings import resolve
from wan_train.provision.boot import Boot, is_vast, variables
from wan_train.provision.steps import State
from wan_train.provision.work import Work

SUPERVISORD = Path(sys.executable).with_name("supervisord")


@pytest.fixture
def root() -> Iterator[Path]:
    """A box's `/`, short enough for a socket's name, with a blank and a percent sign in it."""
    folder = Path(tempfile.mkdtemp(prefix="box %"))
    for name in ("root", "etc", "var/run"):
        (folder / name).mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


def boot(root: Path) -> Boot:
    settings = resolve(flags={"workspace": str(root / "work space")}, environ={}, file=root / "none.toml")
    environ = {"HF_HOME": "/it's/here", "HF_TOKEN": "secret"}
    return Boot(logs=root / "work space/logs", variables=variables(settings, environ), root=root)


def log_of(root: Path) -> str:
    path = root / "work space/logs/boot.log"
    return path.read_text() if path.exists() else ""


def wait_for(there: Callable[[], bool], alive: Callable[[], bool] = lambda: True) -> None:
    while not there():
        assert alive()
        time.sleep(0.05)


def test_a_box_is_vasts_by_its_variable_or_its_files(root: Path) -> None:
    assert not is_vast({"CONTAINER_ID": "1"}, root)
    assert is_vast({"VAST_CONTAINERLABEL": "C.1"}, root)
    (root / "root/hasbooted").touch()
    assert is_vast({}, root)


def test_supervisord_starts_it_once_after_the_images_provisioning(root: Path, work: Work) -> None:
    (root / "etc/supervisor/conf.d").mkdir(parents=True)
    unit = boot(root)
    with socket.socket(socket.AF_UNIX) as running:  # supervisord, as a provision sees it
        running.bind(str(root / "var/run/supervisor.sock"))
        running.listen()
        assert unit.check().state is State.MISSING
        unit.apply(work)
        assert unit.check().state is State.READY
    assert unit.check().state is State.READY  # supervisord is away for a moment
    elsewhere = Boot(logs=unit.logs, variables={"WAN_TRAIN_GPUS": "0"}, root=root)
    assert elsewhere.check().state is State.READY  # a shell with other variables
    assert not (root / "root/onstart.sh").exists()
    assert "secret" not in (root / "opt/supervisor-scripts/wan-train-resume.sh").read_text()

    (root / ".provisioning").touch()
    shutil.rmtree(unit.logs, ignore_errors=True)
    main = root / "supervisord.conf"
    main.write_text(
        "[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile=pid\n"
        "[include]\nfiles=etc/supervisor/conf.d/*.conf\n"
    )
    environ = {**os.environ, "HOME": str(root)}
    with subprocess.Popen(
        [sys.executable, SUPERVISORD, "-c", main.name], cwd=root, env=environ, stdout=subprocess.PIPE, text=True
    ) as daemon:
        assert daemon.stdout is not None
        for line in daemon.stdout:
            if "entered RUNNING" in line:
                break
        wait_for(lambda: log_of(root) != "", lambda: daemon.poll() is None)
        (root / ".provisioning").unlink()
        for line in daemon.stdout:
            if "exited: wan-train-resume" in line:
                assert "exit status 0" in line
                break
        daemon.terminate()
        assert "spawned" not in daemon.stdout.read()
    assert len(log_of(root).splitlines()) == 1  # the date: there were no runs, which is no error


def test_elsewhere_the_on_start_script_gets_one_line_and_keeps_its_own(root: Path, work: Work) -> None:
    mine = root / "onstart.sh"
    mine.write_text("#!/bin/bash\necho mine\nexec sleep 1000\n")
    mine.chmod(0o744)
    (root / "root/onstart.sh").symlink_to(mine)  # as Vast's images have it
    unit = boot(root)
    for _ in range(2):
        unit.apply(work)
    text = mine.read_text()
    assert text.count("wan-train-resume.sh") == 1
    assert text.startswith("#!/bin/bash\n# >>> wan-train >>>\n")
    assert text.endswith("\necho mine\nexec sleep 1000\n")
    assert (root / "root/onstart.sh").is_symlink()
    assert mine.stat().st_mode & 0o777 == 0o744
    assert unit.check().state is State.READY

    mine.write_text(text.replace("wan-train-resume.sh", "other.sh").replace("exec sleep 1000", "exit"))
    assert unit.check().state is State.MISSING
    unit.apply(work)
    assert mine.read_text().count(">>> wan-train >>>") == 1
    done = subprocess.run(["bash", mine], env={**os.environ, "HOME": str(root)}, capture_output=True, check=True)
    assert done.stdout == b"mine\n"
    wait_for(lambda: log_of(root) != "")


def test_a_box_without_an_on_start_script_gets_one(root: Path, work: Work) -> None:
    unit = boot(root)
    unit.apply(work)
    subprocess.run(["bash", "-n", root / "root/onstart.sh"], check=True)
    assert unit.check().state is State.READY


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_without_roots_rights_it_is_a_warning(root: Path, work: Work) -> None:
    (root / "root").chmod(0o500)
    unit = boot(root)
    assert unit.check().state is State.WARNING
    unit.apply(work)
    assert list((root / "root").iterdir()) == []


def test_the_step_is_there_only_on_vast(world: World) -> None:
    def steps(**more: str) -> list[str]:
        done = world.provision("--check", "--json", "--skip-models", env=more)
        return [step["id"] for step in json.loads(done.stdout)["steps"]]

    assert "boot" not in steps()
    assert "boot" in steps(VAST_CONTAINERLABEL="C.1")

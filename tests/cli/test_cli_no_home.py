"""A user id that the box does not know, and no HOME: what `docker run --user 12345` gives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.nvml import NvmlStub
from support.trainers import ScriptedBox
from wan_train.base import home
from wan_train.base.errors import NotReadyError, WanTrainError

UID = 54321
# The interpreter of the tests may lie in root's own home directory: this capability reads it and writes nothing.
STRANGER = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups")
READER = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
NO_HOME = ("env", "-u", "HOME", "-u", "XDG_DATA_HOME", "-u", "WAN_TRAIN_RUNS_DIR", *STRANGER, *READER)


def _can_be_a_stranger() -> bool:
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        return False
    return subprocess.run([*STRANGER, *READER, "true"], check=False, capture_output=True).returncode == 0


as_stranger = pytest.mark.skipif(not _can_be_a_stranger(), reason="needs root and setpriv to become another user")


@pytest.fixture
def strange_box(nvml_stub: NvmlStub) -> Iterator[ScriptedBox]:
    """A box without a workspace on which everything is started by an unknown user without a home directory."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own may be entered by its user alone
        Path(folder).chmod(0o755)
        box = ScriptedBox(Path(folder) / "box", nvml_stub)
        box.through = NO_HOME
        Path(f"{nvml_stub.state}.lock").chmod(0o666)
        nvml_stub.state.parent.chmod(0o777)
        for place in (box.root / "tmp", box.dataset, box.dataset.parent):
            place.chmod(0o777)
        yield box
        box.close()


COMMANDS = (
    "--help", "runs", "status", "attach", "resume", "resume --all", "logs", "stop", "explain", "report", "compare a b",
    "train --dry-run", "train --yes", "--yes --engine rehearsal --dry-run", "provision --check", "provision --yes",
    "doctor", "dataset check pictures", "rehearse ~nobody-of-that-name", "explain ~nobody-of-that-name/x.log",
)  # fmt: skip


EACH = """
import json, os, sys, tempfile
from wan_train.cli import app, dataset, runs, train, watch
from wan_train.cli.main import main
answers = []
for words in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile() as output:
        if (pid := os.fork()) == 0:
            os.dup2(output.fileno(), 1), os.dup2(output.fileno(), 2)
            sys.argv = ["wan-train", *words.split()]
            main()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        output.seek(0)
        answers.append([words, code, output.read().decode()])
print(json.dumps(answers))
"""
"""The program is loaded once, without a home too; each command has a process of its own."""


@as_stranger
def test_every_command_runs_without_a_home(strange_box: ScriptedBox) -> None:
    done = subprocess.run(
        [*NO_HOME, sys.executable, "-c", EACH, json.dumps(COMMANDS)],
        env=strange_box.env(WAN_TRAIN_WORKSPACE=str(strange_box.root / "none"), HF_ENDPOINT="http://127.0.0.1:1"),
        cwd=strange_box.root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    answers = json.loads(done.stdout)
    assert len(answers) == len(COMMANDS)
    for words, code, text in answers:
        assert "Traceback" not in text, words
        assert "a bug in wan-train" not in text, (words, text)
        assert code in {0, 2, 3}, words
    assert not list(strange_box.root.rglob("crash-*"))


@as_stranger
def test_a_training_without_a_home_keeps_its_run_where_the_same_user_finds_it(strange_box: ScriptedBox) -> None:
    environ = {
        "WAN_TRAIN_WORKSPACE": str(strange_box.root / "none"),
        "SCRIPTED_RECORD": str(strange_box.root / "tmp/r"),
    }
    environ["WAN_TRAIN_LEASE_DIR"] = str(strange_box.root / "tmp" / "leases")
    done = strange_box.train(**environ)
    assert done.returncode == 0, done.stdout + done.stderr
    ours = strange_box.root / "tmp" / f"wan-train-{UID}"
    assert ours.stat().st_mode & 0o777 == 0o700
    (lora,) = ours.glob(".local/share/wan-train/runs/*/*HighNoise*.safetensors")
    assert lora.parent.name in strange_box.run_cli("runs", COLUMNS="120", **environ).stdout


@as_stranger
@pytest.mark.parametrize("set_to", ["", "/", "relative", "/proc/1/nowhere", "/root"])
def test_a_home_that_cannot_be_used_is_replaced_by_one_of_our_own(tmp_path: Path, set_to: str) -> None:
    tmp_path.chmod(0o777)
    program = (
        "import os\nfrom wan_train.base import home\n"
        "home.ensure(os.environ)\nprint(os.environ['HOME'], os.environ['USER'])"
    )
    names = [word for name in ("USER", "LOGNAME", "LNAME", "USERNAME") for word in ("-u", name)]
    done = subprocess.run(
        [*STRANGER, *READER, "env", *names, f"HOME={set_to}", f"TMPDIR={tmp_path}", sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{tmp_path}/wan-train-{UID} uid-{UID}\n"


def test_a_home_and_a_name_that_are_there_are_kept(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "USER": "me"}
    home.ensure(environ)
    assert environ == {"HOME": str(tmp_path), "USER": "me"}


@pytest.mark.parametrize("trap", ["link", "open"])
def test_a_temporary_directory_that_others_prepared_is_refused(tmp_path: Path, trap: str) -> None:
    ours = tmp_path / f"wan-train-{os.getuid()}"
    if trap == "link":
        ours.symlink_to(tmp_path / "elsewhere")
    else:
        ours.mkdir()
        ours.chmod(0o777)
    with pytest.raises(NotReadyError, match="is not private to this user"):
        home.own_temporary(tmp_path)


def test_a_user_that_does_not_exist_is_named() -> None:
    with pytest.raises(WanTrainError, match=r"nobody-of-that-name.* has no home directory"):
        home.expand("~nobody-of-that-name/x")

"""The forked `wan-train` of the tests stands for a started one, and is really used."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from support import forkserver
from support.trainers import PROGRAM, ScriptedBox


def test_a_box_forks_and_gets_what_a_started_program_gives(scripted_box: ScriptedBox) -> None:
    env = scripted_box.env()
    assert forkserver.suits(env)
    for words in (["runs"], ["status", "nothing"], ["--version"], ["train", "--help"], ["--no-such-option"]):
        forked = scripted_box.run_cli(*words)
        started = subprocess.run(
            [PROGRAM, *words], env=env, cwd=scripted_box.root, capture_output=True, text=True, check=False
        )
        assert (forked.returncode, forked.stdout, forked.stderr) == (
            started.returncode,
            started.stdout,
            started.stderr,
        ), words


@pytest.mark.parametrize("name", ["LC_ALL", "PYTHONIOENCODING", "PYTHONWARNINGS"])
def test_what_the_interpreter_reads_at_its_start_needs_a_start(scripted_box: ScriptedBox, name: str) -> None:
    assert not forkserver.suits(scripted_box.env(**{name: "x"}))


def test_a_forked_program_has_a_session_and_signals_of_its_own(scripted_box: ScriptedBox) -> None:
    running = scripted_box.popen_cli(*scripted_box.train_words("--epochs", "50"), SCRIPTED_STEP_SECONDS="0.1")
    scripted_box.wait_for_record("epoch", place="high")
    assert os.getsid(running.pid) == running.pid
    assert running.poll() is None
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert scripted_box.run_cli("stop", "--now").returncode == 0
    assert scripted_box.run_cli("attach").returncode == 143

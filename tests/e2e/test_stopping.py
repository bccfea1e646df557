"""Terminals that close, signals and `wan-train stop`: what goes on, what ends, and that nothing is left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys

import pexpect
import pytest

from support.trainers import PROGRAM, ScriptedBox

DEAF = (
    "import os, signal, sys\n"
    "every = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD}\n"
    "for each in every: signal.signal(each, signal.SIG_IGN)\n"
    "signal.pthread_sigmask(signal.SIG_BLOCK, every)\n"
    "os.execvp(sys.argv[1], sys.argv[1:])\n"
)
"""Starts a program as nohup, a background job or a careless service would: with signals ignored and blocked."""
SLOW = {"SCRIPTED_STEP_SECONDS": "0.1"}


def nothing_left(box: ScriptedBox) -> bool:
    return not box.trainers()


def test_closing_the_terminal_ends_the_watching_only(scripted_box: ScriptedBox) -> None:
    terminal = pexpect.spawn(
        str(PROGRAM),
        scripted_box.train_words(),
        env=scripted_box.env(**SLOW, TERM="xterm"),
        cwd=str(scripted_box.root),
        dimensions=(40, 120),
    )
    terminal.delaybeforeread = None
    scripted_box.wait_for(lambda: _drained(terminal) and scripted_box.recorded("epoch"), what="the first epoch")
    terminal.close()  # the kernel sends HUP to the session
    scripted_box.wait_for(
        lambda: not any("--yes" in words for words in scripted_box.processes().values()), what="the watcher's end"
    )
    assert scripted_box.trainers()
    assert not scripted_box.events("step_stopping")
    assert scripted_box.run_cli("attach").returncode == 0
    assert len(list(scripted_box.run().glob("*.safetensors"))) == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_foreground_stops_the_run_and_waits_for_proof(
    scripted_box: ScriptedBox, number: signal.Signals, code: int
) -> None:
    running = scripted_box.popen_cli(*scripted_box.train_words(), **SLOW)
    scripted_box.wait_for_record("epoch", place="high")
    running.send_signal(number)
    assert running.wait() == code
    assert nothing_left(scripted_box)
    assert scripted_box.events("run_finished")[-1]["exit_code"] == code
    assert scripted_box.run_cli("attach").returncode == code


def test_a_run_started_where_signals_are_ignored_and_blocked_still_obeys_them(scripted_box: ScriptedBox) -> None:
    scripted_box.through = (sys.executable, "-c", DEAF)
    started = scripted_box.train("--detach", **SLOW)
    assert started.returncode == 0, started.stderr
    scripted_box.through = ()
    scripted_box.wait_for_record("epoch", place="high")
    (supervisor,) = [pid for pid, words in scripted_box.processes().items() if "wan_train.run.supervise" in words]
    os.kill(supervisor, signal.SIGTERM)
    assert scripted_box.run_cli("attach").returncode == 143
    assert nothing_left(scripted_box)
    assert signal.SIGKILL not in {event["exit"].get("signal") for event in scripted_box.events("step_exited")}


def test_hangup_without_a_terminal_leaves_the_run_alone(scripted_box: ScriptedBox) -> None:
    running = scripted_box.popen_cli(*scripted_box.train_words(), **SLOW)
    scripted_box.wait_for_record("epoch", place="high")
    running.send_signal(signal.SIGHUP)
    assert running.wait() == 129
    assert scripted_box.trainers()
    assert scripted_box.run_cli("attach").returncode == 0


def test_a_watcher_that_is_ended_does_not_end_the_run(scripted_box: ScriptedBox) -> None:
    scripted_box.train("--detach", **SLOW)
    watching = scripted_box.popen_cli("attach")
    scripted_box.wait_for_record("epoch", place="high")
    watching.send_signal(signal.SIGTERM)
    watching.wait()
    assert scripted_box.trainers()
    assert scripted_box.run_cli("attach").returncode == 0


def test_stop_waits_for_the_next_state(scripted_box: ScriptedBox) -> None:
    words = ("--detach", "--experts", "high", "--epochs", "50", "--save-every", "1")
    scripted_box.train(*words, SCRIPTED_STEP_SECONDS="0.05")
    scripted_box.wait_for_record("epoch", place="high")
    asked = scripted_box.run_cli("stop")
    assert asked.returncode == 0, asked.stderr
    assert re.search(r"stops after the next checkpoint, (in about \d+ s|at an unknown time)\.", asked.stderr)
    assert scripted_box.run_cli("attach").returncode == 143
    events = scripted_box.events()
    kinds = [event["kind"] for event in events]
    request = kinds.index("stop_requested")
    assert "state_saved" in kinds[request : kinds.index("step_stopping")]
    assert nothing_left(scripted_box)


def test_stop_now_does_not_wait(scripted_box: ScriptedBox) -> None:
    scripted_box.train("--detach", "--epochs", "50", **SLOW)
    scripted_box.wait_for_record("start", place="low")
    assert scripted_box.run_cli("stop", "--now").returncode == 0
    assert scripted_box.run_cli("attach").returncode == 143
    assert nothing_left(scripted_box)
    states = {step["state"] for step in json.loads(scripted_box.run_cli("status", "--json").stdout)["steps"][2:]}
    assert states == {"stopped"}
    assert scripted_box.run_cli("stop").returncode == 0, "a run that is over may be stopped again"


@pytest.mark.parametrize("fault", ["ignore_term,hang@step=2", "grandchild,hang@step=2"])
def test_a_stubborn_tree_leaves_no_survivor(scripted_box: ScriptedBox, fault: str) -> None:
    running = scripted_box.popen_cli(*scripted_box.train_words("--experts", "high"), SCRIPTED_FAULT=fault)
    scripted_box.wait_for(
        lambda: (
            [p for p in scripted_box.trainers().values() if "wan_train_network" in p] and "steps:" in _log(scripted_box)
        ),
        what="the trainer at work",
    )
    running.send_signal(signal.SIGTERM)
    assert running.wait() == 143
    assert nothing_left(scripted_box)


def test_a_grandchild_that_outlives_its_trainer_is_ended_before_success(scripted_box: ScriptedBox) -> None:
    done = scripted_box.train("--experts", "high", SCRIPTED_FAULT="grandchild")
    assert done.returncode == 0, done.stderr
    assert nothing_left(scripted_box)


def test_when_the_supervisor_is_killed_the_trainers_go_on_and_attach_takes_over(scripted_box: ScriptedBox) -> None:
    scripted_box.train("--detach", **SLOW)
    scripted_box.wait_for_record("epoch", place="high")
    (started,) = scripted_box.events("supervisor_started")
    os.kill(started["identity"]["pid"], signal.SIGKILL)
    scripted_box.wait_for_record("end", place="high")
    scripted_box.wait_for_record("end", place="low")
    for place in ("high", "low"):
        attempt = scripted_box.run() / f"train-{place}" / "1"
        scripted_box.wait_for((attempt / "exit.json").is_file, what=f"the exit record of {place}")
        assert json.loads((attempt / "exit.json").read_text())["exit"] == {"kind": "exited", "code": 0}
    assert not scripted_box.events("run_finished")
    assert scripted_box.run_cli("attach").returncode == 0
    assert len(list(scripted_box.run().glob("*.safetensors"))) == 2
    assert [entry["place"] for entry in scripted_box.recorded("start")].count("high") == 1


def _drained(terminal: pexpect.spawn) -> bool:
    """Read what the program drew: one whose terminal is full waits for ever."""
    with contextlib.suppress(pexpect.TIMEOUT):
        terminal.read_nonblocking(100_000, timeout=0)
    return True


def _log(box: ScriptedBox) -> str:
    path = box.run() / "train-high" / "1" / "output.log"
    return path.read_text(errors="replace") if path.exists() else ""

"""A run at a terminal: watched, left, found again, stopped, on terminals of every kind."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping

import pytest
from tty_keys import CTRL_C, DOWN, ENTER, Start, Terminal

from support.past_runs import PastRuns
from support.trainers import PROGRAM, ScriptedBox
from support.vast_api import vast_api

LONG: Mapping[str, str] = {"SCRIPTED_STEP_SECONDS": "0.1"}
QUESTION = "The training is still running. What now?"


def started(terminal: Start, box: ScriptedBox, *, epochs: int = 500, columns: int = 100, **env: str) -> Terminal:
    """A run in its first epochs, watched at a terminal."""
    screen = terminal(*box.train_words("--epochs", str(epochs)), columns=columns, **LONG, **env)
    box.wait_for_event("epoch_ended", step="train-low")
    return screen


def test_from_the_first_question_to_two_loras(terminal: Start, scripted_box: ScriptedBox) -> None:
    screen = terminal("--epochs", "4", SCRIPTED_STEP_SECONDS="0.1")
    screen.answers("Title of the LoRA", "cat")
    screen.answers("Author", "me")
    screen.answers("Dataset (folder of pictures", str(scripted_box.dataset))
    screen.answers("Start?")
    screen.sees("train-high")
    assert screen.ends() == 0
    assert "Ctrl-C" in screen.text
    assert "Both LoRAs are ready" in screen.text
    assert {path.name for path in scripted_box.run().glob("*.safetensors")} == {
        "WAN2.2-HighNoise_cat.safetensors",
        "WAN2.2-LowNoise_cat.safetensors",
    }
    assert "Traceback" not in screen.text


def test_a_failed_run_shows_why_and_ends_with_its_code(terminal: Start, scripted_box: ScriptedBox) -> None:
    screen = terminal(*scripted_box.train_words(), columns=120, SCRIPTED_FAULT="die@high")
    assert screen.ends() == 5
    assert "a scripted failure" in screen.text


def test_ctrl_c_and_keep_watching_or_leave_it_running(terminal: Start, scripted_box: ScriptedBox) -> None:
    screen = started(terminal, scripted_box, epochs=30)
    screen.types(CTRL_C)
    screen.sees(QUESTION)
    screen.types(DOWN * 3 + ENTER)
    screen.sees("train-high")
    screen.types(CTRL_C)
    screen.sees(QUESTION)
    screen.sees("Leave it running")
    screen.types(ENTER)
    assert screen.ends() == 0
    assert f"wan-train attach {scripted_box.run().name}" in screen.text
    assert not scripted_box.events("stop_requested")
    again = terminal("attach")
    assert again.ends() == 0
    assert "Both LoRAs are ready" in again.text
    assert scripted_box.events("run_finished")[0]["exit_code"] == 0


def test_ctrl_c_and_stop_after_the_next_state(terminal: Start, scripted_box: ScriptedBox) -> None:
    screen = started(terminal, scripted_box)
    screen.types(CTRL_C)
    screen.sees(QUESTION)
    screen.types(DOWN + ENTER)
    screen.sees("Stopping after the next checkpoint")
    scripted_box.wait_for_event("stop_requested", mode="after_state")


def test_ctrl_c_and_stop_now(terminal: Start, scripted_box: ScriptedBox) -> None:
    screen = started(terminal, scripted_box)
    screen.types(CTRL_C)
    screen.sees(QUESTION)
    screen.types(DOWN * 2 + ENTER)
    assert screen.ends() == 130
    assert scripted_box.trainers() == {}


def test_ctrl_c_while_attached_asks_the_same_and_a_second_one_leaves(terminal: Start, endless: ScriptedBox) -> None:
    for answer in (ENTER, CTRL_C):
        screen = terminal("attach", box=endless)
        screen.sees("train-high")
        screen.types(CTRL_C)
        screen.sees(QUESTION)
        screen.sees("Leave it running")
        screen.types(answer)
        assert screen.ends() == 0
        assert f"wan-train attach {endless.run().name}" in screen.text
    assert not endless.events("stop_requested")
    assert endless.trainers()


def test_a_closed_terminal_leaves_the_run_going(terminal: Start, scripted_box: ScriptedBox) -> None:
    screen = started(terminal, scripted_box)
    screen.child.close(force=False)
    before = len(scripted_box.events("epoch_ended"))
    scripted_box.wait_for(lambda: len(scripted_box.events("epoch_ended")) > before + 1, what="more epochs")
    assert scripted_box.trainers()
    assert not scripted_box.events("stop_requested")


def test_the_window_may_change_its_size(terminal: Start, endless: ScriptedBox) -> None:
    screen = terminal("attach", box=endless)
    screen.sees("train-high")
    for columns in (60, 200, 20, 100):
        screen.child.setwinsize(30, columns)
        before = len(screen.raw)
        endless.wait_for(lambda: _drawn(screen, before), what=f"a screen of {columns} columns")  # noqa: B023  called at once
    screen.types("d")
    assert screen.ends() == 0
    assert "Traceback" not in screen.text


def _drawn(screen: Terminal, before: int) -> bool:
    """Whether the view was drawn anew; reads what is there without waiting for the end."""
    screen.child.expect(".+", timeout=10)
    return "train-" in screen.raw[before:] or len(screen.raw) > before + 2000


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {}], ids=["NO_COLOR", "colour"])
def test_colour_can_be_refused(terminal: Start, endless: ScriptedBox, variables: dict[str, str]) -> None:
    assert bool(re.search(r"\x1b\[(?:\d+;)*[39]\dm", _watched(terminal, endless, **variables))) is not bool(variables)


@pytest.mark.parametrize("variables", [{"LANG": "C"}, {"LANG": "de_DE.UTF-8", "LC_ALL": "POSIX"}], ids=str)
def test_the_c_locale_gets_ascii_only(
    terminal: Start, endless: ScriptedBox, past_runs: PastRuns, variables: dict[str, str]
) -> None:
    over = terminal("attach", past_runs.finished.name, box=past_runs.box, **variables)
    assert over.ends() == 0
    assert "ready" in over.text
    shown = over.raw + _watched(terminal, endless, **variables)
    assert [character for character in shown if not character.isascii()] == []


def _watched(terminal: Start, box: ScriptedBox, **env: str) -> str:
    """What the live view of a run wrote until it was left."""
    screen = terminal("attach", box=box, **env)
    screen.sees("train-low")
    screen.types("d")
    assert screen.ends() == 0
    return screen.raw


def test_without_any_locale_the_terminal_is_taken_for_utf8(terminal: Start, past_runs: PastRuns) -> None:
    screen = terminal("attach", past_runs.finished.name, box=past_runs.box, LANG="")
    assert screen.ends() == 0
    assert "✓" in screen.raw


def test_a_dumb_terminal_gets_plain_lines(terminal: Start, scripted_box: ScriptedBox) -> None:
    screen = terminal(*scripted_box.train_words(), TERM="dumb")
    assert screen.ends() == 0
    assert "\x1b" not in screen.raw
    assert "train-high     epoch 3/3" in screen.text


def test_a_dumb_terminal_is_not_asked(terminal: Start, scripted_box: ScriptedBox) -> None:
    screen = terminal("--dataset", str(scripted_box.dataset), TERM="dumb")
    assert screen.ends() == 2
    assert "--yes" in screen.text


def test_ctrl_c_at_a_dumb_terminal_stops_the_run(terminal: Start, scripted_box: ScriptedBox) -> None:
    screen = started(terminal, scripted_box, TERM="dumb")
    screen.types(CTRL_C)
    assert screen.ends() == 130
    assert scripted_box.trainers() == {}


def test_piped_output_is_plain_lines(scripted_box: ScriptedBox) -> None:
    done = subprocess.run(
        ["bash", "-c", '"$0" "$@" | cat; exit ${PIPESTATUS[0]}', str(PROGRAM), *scripted_box.train_words()],
        env=scripted_box.env(TERM="xterm-256color"),
        cwd=scripted_box.root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    lines = [line for line in done.stdout.splitlines() if "epoch 3/3" in line]
    assert len(lines) == 2


@pytest.mark.parametrize("columns", [40, 60, 200])
def test_status_fits_the_terminal(terminal: Start, past_runs: PastRuns, columns: int) -> None:
    screen = terminal("status", past_runs.finished.name, columns=columns, box=past_runs.box)
    assert screen.ends() == 0
    # Paths and commands to copy stay in one piece, four columns from the left.
    lines = [line for line in screen.text.splitlines() if not line.startswith("    ")]
    assert [line for line in lines if len(line.rstrip()) > columns] == []
    assert "train-low" in screen.text


def test_an_idle_terminal_view_shows_progress(terminal: Start, endless: ScriptedBox) -> None:
    """What a person sees in mid-run: both experts, their epochs, the loss and both GPUs."""
    screen = terminal("attach", box=endless)
    for words in ("train-high", "train-low", "epoch", "loss", "GPU 0", "GPU 1", "Ctrl-C"):
        endless.wait_for(lambda words=words: _shows(screen, words), what=words)


def _shows(screen: Terminal, words: str) -> bool:
    screen.child.expect(".+", timeout=10)
    return words in screen.text


def test_the_countdown_is_seen_and_a_key_keeps_the_box_on(terminal: Start, scripted_box: ScriptedBox) -> None:
    with vast_api() as api:
        screen = terminal(*scripted_box.train_words("--then", "stop"), columns=80, **api.environ())
        screen.shows(lambda lines: any("The box will be stopped in" in line for line in lines))
        screen.types("k")
        assert screen.ends() == 0
        assert "The box stays on, and costs money: the key k cancelled its end." in screen.text
        assert api.is_running


def test_any_command_at_a_terminal_keeps_the_box_on(terminal: Start, scripted_box: ScriptedBox) -> None:
    with vast_api() as api:
        done = scripted_box.run_cli(*scripted_box.train_words("--then", "stop"), **api.environ())
        assert done.returncode == 0, done.stderr

        def phase() -> str:
            return json.loads(scripted_box.run_cli("status", "--json").stdout)["box_end"]["phase"]

        scripted_box.wait_for(lambda: phase() == "countdown", what="the countdown")
        screen = terminal("status", columns=80)
        assert screen.ends() == 0
        assert "Your command cancelled that" in " ".join(screen.text.split())
        scripted_box.wait_for(lambda: phase() == "cancelled", what="the guardian's next round")
        assert api.is_running

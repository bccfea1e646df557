"""The keys of the live view, its screen on windows of all sizes, and the terminal it gives back."""

from __future__ import annotations

import pytest
from tty_keys import CTRL_C, DOWN, ENTER, Start, Terminal

from support.trainers import PROGRAM, ScriptedBox

KEYS = "d leave   s stop   l logs   ? help   Ctrl-C asks"
TAKEN, GIVEN_BACK = "\x1b[?1049h", "\x1b[?1049l"
CTRL_Z, CURSOR_UP = "\x1a", "\x1b[A"


@pytest.fixture
def watching(terminal: Start, endless: ScriptedBox) -> Terminal:
    """A run that goes on for long, seen from a terminal."""
    return attached(terminal, endless)


def begun(box: ScriptedBox) -> None:
    """A run of the test's own, in its first epochs."""
    box.run_cli(*box.train_words("--epochs", "500", "--detach"), SCRIPTED_STEP_SECONDS="0.1")
    box.wait_for_event("epoch_ended", step="train-low")


def attached(terminal: Start, box: ScriptedBox) -> Terminal:
    screen = terminal("attach", columns=80, box=box)
    screen.shows(lambda lines: KEYS in lines and any("loss" in line for line in lines))
    return screen


def test_d_leaves_and_the_last_look_stays(watching: Terminal, endless: ScriptedBox) -> None:
    watching.types("d")
    assert watching.ends() == 0
    left = watching.raw.rpartition(GIVEN_BACK)[2]
    assert "train-high" in left
    assert "d leave" not in watching.text.rpartition("train-high")[2]
    assert f"wan-train attach {endless.run().name}" in watching.text
    assert endless.trainers()
    assert not endless.events("stop_requested")


def test_s_asks_and_any_other_key_goes_on(watching: Terminal, endless: ScriptedBox) -> None:
    for answer in (ENTER, "s", CURSOR_UP):
        watching.types("s")
        watching.shows(lambda lines: any(line.startswith("Stop after the next checkpoint") for line in lines))
        watching.types(answer)
        watching.shows(lambda lines: KEYS in lines)
    watching.types("d")
    assert watching.ends() == 0
    assert not endless.events("stop_requested")


def test_s_and_y_stop_after_the_next_state(terminal: Start, scripted_box: ScriptedBox) -> None:
    begun(scripted_box)
    watching = attached(terminal, scripted_box)
    watching.types("s")
    watching.shows(lambda lines: any(line.startswith("Stop after the next checkpoint") for line in lines))
    watching.types("y")
    scripted_box.wait_for_event("stop_requested", mode="after_state")
    watching.shows(lambda lines: any("stop requested: after the next checkpoint" in line for line in lines))
    assert "stopping" in watching.shows(lambda lines: "stopping" in lines[0])[0]


def test_l_shows_what_both_trainers_print(watching: Terminal) -> None:
    watching.types("l")
    lines = watching.shows(lambda lines: sum(line.startswith("steps:") for line in lines) >= 2)
    heads = [line.split()[0] for line in lines if line.endswith("output.log")]
    assert heads == ["train-high", "train-low"]
    watching.types(" ")
    watching.shows(lambda lines: KEYS in lines)


def test_question_mark_helps(watching: Terminal, endless: ScriptedBox) -> None:
    watching.types("?")
    lines = watching.shows(lambda lines: lines[0] == "Keys")
    assert f"wan-train attach {endless.run().name}" in " ".join(" ".join(lines).split())
    watching.types("?")
    watching.shows(lambda lines: KEYS in lines)


def test_every_size_of_window_is_filled_anew(watching: Terminal) -> None:
    for rows, columns in ((24, 60), (40, 200), (10, 80), (6, 60), (30, 120), (2, 20), (24, 80)):
        watching.resize(rows, columns)
        lines = watching.shows(lambda lines: whole(lines) if len(lines) >= 6 else lines[0].startswith("cat "))
        assert len(lines) == rows


def whole(lines: list[str]) -> bool:
    """Whether the screen has its head, both trainings and its foot, each once."""
    text = "\n".join(lines)
    steps = [sum(line[2:].startswith("run") and step in line for line in lines) for step in ("train-high", "train-low")]
    return lines[0].startswith("cat ") and steps == [1, 1] and text.count("cat   ") == 1 and lines.count(KEYS) == 1


def test_the_terminal_is_the_shells_again_while_suspended_and_after_the_end(
    terminal: Start, scripted_box: ScriptedBox
) -> None:
    begun(scripted_box)
    shell = terminal("--norc", "--noprofile", "-i", program="/bin/bash", PS1="shell> ")
    shell.sees("shell>")
    shell.types(f"{PROGRAM} attach &\r")
    shell.sees("shell>")
    shell.types("stty -a; echo mo'des'\r")
    shell.sees("modes")
    assert TAKEN not in shell.raw, "a background job leaves the screen alone"
    shell.types("fg\r")
    shell.shows(lambda lines: KEYS in lines)
    shell.types(CTRL_Z)
    shell.sees("Stopped")
    assert shell.raw.count(GIVEN_BACK) == 1
    check_modes(shell, "one")
    shell.types("fg\r")
    shell.shows(lambda _: shell.raw.count(TAKEN) == 2)
    with scripted_box.run().joinpath("events.jsonl").open("a") as journal:
        journal.write("no event\n")
    shell.sees("error:")
    assert shell.raw.count(GIVEN_BACK) == 2
    check_modes(shell, "two")
    assert scripted_box.trainers()


def check_modes(shell: Terminal, name: str) -> None:
    """The shell's terminal edits lines and shows what is typed."""
    before = len(shell.raw)
    shell.types(f"stty -a; echo told-{name[:1]}'{name[1:]}'\r")
    shell.sees(f"told-{name}")
    assert {"icanon", "echo", "icrnl"} <= set(shell.raw[before:].replace(";", " ").split())


def test_ctrl_c_asks_on_the_shells_own_screen(watching: Terminal) -> None:
    watching.types(CTRL_C)
    watching.sees("The training is still running. What now?")
    assert watching.raw.count(GIVEN_BACK) == 1
    watching.types(DOWN * 3 + ENTER)
    watching.shows(lambda lines: KEYS in lines)
    assert watching.raw.count(TAKEN) == 2

"""`wan-train provision` at a real terminal: the question, the screen, another width, Ctrl-C."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator

import pexpect
import pytest
from provision_world import World

from support.pseudo_terminal import ForkedAtTerminal
from wan_train.provision.models import wanted
from wan_train.recipe.terms import Task

CTRL_C, SHOW_CURSOR, HIDE_CURSOR = "\x03", "\x1b[?25h", "\x1b[?25l"
Start = Callable[..., pexpect.spawn | ForkedAtTerminal]


@pytest.fixture
def terminal(world: World) -> Iterator[Start]:
    opened: list[pexpect.spawn | ForkedAtTerminal] = []

    def start(*words: str, columns: int = 100, **env: str) -> pexpect.spawn | ForkedAtTerminal:
        argv = world.argv(*words)
        environment = {name: value for name, value in world.environment().items() if name not in {"COLUMNS", "LINES"}}
        environment |= {"TERM": "xterm-256color", **env}
        how = {"env": environment, "dimensions": (40, columns), "encoding": "utf-8", "timeout": 60}
        if "LC_ALL" in env:  # read when Python starts
            child = pexpect.spawn(argv[0], argv[1:], **how)
        else:
            child = ForkedAtTerminal(argv[argv.index("provision") :], cwd=world.folder, **how)
        opened.append(child)
        return child

    yield start
    for child in opened:
        if not child.closed:
            child.close(force=True)
        sys.stdout.write(f"--- screen ---\n{child.before}\n")


def ends(child: pexpect.spawn | ForkedAtTerminal) -> tuple[int | None, str]:
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus, child.before


def test_no_at_the_question_changes_nothing(world: World, terminal: Start) -> None:
    child = terminal("--models-only")
    child.expect_exact("Download 800 kB of models?")
    child.send("n")
    code, screen = ends(child)
    assert code == 0
    assert "Nothing was changed." in screen
    assert not world.workspace.exists()


def test_a_narrowed_screen_shows_the_download_and_ctrl_c_leaves_the_terminal_whole(
    world: World, terminal: Start
) -> None:
    slow = wanted((Task.T2V,))[1]
    world.hub.slow.add(f"{slow.repo}/{slow.file}")
    child = terminal("--yes", "--models-only")
    child.expect_exact(HIDE_CURSOR)
    child.expect_exact("all downloads")
    assert world.hub.slow_began.wait(60)
    child.setwinsize(30, 60)
    child.expect_exact("\x1b[2J")
    child.expect_exact("all downloads")
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", child.before)
    assert max(len(line) for line in re.split(r"[\r\n]+", drawn)) <= 60
    child.send(CTRL_C)
    code, screen = ends(child)
    assert code == 130
    assert SHOW_CURSOR in screen
    assert "Completed work is kept" in screen
    assert "Traceback" not in screen
    assert [path.exists() for path in world.models()] == [True, False, True, True]


def test_a_closed_terminal_ends_it_and_leaves_no_program(world: World, terminal: Start) -> None:
    slow = wanted((Task.T2V,))[0]
    world.hub.slow.add(f"{slow.repo}/{slow.file}")
    child = terminal("--yes", "--models-only")
    child.expect_exact("all downloads")
    assert world.hub.slow_began.wait(60)
    child.close(force=False)
    assert child.exitstatus == 129
    world.hub.slow.clear()
    world.hub.go_on.set()
    done = world.provision("--yes", "--models-only")  # the lock is free: nothing was left
    assert done.returncode == 0, done.stderr
    log = (world.workspace / "wan-train-provision/provision.log").read_text()
    assert "the terminal was closed" in log


def test_without_colour_and_unicode_it_is_still_told(terminal: Start) -> None:
    child = terminal("--yes", "--models-only", columns=80, LC_ALL="C", NO_COLOR="1")
    code, screen = ends(child)
    assert code == 0
    assert "Everything requested is installed." in screen
    assert screen.isascii()

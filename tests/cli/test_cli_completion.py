"""The Tab key: in a real bash, and by what zsh and fish ask for; nothing offered could be obeyed by a shell."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from support.past_runs import PastRuns
from support.trainers import PROGRAM, ScriptedBox

_PROMPT = "ready> "
_PATIENCE_SECONDS = 60


def install(box: ScriptedBox) -> subprocess.CompletedProcess[str]:
    """From a bash: which shell it is for is read off the parents, and tests may have been started by none."""
    box.through = ("bash", "-c", '"$@"; exit $?', "bash")
    try:
        return box.run_cli("--install-completion")
    finally:
        box.through = ()


class Bash:
    """A bash at a terminal, in which `--install-completion` was said before."""

    def __init__(self, box: ScriptedBox) -> None:
        installed = install(box)
        assert installed.returncode == 0, installed.stderr
        self.child = pexpect.spawn(
            "bash",
            ["--noprofile", "-i"],  # ~/.bashrc is read: completion was installed there
            env=box.env(TERM="dumb", PS1=_PROMPT, PATH=f"{PROGRAM.parent}:{box.env()['PATH']}"),
            cwd=str(box.root),
            dimensions=(40, 200),
            encoding="utf-8",
            timeout=_PATIENCE_SECONDS,
        )
        self._lines = 0
        self._afresh(f"PS1='{_PROMPT}'; bind 'set show-all-if-ambiguous on'; ")

    def _afresh(self, first: str = "") -> None:
        """An empty line at a new prompt.

        By keys that wait their turn, never Ctrl-C: a signal that comes while bash still completes is not answered.
        """
        self._lines += 1
        self.child.send(f"\x15{first}echo line {self._lines}\r")
        self.child.expect_exact(f"\r\nline {self._lines}\r\n")
        self.child.expect_exact(_PROMPT)

    def completes(self, typed: str, wanted: str) -> None:
        """One Tab after `typed` makes the line `wanted`."""
        self.child.send(f"{typed}\t")
        self.child.expect_exact(wanted)
        self._afresh()

    def lists(self, typed: str, *wanted: str) -> None:
        """One Tab after `typed` lists these words, in this order."""
        self.child.send(f"{typed}\t")
        for word in wanted:
            self.child.expect_exact(word)
        self.child.expect_exact(_PROMPT)
        self._afresh()


@pytest.fixture
def bash(past_runs: PastRuns) -> Iterator[Bash]:
    opened = Bash(past_runs.box)
    yield opened
    opened.child.close(force=True)


def asked_by_zsh(box: ScriptedBox, line: str, **env: str) -> str:
    done = box.run_cli(_TYPER_COMPLETE_ARGS=line, _WAN_TRAIN_COMPLETE="complete_zsh", **env)
    assert done.stderr == ""
    return done.stdout


def asked_by_fish(box: ScriptedBox, line: str, **env: str) -> list[str]:
    """The words offered, without their explanations."""
    done = box.run_cli(
        _TYPER_COMPLETE_ARGS=line,
        _TYPER_COMPLETE_FISH_ACTION="get-args",
        _WAN_TRAIN_COMPLETE="complete_fish",
        **env,
    )
    assert done.stderr == ""
    return [word.partition("\t")[0] for word in done.stdout.splitlines() if word]


def make_run(runs: Path, name: str) -> None:
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text("{}", encoding="utf-8")


def test_in_a_real_bash(bash: Bash, past_runs: PastRuns) -> None:
    bash.lists("wan-train st", "status", "stop")
    bash.completes("wan-train --ti", "wan-train --title ")
    bash.completes("wan-train --yes --exp", "wan-train --yes --experts ")
    bash.lists("wan-train --task ", "i2v", "t2v")
    name = past_runs.failed.name
    bash.completes(f"wan-train resume {name[:-2]}", f"wan-train resume {name} ")
    bash.lists("wan-train attach ", *sorted(run.name for run in past_runs.box.run_directories()))
    bash.lists("wan-train logs --step ", "cache-latents", "cache-text", "train-high", "train-low")
    bash.completes("wan-train dataset wr", "wan-train dataset write ")
    bash.completes("wan-train --dataset pict", "wan-train --dataset pictures/")


def test_installing_twice_changes_the_users_file_once(scripted_box: ScriptedBox) -> None:
    rc = scripted_box.home / ".bashrc"
    rc.write_text("alias ll='ls -l'\n", encoding="utf-8")
    for _ in range(2):
        assert install(scripted_box).returncode == 0
    lines = rc.read_text(encoding="utf-8").split("\n")
    assert lines[0] == "alias ll='ls -l'"
    assert len([line for line in lines if "wan-train" in line]) == 1


@pytest.mark.parametrize("verb", ["attach", "resume", "explain", "status", "logs", "stop"])
def test_zsh_and_fish_are_offered_the_runs(past_runs: PastRuns, verb: str) -> None:
    names = {run.name for run in past_runs.box.run_directories()}
    assert set(asked_by_fish(past_runs.box, f"wan-train {verb} ")) == names
    assert all(f'"{name}"' in asked_by_zsh(past_runs.box, f"wan-train {verb} ") for name in names)


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("wan-train ", {"train", "provision", "dataset"}),
        ("wan-train dataset ", {"check", "write"}),
        ("wan-train --", {"--version", "--title", "--dataset"}),
        ("wan-train --experts ", {"both", "high", "low"}),
        ("wan-train --title cat --engine ", {"musubi", "rehearsal"}),
        ("wan-train stop --", {"--now", "--runs-dir"}),
        ("wan-train provision --engine ", {"guide", "v0.3.4"}),
        ("wan-train dataset write --frame-ext", {"--frame-extraction"}),
        ("wan-train dataset check --task ", {"t2v", "i2v"}),
    ],
)
def test_verbs_flags_and_choices(past_runs: PastRuns, line: str, some: set[str]) -> None:
    assert some <= set(asked_by_fish(past_runs.box, line))
    assert all(f'"{word}"' in asked_by_zsh(past_runs.box, line) for word in some)


def test_steps_are_those_of_the_run_that_is_named(past_runs: PastRuns) -> None:
    line = f"wan-train logs {past_runs.failed.name} --step train-"
    assert asked_by_fish(past_runs.box, line) == ["train-high", "train-low"]


def test_the_place_of_the_runs_is_heeded(quiet_box: ScriptedBox, tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "20260101-120000-cat")
    flag = asked_by_fish(quiet_box, f"wan-train attach --runs-dir {tmp_path}/runs 2026")
    variable = asked_by_fish(quiet_box, "wan-train attach 2026", WAN_TRAIN_RUNS_DIR=str(tmp_path / "runs"))
    assert flag == variable == ["20260101-120000-cat"]
    assert asked_by_fish(quiet_box, "wan-train attach 2026") == []


@pytest.mark.parametrize(
    "name", ["$(touch gone)", "`touch gone`", "a;b", "a b", "*", "--now", "'", 'a"b', "a\nb", "\x1b[2J", "a:b", "~x"]
)
def test_names_that_a_shell_could_obey_are_not_offered(quiet_box: ScriptedBox, tmp_path: Path, name: str) -> None:
    runs = tmp_path / "runs"
    make_run(runs, name)
    make_run(runs, "20260101-120000-Käse_2")
    assert asked_by_fish(quiet_box, "wan-train attach ", WAN_TRAIN_RUNS_DIR=str(runs)) == ["20260101-120000-Käse_2"]


def test_steps_of_a_broken_plan_are_not_offered(quiet_box: ScriptedBox, tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "20260101-120000-cat")
    assert asked_by_fish(quiet_box, "wan-train logs --step ", WAN_TRAIN_RUNS_DIR=str(tmp_path / "runs")) == []


def test_what_is_wrong_elsewhere_is_not_said_while_typing(scripted_box: ScriptedBox) -> None:
    file = scripted_box.home / ".config" / "wan-train" / "settings.toml"
    file.parent.mkdir(parents=True)
    file.write_text("poll_seconds = \n", encoding="utf-8")
    assert asked_by_fish(scripted_box, "wan-train attach ") == []
    assert asked_by_fish(scripted_box, "wan-train nonsense --wh") == []


@pytest.mark.parametrize("line", ["attach ", "logs --step "])
def test_completing_loads_nothing_heavy(past_runs: PastRuns, line: str) -> None:
    program = (
        "import sys; from wan_train.cli.main import run\n"
        "try: run([])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    env = past_runs.box.env(
        _TYPER_COMPLETE_ARGS=f"wan-train {line}",
        _TYPER_COMPLETE_FISH_ACTION="get-args",
        _WAN_TRAIN_COMPLETE="complete_fish",
    )
    python = shutil.which("python", path=str(PROGRAM.parent))
    assert python is not None
    done = subprocess.run([python, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout
    heavy = {"torch", "huggingface_hub", "pynvml", "av", "questionary", "PIL", "psutil"}
    assert heavy.isdisjoint(done.stderr.split())

"""Commands of a laptop where nothing is there that only Linux has, as on macOS. A real Mac has not been tried."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.past_runs import PastRuns
from support.vast_account import Account

NO_LINUX = Path(__file__).parents[1] / "support/no_linux"
ONE_AFTER_THE_OTHER = """
import json, os, sys
from pathlib import Path
from wan_train.cli.main import run
assert sys.platform == "darwin" and not hasattr(os, "sched_getaffinity")
try:
    Path("/proc/self/stat").read_text()
    raise SystemExit("/proc is there")
except FileNotFoundError:
    pass
for words in json.loads(sys.argv[1]):
    print("$", *words, flush=True)
    code = run(words)
    print("exit", code, flush=True)
"""


def answers(commands: list[list[str]], cwd: Path, env: Mapping[str, str]) -> str:
    """What the commands print, in one process without Linux. Every one must end well."""
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER, json.dumps(commands)],
        cwd=cwd,
        env={**env, "PYTHONPATH": str(NO_LINUX)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nexit 0\n") == len(commands), done.stdout + done.stderr
    return done.stdout


def test_runs_are_looked_at(past_runs: PastRuns, tmp_path: Path) -> None:
    one, other = past_runs.finished.name, past_runs.also_finished.name
    shown = answers(
        [
            ["runs"],
            ["status", one],
            ["status", one, "--json"],
            ["compare", one, other],
            ["report", one],
        ],
        tmp_path,
        past_runs.box.env(),
    )
    assert "finished" in shown
    assert str(past_runs.finished / "report.html") in shown


@pytest.mark.usefixtures("account")
def test_datasets_are_checked_and_a_launch_is_planned(account: Account, tmp_path: Path) -> None:
    shown = answers(
        [
            ["dataset", "check", "cats"],
            ["dataset", "write", "cats", "--yes"],
            ["launch", "cats", "--dry-run"],
        ],
        tmp_path,
        os.environ,
    )
    assert "RTX 4090" in shown
    assert account.asked

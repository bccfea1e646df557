"""A kill by the kernel for lack of RAM is told from any other kill -9 by what the container counted."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from support.runs import make_plan
from wan_train.engine.failures import Cause
from wan_train.run import verdict
from wan_train.run.directory import RunDirectory
from wan_train.run.events import Exit, Exited, Signaled
from wan_train.run.machine import oom_kills

KILLED = Signaled(signal=signal.SIGKILL)
BY_LAUNCHER = "subprocess.CalledProcessError: Command '[...]' died with <Signals.SIGKILL: 9>.\n"


@pytest.mark.parametrize(
    ("ended", "log", "counted", "cause"),
    [
        (KILLED, "", True, Cause.HOST_OUT_OF_MEMORY),
        (KILLED, "", False, Cause.INTERRUPTED),
        (Exited(code=1), BY_LAUNCHER, True, Cause.HOST_OUT_OF_MEMORY),
        (Exited(code=1), BY_LAUNCHER, False, Cause.INTERRUPTED),
        (Signaled(signal=signal.SIGTERM), "", True, Cause.INTERRUPTED),
    ],
)
def test_by_the_counter(tmp_path: Path, ended: Exit, log: str, *, counted: bool, cause: Cause) -> None:
    plan = make_plan(run_dir=tmp_path / "run")
    attempt = RunDirectory(plan.run_dir).attempt("train-high", 1)
    attempt.output.mkdir(parents=True)
    attempt.log.write_text(log)
    final = attempt.output / "x.safetensors"
    found = verdict.judge(plan.step("train-high"), attempt, ended, final_lora=final, out_of_ram=counted)
    assert found is not None
    assert found.cause is cause


def test_the_counter_of_both_versions(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert oom_kills(tmp_path) == 2
    (tmp_path / "memory.events").write_text("low 0\nhigh 3\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n")
    assert oom_kills(tmp_path) == 1

"""The one runner of child programs: exit codes, deadlines, floods, secrets, and nothing left running."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil

from wan_train.base.process import run


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_output_errors_and_the_exit_code_are_kept_apart() -> None:
    done = run(python("import sys; print('said'); print('warned', file=sys.stderr); sys.exit(3)"), seconds=60)
    assert (done.code, done.output, done.errors, done.succeeded) == (3, "said\n", "warned\n", False)
    assert done.tail() == "warned"


def test_stdin_reaches_the_program() -> None:
    program = "import sys; sys.stderr.write(sys.stdin.read().upper())"
    done = run(python(program), seconds=60, stdin="abc")
    assert (done.output, done.errors) == ("", "ABC")


def test_a_program_that_is_missing_is_an_outcome(tmp_path: Path) -> None:
    done = run([tmp_path / "nothing", "x"], seconds=60)
    assert done.code is None
    assert done.tail() == f"{tmp_path / 'nothing'} cannot be started: No such file or directory"


def test_a_program_past_its_deadline_is_ended_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(600)\n"
    )
    # The deadline must be later than the program's own start, however busy the machine is.
    done = run(python(program), seconds=5)
    assert done.code is None
    assert done.trouble == "no end within 5 seconds"
    program_and_child = [int(pid) for pid in pids.read_text().split()]
    assert len(program_and_child) == 2
    # Both were sent SIGKILL; the kernel may end the one that we cannot wait for a moment later.
    while any(is_running(pid) for pid in program_and_child):
        time.sleep(0.01)


def test_of_a_flood_the_end_is_kept() -> None:
    done = run(python("print('x' * 1_000_000); print('the end')"), seconds=60, limit=1000)
    assert len(done.output) == 1000
    assert done.output.endswith("the end\n")


def test_secrets_are_removed() -> None:
    done = run(python("print('Authorization: Bearer abcdefgh12345678')"), seconds=60)
    assert "abcdefgh" not in done.output
    assert "[hidden]" in done.output


def test_a_program_killed_by_a_signal_has_a_negative_code() -> None:
    done = run(python("import os; os.kill(os.getpid(), 9)"), seconds=60)
    assert done.code == -9

"""`wan-train explain FILE`: what any log says, what to do, and whether to try again."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from support.trainers import ScriptedBox, json_lines

HEAD = 'Traceback (most recent call last):\n  File "/w/train.py", line 6, in main\n    train()\n'


def log(folder: Path, text: str) -> str:
    path = folder / "trainer.log"
    path.write_text(HEAD + text, encoding="utf-8")
    return str(path)


def test_a_wrong_setting_is_never_worth_another_attempt(quiet_box: ScriptedBox, tmp_path: Path) -> None:
    done = quiet_box.run_cli("explain", log(tmp_path, "ValueError: 'sometimes' is not a valid SchedulerType\n"))
    assert done.returncode == 0, done.stderr
    assert "there is no learning-rate schedule sometimes" in done.stdout
    assert "cosine_with_restarts" in done.stdout
    assert "retry: cannot help; start a new run" in done.stdout


def test_a_text_of_several_lines_is_shown_whole_and_safe(quiet_box: ScriptedBox, tmp_path: Path) -> None:
    text = "RuntimeError: first line\n  second \x1b]0;title\x07 line\n\nthird hf_" + "x" * 30 + " line\n"
    done = quiet_box.run_cli("explain", log(tmp_path, text))
    assert [line.strip() for line in done.stdout.splitlines()[1:4]] == [
        "error output: RuntimeError: first line",
        "second  line",
        "third [hidden] line",
    ]


def test_a_limit_is_named_with_its_value(quiet_box: ScriptedBox, tmp_path: Path) -> None:
    done = quiet_box.run_cli("explain", log(tmp_path, "OSError: [Errno 24] Too many open files\n"))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert f"`ulimit -n` is {soft}" in done.stdout
    done = quiet_box.run_cli("explain", log(tmp_path, "RuntimeError: can't start new thread\n"))
    assert "`ulimit -u` is" in done.stdout
    assert "pids.max" in done.stdout


@pytest.mark.parametrize(
    ("text", "another", "after"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory.\n", "next_memory_setting", None),
        ("x.HfHubHTTPError: 429 Too Many Requests\nRetry after 57 seconds (0/3000)\n", "later", 57),
        ("RuntimeError: No CUDA GPUs are available\n", "cannot_help", None),
        ("ValueError: nobody knows\n", "may_help", None),
    ],
)
def test_scripts_learn_whether_to_try_again(
    quiet_box: ScriptedBox, tmp_path: Path, text: str, another: str, after: float | None
) -> None:
    (told,) = json_lines(quiet_box.run_cli("explain", log(tmp_path, text), "--json").stdout)
    (failure,) = told["failures"]
    assert (failure["another_attempt"], failure["retry_after"]) == (another, after)

"""The verbs about runs: which run they mean, and what they say of runs that are over."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.past_runs import PastRuns
from support.trainers import PROGRAM, ScriptedBox

VERBS = ("attach", "status", "logs", "stop", "resume")


def test_runs_lists_all_newest_first(past_runs: PastRuns) -> None:
    done = past_runs.box.run_cli("runs", COLUMNS="100")
    assert done.returncode == 0, done.stderr
    positions = [done.stdout.index(run.name) for run in (past_runs.failed, past_runs.also_finished, past_runs.finished)]
    assert positions == sorted(positions)
    assert "finished" in done.stdout
    assert "failed" in done.stdout


def test_runs_says_when_there_are_none(quiet_box: ScriptedBox) -> None:
    done = quiet_box.run_cli("runs")
    assert done.returncode == 0
    assert str(quiet_box.runs) in done.stdout + done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_run_is_named_with_the_way_to_the_list(past_runs: PastRuns, verb: str) -> None:
    done = past_runs.box.run_cli(verb, "elephant")
    assert done.returncode == 2
    assert "elephant" in done.stderr
    assert "wan-train runs" in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_a_name_that_fits_several_runs_lists_them(past_runs: PastRuns, verb: str) -> None:
    done = past_runs.box.run_cli(verb, "cat")
    assert done.returncode == 2
    hints = [line for line in done.stderr.splitlines() if line.startswith("hint: ")]
    newest_first = [past_runs.also_finished, past_runs.finished]
    assert hints == [f"hint: wan-train {verb} {run.name}" for run in newest_first]


def test_the_commands_for_an_ambiguous_name_keep_the_other_words(past_runs: PastRuns) -> None:
    done = past_runs.box.run_cli("logs", "cat", "--step", "train-high")
    assert f"hint: wan-train logs {past_runs.finished.name} --step train-high" in done.stderr.splitlines()


@pytest.mark.parametrize("verb", VERBS)
def test_a_path_out_of_the_runs_is_no_run(past_runs: PastRuns, verb: str) -> None:
    done = past_runs.box.run_cli(verb, "../../etc")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_part_of_the_name_a_path_and_nothing_lead_to_runs(past_runs: PastRuns) -> None:
    for words, run in (
        (["cattle"], past_runs.also_finished),
        ([past_runs.finished.name], past_runs.finished),
        ([str(past_runs.finished)], past_runs.finished),
        ([], past_runs.failed),
        (["last"], past_runs.failed),
    ):
        assert run.name in past_runs.box.run_cli("status", *words, COLUMNS="120").stdout, words


def test_status_is_about_looking_so_it_ends_with_0(past_runs: PastRuns) -> None:
    done = past_runs.box.run_cli("status", past_runs.failed.name)
    assert done.returncode == 0
    assert "failed" in done.stdout


@pytest.mark.parametrize(("which", "code"), [("finished", 0), ("failed", 5)])
def test_attach_to_a_run_that_is_over_ends_with_its_code(past_runs: PastRuns, which: str, code: int) -> None:
    run: Path = getattr(past_runs, which)
    done = past_runs.box.run_cli("attach", run.name)
    assert done.returncode == code, done.stderr
    assert "train-high" in done.stdout
    for lora in run.glob("*.safetensors"):
        assert str(lora) in done.stdout.replace("\n", "")


@pytest.mark.parametrize("now", [[], ["--now"]])
def test_stopping_what_is_over_changes_nothing(past_runs: PastRuns, now: list[str]) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in past_runs.finished.iterdir())
    done = past_runs.box.run_cli("stop", past_runs.finished.name, *now)
    assert done.returncode == 0
    assert "over already" in done.stdout + done.stderr
    assert sorted((path.name, path.stat().st_mtime_ns) for path in past_runs.finished.iterdir()) == before


@pytest.mark.parametrize("follow", [[], ["-f"]])
@pytest.mark.parametrize("step", ["cache-latents", "cache-text", "train-high", "train-low"])
def test_logs_print_the_trainers_own_words(past_runs: PastRuns, step: str, follow: list[str]) -> None:
    done = past_runs.box.run_cli("logs", past_runs.finished.name, "--step", step, *follow)
    assert done.returncode == 0, done.stderr
    assert str(past_runs.finished / step / "1" / "output.log") in done.stderr
    wanted = "epoch 3/3" if step.startswith("train") else "Encoding dataset"
    assert wanted in done.stdout
    assert "\r" not in done.stdout


def test_logs_of_a_step_that_is_none_name_the_steps(past_runs: PastRuns) -> None:
    done = past_runs.box.run_cli("logs", past_runs.finished.name, "--step", "train-middle")
    assert done.returncode == 2
    assert "train-high" in done.stderr


def test_logs_hold_nothing_that_a_terminal_would_obey(scripted_box: ScriptedBox) -> None:
    scripted_box.train(SCRIPTED_FAULT="ansi@high,invalid_utf8@high")
    done = scripted_box.run_cli("logs", "--step", "train-high")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "\x07" not in done.stdout
    assert "red" in done.stdout


def test_logs_follow_a_run_to_its_end(scripted_box: ScriptedBox) -> None:
    started = scripted_box.run_cli(*scripted_box.train_words("--detach"), SCRIPTED_STEP_SECONDS="0.2")
    assert started.returncode == 0, started.stderr
    scripted_box.wait_for_event("step_started", step="train-high")
    done = scripted_box.run_cli("logs", "-f", "--step", "train-high")
    assert done.returncode == 0
    assert "epoch 3/3" in done.stdout
    assert scripted_box.events("run_finished")


def test_detach_prints_the_run_id_alone_on_stdout(scripted_box: ScriptedBox) -> None:
    done = scripted_box.run_cli(*scripted_box.train_words("--detach"))
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == scripted_box.run().name
    scripted_box.wait_for_event("run_finished", exit_code=0)


def test_stop_now_ends_a_running_run(scripted_box: ScriptedBox) -> None:
    words = scripted_box.train_words("--epochs", "500", "--detach")
    assert scripted_box.run_cli(*words, SCRIPTED_STEP_SECONDS="0.1").returncode == 0
    scripted_box.wait_for_event("epoch_ended", step="train-low")
    done = scripted_box.run_cli("stop", "--now")
    assert done.returncode == 0, done.stderr
    scripted_box.wait_for_event("run_finished", exit_code=143)
    assert scripted_box.run_cli("attach").returncode == 143
    assert scripted_box.trainers() == {}


@pytest.mark.parametrize(
    "words",
    [["runs"], ["status"], ["logs"], ["attach"], ["train", "--help"], ["attach", "--json"]],
    ids=" ".join,
)
def test_a_reader_that_leaves_early_gets_no_traceback(past_runs: PastRuns, words: list[str]) -> None:
    """`wan-train logs | head -1`."""
    process = subprocess.Popen(
        [PROGRAM, *words],
        env=past_runs.box.env(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    said = process.communicate()[1].decode()
    assert "Traceback" not in said
    assert "BrokenPipe" not in said
    assert "Exception ignored" not in said
    assert process.returncode == 0


def test_a_run_that_the_disk_cannot_hold_leaves_no_directory(scripted_box: ScriptedBox) -> None:
    """As on a full disk, no file may be larger than a part of the plan."""
    scripted_box.through = ("prlimit", "--fsize=4000", "env", "PYTHONDONTWRITEBYTECODE=1")
    assert scripted_box.train().returncode != 0
    assert list(scripted_box.runs.iterdir()) == []

"""What is wrong on a command line gets one message, a hint and exit code 2; never a traceback."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

from support.trainers import ScriptedBox
from wan_train.base.errors import BadInputError
from wan_train.cli.app import app
from wan_train.cli.main import run
from wan_train.cli.output import Sink

VERBS = tuple(command.callback.__name__ for command in app.registered_commands if command.callback is not None)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["fly"], "fly"),
        (["--fly"], "--fly"),
        (["train", "--fly"], "--fly"),
        (["status", "--epochs", "3"], "--epochs"),
        (["--epochs", "many"], "--epochs"),
        (["--task", "t2x"], "--task"),
        (["--experts", "middle"], "--experts"),
        (["--engine", "steam"], "--engine"),
        (["--attention", "none"], "--attention"),
        (["--epochs"], "--epochs"),
        (["status", "one", "two"], "two"),
        (["stop", "--sometime"], "--sometime"),
    ],
    ids=" ".join,
)
def test_a_wrong_word_is_named(quiet_box: ScriptedBox, words: list[str], named: str) -> None:
    done = quiet_box.run_cli(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    first = done.stderr.splitlines()[0]
    assert first.startswith("error: ")
    assert named in first
    assert "hint: " in done.stderr
    assert "--help" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "env", "said"),
    [
        (["pictures"], {}, "no such command: pictures"),
        (["help", "nothing"], {}, "no such command: nothing"),
        (["train", "extra", "words"], {}, "unexpected arguments: extra words"),
        (["--title"], {}, "--title needs a value"),
        (["--epochs", "ten"], {}, "--epochs 'ten' is not a whole number"),
        (["--alpha", "ten"], {}, "--alpha 'ten' is not a number"),
        ([], {"WAN_TRAIN_EPOCHS": "ten"}, "WAN_TRAIN_EPOCHS is 'ten', which is not a whole number"),
        ([], {"WAN_TRAIN_YES": "maybe"}, "WAN_TRAIN_YES is 'maybe', which is neither 1 nor 0"),
        (["--experts", "none"], {}, "--experts: 'none' is not one of 'both', 'high', 'low'"),
        (["dataset"], {}, "`wan-train dataset` needs a command: check or write"),
        (["dataset", "check"], {}, "PATH is missing"),
        (["stop", "--sometime"], {}, "no such option: --sometime"),
    ],
)
def test_words_of_usage_are_ours(quiet_box: ScriptedBox, words: list[str], env: dict[str, str], said: str) -> None:
    done = quiet_box.run_cli(*words, **env)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"error: {said}"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["stauts"], "wan-train status"),
        (["step"], "wan-train stop"),
        (["dataset", "chekc"], "wan-train dataset check"),
        (["--epcohs", "3"], "--epochs"),
        (["runs", "--jsn"], "--json"),
        (["cats"], None),
        (["dogs"], None),
        (["--cat"], None),
    ],
    ids=str,
)
def test_only_what_is_close_is_suggested(quiet_box: ScriptedBox, words: list[str], meant: str | None) -> None:
    said = quiet_box.run_cli(*words).stderr
    assert re.findall(r"Did you mean `(.*?)`\?", said) == ([meant] if meant else [])
    assert "Possible options" not in said


@pytest.mark.parametrize("words", [["pictures"], ["train", "pictures"]])
def test_who_names_only_the_dataset_is_told_the_option(quiet_box: ScriptedBox, words: list[str]) -> None:
    assert "`wan-train --dataset pictures`" in quiet_box.run_cli(*words).stderr


def test_a_path_with_a_space_is_quoted(quiet_box: ScriptedBox) -> None:
    assert "`wan-train --dataset './my cats'`" in quiet_box.run_cli("./my cats").stderr


def test_a_variable_that_nothing_reads_is_named_once_and_beside_the_data(quiet_box: ScriptedBox) -> None:
    done = quiet_box.run_cli("runs", "--json", WAN_TRAIN_EPOCH="3", WAN_TRAIN_SOURCE="x", WAN_TRAIN_SEED="1")
    assert done.returncode == 0
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["runs"]
    assert done.stderr.splitlines() == [
        "warning: WAN_TRAIN_EPOCH is not a variable of wan-train; did you mean WAN_TRAIN_EPOCHS?"
    ]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--resolution", "big"], "big"),
        (["--blocks-to-swap", "some"], "some"),
        (["--epochs", "0"], "0"),
        (["--rank", "-4"], "-4"),
        (["--learning-rate", "nan"], "nan"),
        (["--batch-size", "0"], "0"),
        (["--repeats", "0"], "0"),
        (["--title", "../x"], "/"),
        (["--title", ""], "empty"),
        (["--title", "-x"], "'-'"),
        (["--title", "x" * 300], "longer"),
        (["--title", "a\x1b[2Jb"], "control"),
        (["--author", ""], "empty"),
        (["--dataset", "nowhere"], "nowhere"),
        (["--recipe", "nowhere.toml"], "nowhere.toml"),
        (["--gpus", "7"], "7"),
        (["--runs-dir", ""], "--runs-dir"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_a_wrong_value_is_named_and_nothing_starts(quiet_box: ScriptedBox, words: list[str], named: str) -> None:
    given = ["--title", "cat", "--author", "me", "--dataset", str(quiet_box.dataset), "--yes"]
    done = quiet_box.run_cli(*given, *words)
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr
    assert not quiet_box.runs.exists()


def test_without_a_terminal_it_says_to_add_yes_and_starts_nothing(quiet_box: ScriptedBox) -> None:
    done = quiet_box.run_cli("--dataset", str(quiet_box.dataset))
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert not quiet_box.runs.exists()
    assert not (quiet_box.dataset / "dataset.toml").exists()


def test_without_a_terminal_nothing_is_ever_asked(quiet_box: ScriptedBox) -> None:
    done = quiet_box.run_cli("--dataset", str(quiet_box.dataset))
    assert "Title of the LoRA" not in done.stdout + done.stderr
    assert "Start?" not in done.stdout + done.stderr


def test_yes_takes_the_defaults(scripted_box: ScriptedBox) -> None:
    done = scripted_box.run_cli("--dataset", str(scripted_box.dataset), "--yes", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in scripted_box.run().glob("*.safetensors")} == {
        "WAN2.2-HighNoise_mylora.safetensors",
        "WAN2.2-LowNoise_mylora.safetensors",
    }


def test_a_box_that_is_not_ready_is_exit_3_and_names_the_way_out(quiet_box: ScriptedBox) -> None:
    done = quiet_box.run_cli(*quiet_box.train_words("--musubi-dir", str(quiet_box.root / "none")))
    assert done.returncode == 3
    assert "wan-train provision" in done.stderr
    assert "wan-train rehearse" in done.stderr


def test_a_broken_settings_file_is_named(scripted_box: ScriptedBox) -> None:
    file = scripted_box.home / ".config" / "wan-train" / "settings.toml"
    file.parent.mkdir(parents=True)
    file.write_text("poll_seconds = \n", encoding="utf-8")
    done = scripted_box.run_cli("runs")
    assert done.returncode == 2
    assert str(file) in done.stderr


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb in {"attach", "status", "logs", "stop"}])
def test_verbs_about_runs_say_when_there_are_none(quiet_box: ScriptedBox, verb: str) -> None:
    done = quiet_box.run_cli(verb)
    assert done.returncode == 2
    assert "there are no runs" in done.stderr
    assert "wan-train" in done.stderr.partition("hint:")[2]


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_at_a_terminal_lines_break_between_words_and_commands_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, command = _Screen(), "wan-train resume 20261129-cats --until all --budget 10 --then destroy --notify x"
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "60")
    path = "/workspace/a-very-long-folder/" + "x" * 50
    Sink().complain(
        BadInputError(f"the disk under {path} has no room for the checkpoints", hint=f"Train on: `{command}`")
    )
    lines = screen.getvalue().splitlines()
    assert lines == [
        "error: the disk under",
        path,
        "has no room for the checkpoints",
        "",
        "hint: Train on:",
        f"`{command}`",
    ]


def test_a_shell_in_a_removed_folder_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run(["dataset", "check", "cats"]) == 2
    assert "the folder of this shell was removed" in capsys.readouterr().err

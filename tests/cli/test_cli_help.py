"""Every command explains itself, in at most 100 columns and with an example."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from generate_flags import COMMANDS
from rich.cells import cell_len

from support.trainers import ScriptedBox
from wan_train.dataset.writing import text_for_directory
from wan_train.recipe import load as recipes
from wan_train.recipe.terms import Task

TOP_COMMANDS = [command for command in COMMANDS if " " not in command]

PROJECT = Path(__file__).parents[2]


@pytest.mark.parametrize("columns", ["80", "200"])
def test_the_program_lists_all_its_commands_on_one_screen(quiet_box: ScriptedBox, columns: str) -> None:
    done = quiet_box.run_cli("--help", COLUMNS=columns)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) <= 23, "a terminal of 24 lines has one for the prompt"
    assert [line for line in lines if cell_len(line) > 80] == []
    for command in (*TOP_COMMANDS, "dataset", "recipe"):
        (line,) = [line for line in lines if re.match(rf"  (\w+, )*{command}(, \w+)*  +\S", line)]
        assert not line.endswith(("...", ".")), line
    groups = [line for line in lines if re.fullmatch(r"[A-Z][a-z]+", line)]
    assert groups == ["Train", "Runs", "Box"]
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example_in_100_columns(quiet_box: ScriptedBox, command: str) -> None:
    done = quiet_box.run_cli(*command.split(), "--help", COLUMNS="100")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert f"Usage: wan-train {command}" in done.stdout
    assert re.search(r"Example: wan-train", done.stdout)
    assert [line for line in done.stdout.splitlines() if cell_len(line) > 100] == []
    assert "\x1b" not in done.stdout
    for line in done.stdout.splitlines():
        if flag := re.match(r"│ (--[a-z0-9-]+)", line):
            assert re.search(r"[a-z]{3,}[ ,][a-z.,A-Z -]{4,}", line), f"{flag[1]} has no words"
            assert "<bool>" not in line


def test_help_is_also_a_command(quiet_box: ScriptedBox) -> None:
    for words in ([], ["stop"], ["dataset", "check"]):
        assert quiet_box.run_cli("help", *words).stdout == quiet_box.run_cli(*words, "--help").stdout


def test_the_short_flag_is_the_same(quiet_box: ScriptedBox) -> None:
    assert quiet_box.run_cli("train", "-h").stdout == quiet_box.run_cli("train", "--help").stdout


def defaults(box: ScriptedBox, *words: str) -> dict[str, str]:
    """What `--help` of a command says of its options' defaults."""
    shown = box.run_cli(*words, "--help", COLUMNS="300").stdout
    return dict(re.findall(r"^│ (--[a-z0-9-]+) .*\[default: (.*?)\] +│$", shown, re.MULTILINE))


def test_the_defaults_in_the_help_are_those_of_the_shipped_recipe_and_dataset(quiet_box: ScriptedBox) -> None:
    shown = defaults(quiet_box, "train")
    of_all = [spec.training for task in Task for spec in recipes.shipped(task).experts]
    training = of_all[0]
    assert all(each == training for each in of_all), "the help shows one of them"
    assert int(shown["--epochs"]) == training.max_train_epochs
    assert float(shown["--learning-rate"]) == training.learning_rate
    assert (int(shown["--rank"]), float(shown["--alpha"])) == (training.network_dim, training.network_alpha)
    assert int(shown["--seed"]) == training.seed
    assert shown["--fp8"] == ("--fp8" if training.fp8_base else "--no-fp8")
    new = tomllib.loads(text_for_directory(quiet_box.dataset))
    width, height = new["general"]["resolution"]
    assert shown["--resolution"].split()[0] == f"{width}x{height}"
    assert shown["--batch-size"].split()[0] == str(new["general"]["batch_size"])
    assert shown["--repeats"].split()[0] == str(new["datasets"][0]["num_repeats"])
    assert (shown["--title"], shown["--author"], shown["--workspace"]) == ("mylora", "authorName", "/workspace")


def test_every_option_that_takes_a_value_shows_its_default(quiet_box: ScriptedBox) -> None:
    shown = quiet_box.run_cli("train", "--help", COLUMNS="300").stdout
    takes = set(re.findall(r"^│ (--[a-z0-9-]+) +(?:<|FILE|DIR|WORD|WxH|auto)", shown, re.MULTILINE))
    assert takes - set(defaults(quiet_box, "train")) == {"--network-weights", "--script"}, "without them there is none"


def test_the_rehearsals_own_defaults_are_shown(quiet_box: ScriptedBox) -> None:
    shown = defaults(quiet_box, "rehearse")
    assert (shown["--epochs"], shown["--resolution"], shown["--gpus"]) == ("20", "256x256", "two CPU slots")
    assert defaults(quiet_box, "resume")["--epochs"] == "the run's own"


@pytest.mark.parametrize("words", [["--version"], ["-V"], ["--version", "--json"]])
def test_version_is_the_packages(quiet_box: ScriptedBox, words: list[str]) -> None:
    done = quiet_box.run_cli(*words)
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert done.returncode == 0
    assert re.fullmatch(r"wan-train \d+\.\d+\.\d+\S*\n", done.stdout)
    if "version" in project:
        assert done.stdout == f"wan-train {project['version']}\n"


def test_the_version_flag_is_in_the_help(quiet_box: ScriptedBox) -> None:
    assert "--version" in quiet_box.run_cli("--help", COLUMNS="100").stdout

"""`--dry-run`: the exact commands, nothing on disk; and how flags, variables and `--` reach them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.trainers import ScriptedBox


def plan_of(box: ScriptedBox, *words: str, **env: str) -> dict[str, Any]:
    """The JSON of a dry run; everything that its stdout holds."""
    done = box.run_cli("--dry-run", "--json", *words, **env)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def training(answer: dict[str, Any], step: str = "train-high") -> list[str]:
    return shlex.split(answer["commands"][step])


def value_after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def everything_below(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["readable", "json"])
def test_it_leaves_no_trace(quiet_box: ScriptedBox, form: list[str]) -> None:
    before = everything_below(quiet_box.root)
    done = quiet_box.run_cli("--dry-run", *form, "--dataset", str(quiet_box.dataset))
    assert done.returncode == 0, done.stderr
    assert everything_below(quiet_box.root) == before


def test_the_readable_form_has_every_command_with_one_option_a_line(quiet_box: ScriptedBox) -> None:
    words = ["--dataset", str(quiet_box.dataset), "--title", "it's $HOME", "--yes"]
    readable = quiet_box.run_cli("--dry-run", *words, COLUMNS="80").stdout
    commands = plan_of(quiet_box, *words)["commands"]
    assert list(commands) == ["cache-latents", "cache-text", "train-high", "train-low"]
    joined = [without_run(line, quiet_box.runs) for line in re.sub(r" \\\n +", " ", readable).splitlines()]
    for step, command in commands.items():
        assert without_run(command, quiet_box.runs) in joined, step
    options = [line for line in readable.splitlines() if line.startswith("  --")]
    assert [line for line in options if len(re.findall(r" --[a-z]", line)) != 1] == []


def without_run(text: str, runs: Path) -> str:
    """The two plans are a moment apart, and a run is named by its second."""
    words = text.split(f"{runs}/")
    return "RUNS/".join([words[0], *(word[len("00000000-000000-") :] for word in words[1:])])


HOSTILE = """a 'b' $(touch x) `y` & c"""


def test_a_script_trains_without_wan_train(scripted_box: ScriptedBox) -> None:
    script = scripted_box.root / "it's here" / "train it.sh"
    script.parent.mkdir()
    words = ["--dataset", str(scripted_box.dataset), "--title", HOSTILE, "--author", "-x", "--epochs", "2"]
    done = scripted_box.run_cli(*words, "--dry-run", "--script", str(script))
    assert done.returncode == 0, done.stderr
    assert not scripted_box.runs.exists()
    before = everything_below(script.parent)
    again = scripted_box.run_cli(*words, "--dry-run", "--script", str(script))
    assert again.returncode == 2
    assert "already exists" in again.stderr
    assert everything_below(script.parent) == before
    start = done.stdout.splitlines()[-1].partition("Start it with: ")[2]
    ran = subprocess.run(
        ["sh", "-c", start], env=scripted_box.env(), cwd="/", capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    names = {path.name for path in script.parent.rglob("*.safetensors") if "-state" not in str(path.parent)}
    assert names == {f"WAN2.2-{expert}Noise_{HOSTILE}.safetensors" for expert in ("High", "Low")}
    assert [line for line in ran.stdout.splitlines() if line.endswith(".safetensors")][-1].endswith(
        f"{HOSTILE}.safetensors"
    )
    assert not list(scripted_box.root.rglob("x")), "nothing of the title was obeyed"


def test_a_failing_step_ends_the_script(scripted_box: ScriptedBox) -> None:
    script = scripted_box.root / "train.sh"
    scripted_box.run_cli("--dataset", str(scripted_box.dataset), "--dry-run", "--script", str(script))
    ran = subprocess.run(
        ["sh", str(script)],
        env=scripted_box.env(SCRIPTED_FAULT="die@text"),
        capture_output=True,
        check=False,
    )
    assert ran.returncode != 0
    assert {entry["place"] for entry in scripted_box.recorded("start")} == {"latents", "text"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--script", "x.sh"], "Add --dry-run"),
        (["--dry-run", "--script", "/nowhere/x.sh"], "a folder that you can write to"),
        (["--dry-run", "--script", "pictures"], "already exists"),
    ],
)
def test_a_script_that_cannot_be_written_is_refused(quiet_box: ScriptedBox, words: list[str], said: str) -> None:
    before = everything_below(quiet_box.root)
    done = quiet_box.run_cli("--dataset", str(quiet_box.dataset), *words)
    assert done.returncode in {2, 3}
    assert said in done.stderr
    assert everything_below(quiet_box.root) == before


def test_a_script_that_the_disk_cannot_hold_leaves_nothing(quiet_box: ScriptedBox) -> None:
    """As on a full disk, no file may be larger than a part of the script."""
    before = everything_below(quiet_box.root)
    quiet_box.through = ("prlimit", "--fsize=1500", "env", "PYTHONDONTWRITEBYTECODE=1")
    try:
        done = quiet_box.run_cli("--dataset", str(quiet_box.dataset), "--dry-run", "--script", "train.sh")
    finally:
        quiet_box.through = ()
    assert done.returncode == 3, done.stderr
    assert "train.sh" in done.stderr
    assert everything_below(quiet_box.root) == before


def test_a_script_as_json(scripted_box: ScriptedBox) -> None:
    script = scripted_box.root / "train.sh"
    answer = plan_of(scripted_box, "--dataset", str(scripted_box.dataset), "--script", str(script))
    assert answer["script"] == str(script)
    assert value_after(training(answer), "--dataset_config") == str(scripted_box.root / "train-files" / "dataset.toml")


def test_the_quoted_command_is_the_planned_argument_list(quiet_box: ScriptedBox) -> None:
    title = """a 'b' $(touch x) `y` & c"""
    answer = plan_of(quiet_box, "--dataset", str(quiet_box.dataset), "--title", title, "--author", 'A "B" \\ C')
    for step in answer["plan"]["steps"]:
        words = shlex.split(answer["commands"][step["id"]])
        env = step["command"]["env"]
        assert words[: len(env)] == [f"{name}={value}" for name, value in sorted(env.items())]
        assert words[len(env) :] == step["command"]["argv"]
    assert value_after(training(answer), "--metadata_author") == 'A "B" \\ C'
    assert value_after(training(answer), "--output_name") == f"WAN2.2-HighNoise_{title}"


def test_a_trainer_option_after_two_dashes_reaches_both_trainings(quiet_box: ScriptedBox) -> None:
    answer = plan_of(
        quiet_box, "--dataset", str(quiet_box.dataset), "--", "--network_dropout", "0.1", "--max_grad_norm=1.5"
    )
    for step in ("train-high", "train-low"):
        words = training(answer, step)
        assert words[-2:] == ["--network_dropout", "0.1"]
        assert (words.count("--max_grad_norm"), value_after(words, "--max_grad_norm")) == (1, "1.5")
    assert "--network_dropout" not in answer["commands"]["cache-latents"]


def test_an_unknown_trainer_option_is_refused(quiet_box: ScriptedBox) -> None:
    done = quiet_box.run_cli("--dataset", str(quiet_box.dataset), "--yes", "--", "--optimiser_type", "x")
    assert done.returncode == 2
    assert "--optimiser_type" in done.stderr
    assert not quiet_box.runs.exists()


@pytest.mark.parametrize("option", ["--output_dir=/x", "--resume=/x", "--max_train_epochs=3", "--min_timestep=1"])
def test_an_option_that_the_runner_owns_is_refused(quiet_box: ScriptedBox, option: str) -> None:
    done = quiet_box.run_cli("--dataset", str(quiet_box.dataset), "--yes", "--", option)
    assert done.returncode == 2
    assert option.partition("=")[0] in done.stderr
    assert not quiet_box.runs.exists()


ANSWERS = [
    ("title", "kitten", ["plan", "answers", "title"], "kitten"),
    ("author", "somebody", ["plan", "answers", "author"], "somebody"),
    ("task", "i2v", ["plan", "recipe", "task"], "i2v-A14B"),
]
TRAINING = [
    ("epochs", "7", "--max_train_epochs", "7"),
    ("rank", "24", "--network_dim", "24"),
    ("alpha", "12.5", "--network_alpha", "12.5"),
    ("learning-rate", "1e-4", "--learning_rate", "1e-4"),
    ("seed", "77", "--seed", "77"),
    ("blocks-to-swap", "7", "--blocks_to_swap", "7"),
]


@pytest.mark.parametrize(("flag", "given", "place", "expected"), ANSWERS)
@pytest.mark.parametrize("source", ["flag", "variable", "both"])
def test_answers_by_flag_and_variable(  # noqa: PLR0917  pytest's parameters
    quiet_box: ScriptedBox, source: str, flag: str, given: str, place: list[str], expected: str
) -> None:
    found: Any = planned_by(quiet_box, source, flag, given)
    for key in place:
        found = found[key]
    assert found == expected


@pytest.mark.parametrize(("flag", "given", "option", "expected"), TRAINING)
@pytest.mark.parametrize("source", ["flag", "variable"])
def test_training_settings_by_flag_and_variable(  # noqa: PLR0917  pytest's parameters
    quiet_box: ScriptedBox, source: str, flag: str, given: str, option: str, expected: str
) -> None:
    assert value_after(training(planned_by(quiet_box, source, flag, given)), option) == expected


def planned_by(box: ScriptedBox, source: str, flag: str, given: str) -> dict[str, Any]:
    """`source`: the flag, its variable, or the flag against another value of the variable."""
    words = ["--dataset", str(box.dataset)]
    variable = f"WAN_TRAIN_{flag.upper().replace('-', '_')}"
    match source:
        case "flag":
            return plan_of(box, *words, f"--{flag}", given)
        case "variable":
            return plan_of(box, *words, **{variable: given})
        case _:
            other = "t2v" if flag == "task" else "other"
            return plan_of(box, *words, f"--{flag}", given, **{variable: other})


def test_the_dataset_by_variable(quiet_box: ScriptedBox) -> None:
    answer = plan_of(quiet_box, WAN_TRAIN_DATASET=str(quiet_box.dataset))
    assert answer["plan"]["answers"]["dataset"] == str(quiet_box.dataset / "dataset.toml")


@pytest.mark.parametrize(("words", "steps"), [(["high"], ["train-high"]), (["low"], ["train-low"])])
def test_one_expert_only(quiet_box: ScriptedBox, words: list[str], steps: list[str]) -> None:
    answer = plan_of(quiet_box, "--dataset", str(quiet_box.dataset), "--experts", *words)
    assert [step["id"] for step in answer["plan"]["steps"] if step["kind"] == "train"] == steps


def test_fp8_can_be_left_out(quiet_box: ScriptedBox) -> None:
    words = ["--dataset", str(quiet_box.dataset)]
    assert "--fp8_base" in training(plan_of(quiet_box, *words))
    assert "--fp8_base" not in training(plan_of(quiet_box, *words, "--no-fp8"))


def test_the_gpus_are_shown_as_they_are(quiet_box: ScriptedBox) -> None:
    answer = plan_of(quiet_box, "--dataset", str(quiet_box.dataset), "--gpus", "1")
    assert [gpu["label"] for gpu in answer["gpus"]] == ["GPU 1"]


def test_a_preset_is_laid_over_the_shipped_recipe_and_options_over_it(quiet_box: ScriptedBox) -> None:
    words = ("--dataset", str(quiet_box.dataset), "--dry-run", "--json", "--preset", "character")
    done = quiet_box.run_cli(*words, "--learning-rate", "2e-4")
    assert done.returncode == 0, done.stderr
    experts = {each["expert"]: each for each in json.loads(done.stdout)["plan"]["recipe"]["experts"]}
    assert [experts[name]["training"]["network_dim"] for name in ("high", "low")] == [8, 42]
    assert {each["training"]["learning_rate"] for each in experts.values()} == {2e-4}
    assert experts["low"]["sources"]["network_dim"]["text"] == "preset character"


def test_a_preset_and_a_recipe_file_exclude_each_other(quiet_box: ScriptedBox, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('base = "t2v-a14b"\n', encoding="utf-8")
    done = quiet_box.run_cli(
        "--dataset", str(quiet_box.dataset), "--dry-run", "--preset", "style", "--recipe", str(recipe)
    )
    assert done.returncode == 2
    assert "--recipe and --preset style are two recipes" in done.stderr


def test_presets_are_listed_with_their_files(quiet_box: ScriptedBox) -> None:
    found = json.loads(quiet_box.run_cli("presets", "--json").stdout)
    assert [each["name"] for each in found["presets"]] == ["guide", "character", "style", "motion"]
    assert [each["name"] for each in found["dataset_presets"]] == ["quality", "balanced", "turbo", "several"]
    listed = [*found["presets"], *found["dataset_presets"]]
    assert all(Path(each["path"]).is_file() for each in listed)
    shown = quiet_box.run_cli("presets", COLUMNS="80").stdout
    assert all(each["summary"] in shown for each in listed)

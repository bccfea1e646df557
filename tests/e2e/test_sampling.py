"""Samples while it trains: made, counted over all attempts, and never the end of a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from support.trainers import ScriptedBox
from wan_train.engine.tensors import read_header
from wan_train.recipe.load import shipped_path
from wan_train.run.directory import RunDirectory
from wan_train.run.events import JournalReader
from wan_train.run.samples import Sample, samples_of
from wan_train.run.state import fold_all

PROMPTS = "a red fox --w 64 --h 48 --s 2 --d 7\nI stand in the rain --w 32 --h 32 --s 2\n"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "my prompts.txt"
    path.write_text(PROMPTS, encoding="utf-8")
    return path


def samples(box: ScriptedBox) -> tuple[Sample, ...]:
    run = RunDirectory(box.run())
    plan = run.read_plan()
    return samples_of(run, plan, fold_all(plan, JournalReader(run.events).new_events()))


def epochs(box: ScriptedBox, expert: str) -> dict[int, list[int]]:
    """Prompts by epoch."""
    found: dict[int, list[int]] = {}
    for sample in samples(box):
        if sample.expert.value == expert:
            found.setdefault(sample.epoch, []).append(sample.prompt_index)
    return found


def test_samples_come_every_n_epochs_from_a_copy_of_the_prompts(scripted_box: ScriptedBox, prompts: Path) -> None:
    words = ("--sample-prompts", str(prompts), "--sample-every", "2", "--epochs", "5")
    details = " ".join(scripted_box.train(*words, "--dry-run").stdout.split())
    assert "2 prompts every 2 epochs: 4 per expert, 64x48, 32x32" in details
    done = scripted_box.train(*words)
    assert done.returncode == 0, done.stderr
    assert "Samples 2 prompts every 2 epochs; costs GPU time" in " ".join(done.stdout.split())
    assert epochs(scripted_box, "high") == epochs(scripted_box, "low") == {2: [0, 1], 4: [0, 1]}
    starts = [entry["argv"] for entry in scripted_box.recorded("start") if "argv" in entry]
    copy = scripted_box.run() / "sample-prompts.json"
    assert {argv["sample_prompts"] for argv in starts if "sample_prompts" in argv} == {str(copy)}
    assert [entry["prompt"] for entry in json.loads(copy.read_text())] == ["a red fox", "I stand in the rain"]
    # The recipe of the run repeats it, also when the user's file is gone.
    prompts.unlink()
    again = scripted_box.train("--recipe", str(scripted_box.run() / "recipe.toml"), "--dry-run")
    assert again.returncode == 0, again.stderr
    assert "--sample_every_n_epochs 2" in again.stdout


def test_a_recipe_names_prompts_beside_it_and_may_want_them_before_the_first_step(
    scripted_box: ScriptedBox, prompts: Path
) -> None:
    recipe = prompts.parent / "recipe.toml"
    keys = 'sample_prompts = "my prompts.txt"\nsample_at_first = true\nsample_every_n_epochs = 3\n'
    recipe.write_text(shipped_path("t2v-a14b").read_text(encoding="utf-8") + keys, encoding="utf-8")
    words = ("--recipe", str(recipe), "--experts", "low", "--attention", "sdpa")
    details = " ".join(scripted_box.train(*words, "--dry-run").stdout.split())
    assert "2 prompts every 3 epochs and before the first step: 4, 64x48, 32x32" in details
    done = scripted_box.train(*words)
    assert done.returncode == 0, done.stderr
    assert "Samples 2 prompts every 3 epochs and before the first step; costs GPU time" in " ".join(done.stdout.split())
    assert epochs(scripted_box, "low") == {0: [0, 1], 3: [0, 1]}


def test_a_tenth_of_the_epochs_is_the_default(scripted_box: ScriptedBox, prompts: Path) -> None:
    words = ("--sample-prompts", str(prompts), "--epochs", "40", "--dry-run")
    assert "--sample_every_n_epochs 4\n" in scripted_box.train(*words).stdout
    plan = json.loads(scripted_box.train(*words, "--json").stdout)["plan"]
    assert plan["samples"]["every_epochs"] == 4
    assert plan["samples"]["source"] == str(prompts)
    assert [prompt["seed"] for prompt in plan["samples"]["prompts"]] == [7, 5]
    assert not scripted_box.runs.exists()


def test_out_of_memory_in_a_sample_costs_the_samples_and_not_the_training(
    scripted_box: ScriptedBox, prompts: Path
) -> None:
    words = ("--sample-prompts", str(prompts), "--sample-every", "2", "--save-every", "1", "--epochs", "6")
    done = scripted_box.train(*words, SCRIPTED_FAULT="bad_sample@high@epoch=4")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "a sample could not be made: the GPU's memory was not enough, next: without samples" in said
    assert "No samples after attempt 1: a sample could not be made" in said
    [retry] = scripted_box.events("retry_scheduled")
    assert (retry["step"], retry["diagnosis"]["cause"]) == ("train-high", "sampling")
    assert retry["changes"] == {"sample_every_n_epochs": 0}
    _, second = (event for event in scripted_box.events("step_started") if event["step"] == "train-high")
    assert second["epochs_before"] == 4  # the state of that epoch was written before its samples
    assert epochs(scripted_box, "high") == {2: [0, 1]}
    assert epochs(scripted_box, "low") == {2: [0, 1], 4: [0, 1], 6: [0, 1]}
    lora = read_header(scripted_box.run() / "WAN2.2-HighNoise_cat.safetensors")
    assert lora.metadata["scripted_epochs_in_all"] == "6"


def test_a_resumed_training_still_makes_the_samples_of_its_last_epoch(scripted_box: ScriptedBox, prompts: Path) -> None:
    words = ("--sample-prompts", str(prompts), "--sample-every", "2", "--save-every", "2", "--epochs", "8")
    fault = "sigkill@high@epoch=5@attempt=1"
    done = scripted_box.train(*words, SCRIPTED_FAULT=fault, SCRIPTED_SAMPLE_SECONDS="0.5")
    assert done.returncode == 0, done.stderr
    assert epochs(scripted_box, "high") == {epoch: [0, 1] for epoch in (2, 4, 6, 8)}
    assert {sample.attempt for sample in samples(scripted_box) if sample.expert.value == "high"} == {1, 2}
    assert [event["epochs_before"] for event in scripted_box.events("step_started")][-1] == 4


def test_a_sample_that_fails_after_the_last_epoch_of_a_resumed_training(
    scripted_box: ScriptedBox, prompts: Path
) -> None:
    words = ("--sample-prompts", str(prompts), "--sample-every", "4", "--save-every", "4", "--epochs", "8")
    fault = "sigkill@high@epoch=5@attempt=1,bad_sample@high@epoch=4@attempt=2"
    done = scripted_box.train(*words, SCRIPTED_FAULT=fault)
    assert done.returncode == 0, done.stderr
    assert len([event for event in scripted_box.events("step_started") if event["step"] == "train-high"]) == 2
    assert epochs(scripted_box, "high") == {4: [0, 1]}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sample-every", "2"], "samples are requested, but there are no prompts"),
        (["--sample-prompts", "prompts.txt", "--sample-every", "9"], "samples every 9 epochs would never be made"),
        (["--sample-prompts", "prompts.txt", "--sample-every", "0"], "--sample-every must be from 1"),
        (["--sample-prompts", "none.txt"], "cannot be read"),
        (["--sample-prompts", "bad.txt"], "line 1: width (--w) must be a multiple of 16"),
        (["--sample-prompts", "bad.txt"], "line 3: unknown option --foo"),
        (["--sample-prompts", "prompts.txt", "--task", "i2v"], "line 1: image-to-video needs a picture"),
        (["--sample-prompts", "prompts.txt", "--", "--mixed_precision", "no"], "samples need a mixed precision"),
        (["--", "--sample_prompts", "prompts.txt"], "--sample_prompts cannot be given to the trainer"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    scripted_box: ScriptedBox, words: list[str], said: str
) -> None:
    (scripted_box.root / "prompts.txt").write_text(PROMPTS)
    (scripted_box.root / "bad.txt").write_text("a --w 40\n# comment\nb --foo\n")
    done = scripted_box.run_cli(*scripted_box.train_words(), *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not scripted_box.runs.exists() or scripted_box.run_directories() == []


def test_image_to_video_starts_from_the_runs_own_picture(scripted_box: ScriptedBox) -> None:
    picture = scripted_box.root / "start here.PNG"
    Image.new("RGB", (40, 30), (1, 2, 3)).save(picture)
    (scripted_box.root / "prompts.txt").write_text("a fox --w 32 --h 32 --i start here.PNG\n")
    done = scripted_box.train("--task", "i2v", "--sample-prompts", "prompts.txt", "--sample-every", "1")
    assert done.returncode == 0, done.stderr
    [prompt] = json.loads((scripted_box.run() / "sample-prompts.json").read_text())
    copy = Path(prompt["image_path"])
    assert copy == scripted_box.run() / "sample-pictures" / "00.png"
    assert copy.read_bytes() == picture.read_bytes()

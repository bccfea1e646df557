"""Samples while it trains, made by the real trainer from our copy of the prompts: files, names, and what ends it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import av
import pytest
from PIL import Image

from musubi.trainer import Dataset, Trainer, TrainingRun, text_of
from wan_train.engine.failures import Cause
from wan_train.engine.failures.diagnosis import diagnose
from wan_train.engine.log_parser import MAKING_SAMPLES, OutputParser, Stage
from wan_train.engine.sample_files import SampleKind, sample_dir, sample_files
from wan_train.engine.sample_prompts import read_prompts, to_trainer
from wan_train.recipe.terms import Task

# With `no` the text embeddings stay in bfloat16 and the DiT does not.
MIXED = ("--mixed_precision", "bf16")
EVERY = ("--sample_every_n_epochs", "1")


def draw(
    trainer: Trainer, cached: Dataset, output: Path, prompts: Path, *options: str, task: str = "t2v"
) -> subprocess.CompletedProcess[str]:
    run = TrainingRun(output=output, epochs=2, task=task)
    # One data loader in the process itself: two of them would make the order of pictures a matter of luck.
    options = ("--sample_prompts", str(prompts), *EVERY, "--max_data_loader_n_workers", "0", *options)
    return trainer.train(cached, run, *options)


def copied(folder: Path, text: str) -> Path:
    """The user's lines as wan-train gives them to the trainer."""
    lines = folder / "prompts.txt"
    lines.write_text(text, encoding="utf-8")
    copy = folder / "sample-prompts.json"
    copy.write_text(to_trainer(read_prompts(lines, Task.T2V, seed=5)), encoding="utf-8")
    return copy


def test_it_draws_our_copy_under_the_names_we_read(trainer: Trainer, cached: Dataset, tmp_path: Path) -> None:
    text = "I stand in the rain --w 64 --h 48 --s 2\na clip --w 32 --h 32 --f 5 --s 2 --d 123 --l 1 --fs 5 --n ugly\n"
    done = draw(trainer, cached, tmp_path / "out", copied(tmp_path, text), "--sample_at_first", *MIXED)
    assert done.returncode == 0, text_of(done)

    assert "prompt: I stand in the rain\n" in done.stderr
    assert "discrete flow shift: 5.0\n" in done.stderr
    found = sample_files(tmp_path / "out", "toy")
    assert len(found) == len(list(sample_dir(tmp_path / "out").iterdir()))
    assert [(file.epoch, file.prompt_index, file.seed, file.kind) for file in found] == [
        (epoch, *facts) for epoch in range(3) for facts in ((0, 5, SampleKind.PICTURE), (1, 123, SampleKind.CLIP))
    ]
    for file in found:
        if file.kind is SampleKind.PICTURE:
            with Image.open(file.path) as image:
                assert image.size == file.size == (64, 48)
        else:
            with av.open(str(file.path)) as container:
                frames = [frame.to_image().size for frame in container.decode(video=0)]
            assert frames == [(32, 32)] * 5
            whole = file.path.read_bytes()
            file.path.write_bytes(whole[: len(whole) // 2])
    # A clip that was cut short is not taken for one.
    assert {file.kind for file in sample_files(tmp_path / "out", "toy")} == {SampleKind.PICTURE}
    parser = OutputParser()
    records = [*parser.feed(done.stderr.encode()), *parser.finish()]
    assert [record.words for record in records if isinstance(record, Stage)].count(MAKING_SAMPLES) == 3


def test_the_lora_is_the_same_with_and_without_samples(trainer: Trainer, cached: Dataset, tmp_path: Path) -> None:
    drawn = draw(trainer, cached, tmp_path / "drawn", copied(tmp_path, "a --w 32 --h 32 --s 2\n"), *MIXED)
    plain = trainer.train(
        cached, TrainingRun(output=tmp_path / "plain", epochs=2), "--max_data_loader_n_workers", "0", *MIXED
    )
    assert (drawn.returncode, plain.returncode) == (0, 0), text_of(drawn)
    assert numbers(tmp_path / "drawn" / "toy.safetensors") == numbers(tmp_path / "plain" / "toy.safetensors")


def numbers(lora: Path) -> bytes:
    """All tensors of a safetensors file, without the metadata, which hold times."""
    data = lora.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        # It rounds to 8 pixels, and its DiT takes 16.
        ('{"prompt": "a", "width": 40, "height": 32, "sample_steps": 2}', MIXED),
        ('{"prompt": "a", "width": 32, "height": 32, "sample_steps": 2}', ()),
    ],
    ids=["size", "precision"],
)
def test_a_sample_that_fails_ends_the_training_and_is_told_apart(
    trainer: Trainer, cached: Dataset, tmp_path: Path, prompt: str, options: tuple[str, ...]
) -> None:
    """What wan-train refuses beforehand, given to the trainer itself."""
    prompts = tmp_path / "prompts.json"
    prompts.write_text(f"[{prompt}]", encoding="utf-8")
    done = draw(trainer, cached, tmp_path / "out", prompts, *options)
    assert done.returncode == 1, text_of(done)
    assert diagnose(done.stderr).cause is Cause.SAMPLING
    # The checkpoint of the epoch is written before its samples.
    assert (tmp_path / "out" / "toy-000001.safetensors").is_file()


def test_a_broken_prompts_file_ends_it_at_the_start_and_is_told_apart(
    trainer: Trainer, cached: Dataset, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text("[", encoding="utf-8")
    done = draw(trainer, cached, tmp_path / "out", prompts, *MIXED)
    assert done.returncode == 1, text_of(done)
    assert diagnose(done.stderr).cause is Cause.SAMPLING

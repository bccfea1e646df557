"""`wan-train preview` itself with the real trainer: six epochs, three prompts, and whatever ends a drawing."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from PIL import Image, ImageChops

from musubi.drawing_job import command, drawing
from musubi.test_wan_train import Box, box, eventually
from musubi.trainer import Trainer, text_of
from wan_train.preview.model import BASE, PreviewDirectory, drawn, previews_of

__all__ = ["box"]

EPOCHS = 6
PROMPTS = (
    "a cat on a mat --w 96 --h 64 --s 4\n"
    "the same cat, running --w 64 --h 64 --f 5 --s 4 --n ugly\n"
    "a red fox --w 64 --h 64 --s 4 --d 9\n"
)
SEED = 5
"""The shipped recipe's, which pictures take that name none."""
SIZE = (96, 64)


def test_six_epochs_and_three_prompts_are_drawn_over_kills_and_too_little_memory(
    trainer: Trainer, box: Box, tmp_path: Path
) -> None:
    done = box.call(*box.train("--save-every", "1", "--learning-rate", "1e-2", epochs=EPOCHS))
    assert done.returncode == 0, text_of(done)
    short = tmp_path / "out-of-memory"
    short.touch()
    variables = {
        "MUSUBI_TEST_FLOAT32_TEXT": "1",
        "MUSUBI_TEST_OUT_OF_MEMORY": f"decode_latent {short}",
        # As the plain command below: more threads add numbers in another order.
        "OMP_NUM_THREADS": "1",
    }
    drawer = replace(box, env={**box.env, **variables})
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROMPTS, encoding="utf-8")
    words = ("preview", "--workspace", str(box.workspace), "--json", "--prompts", str(prompts))
    all_epochs = (*words, "--epochs", ",".join(str(epoch) for epoch in range(1, EPOCHS + 1)))

    refuses_swapped(drawer, words)

    first = subprocess.Popen(drawer.command(*all_epochs), env=drawer.env, stdout=subprocess.DEVNULL)
    eventually(lambda: latents(box) >= 3, first)
    kill(box, lambda words: words[1].endswith("driver.py"))
    eventually(lambda: not short.exists(), first)
    eventually(lambda: len(recorded(box)) >= 2, first)
    kill(box, lambda words: "preview" in words or "driver.py" in " ".join(words))
    assert first.wait() < 0
    (directory,) = previews_of(box.run())
    before = recorded(box)
    assert 2 <= len(before) < 3 * (1 + EPOCHS)
    jobs = sorted((directory.work).glob("*.job.json"))
    assert [json.loads(job.read_text())["decode"] for job in jobs] == ["each", "each", "end"]

    again = told(drawer.call(*all_epochs))
    assert (again["total"], again["drawn"], again["failed"]) == (3 * (1 + EPOCHS), 3 * (1 + EPOCHS), [])
    assert again["drawn_now"] < again["total"]
    keys = recorded(box)
    assert len(keys) == len(set(keys)) == again["total"], "no cell was drawn twice"
    assert keys[: len(before)] == before
    assert not directory.work.exists()
    assert directory.sheet.is_file()
    distances = [row.distance for row in directory.read().rows[1:]]
    assert distances == sorted(distances, key=lambda each: -(each or 0.0))
    assert told(drawer.call(*all_epochs))["drawn_now"] == 0

    prompt = {
        "text": "a cat on a mat", "negative": None, "width": SIZE[0], "height": SIZE[1], "frames": 1, "steps": 4,
        "seed": SEED, "guidance": {"high": 4.0, "low": 3.0}, "shift": 12.0, "image": None,
    }  # fmt: skip
    (plain,) = command(drawing(trainer), "t2v", prompt, tmp_path / "plain")
    assert same(picture(directory, BASE), plain)

    draws_an_unknown_version_with_its_own_command(drawer, tmp_path, words, plain)
    eventually(lambda: not box.processes())


def refuses_swapped(box: Box, words: tuple[str, ...]) -> None:
    high, low = (box.run() / f"WAN2.2-{name}Noise_t.safetensors" for name in ("High", "Low"))
    refused = box.call(*words, "--high", str(low), "--low", str(high))
    assert refused.returncode == 2, text_of(refused)
    assert "is a LoRA of the low-noise expert, not of the high-noise one" in text_of(refused)
    assert not (box.run() / "preview").exists()


def draws_an_unknown_version_with_its_own_command(
    box: Box, tmp_path: Path, words: tuple[str, ...], plain: Path
) -> None:
    """The same checks, and the same picture of the base."""
    git = box.workspace / "musubi-tuner" / ".git"
    git.unlink()
    git.mkdir()
    (git / "HEAD").write_text("0123456789" * 4 + "\n")
    one = tmp_path / "one.txt"
    one.write_text(PROMPTS.splitlines()[0] + "\n", encoding="utf-8")
    refused = box.call(*words[:-1], str(one), "--epochs", "99")
    assert refused.returncode == 2, text_of(refused)
    found = told(box.call(*words[:-1], str(one), "--epochs", str(EPOCHS)))
    assert (found["drawn"], found["total"]) == (2, 2)
    directory = PreviewDirectory(Path(found["directory"]))
    assert same(picture(directory, BASE), plain)
    assert not same(picture(directory, str(EPOCHS)), plain)
    shutil.rmtree(git)


def kill(box: Box, wanted: Callable[[list[str]], bool]) -> None:
    """Kill -9 every process of the run whose words fit, at once."""
    for process in box.processes():
        with suppress(psutil.NoSuchProcess):
            if wanted(process.cmdline()):
                process.kill()


def latents(box: Box) -> int:
    return len(list(box.run().glob("preview/*/work/latents/*.high")))


def recorded(box: Box) -> list[str]:
    """The keys of the finished cells, in order."""
    lines = [line for path in box.run().glob("preview/*/cells.jsonl") for line in path.read_text().splitlines()]
    return [json.loads(line)["key"] for line in lines]


def picture(directory: PreviewDirectory, row: str) -> Path:
    (file,) = drawn(directory, directory.read())[row, 0].files
    return directory.path / file


def same(one: Path, other: Path) -> bool:
    with Image.open(one) as first, Image.open(other) as second:
        return first.size == second.size and ImageChops.difference(first, second).getbbox() is None


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, text_of(done)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found

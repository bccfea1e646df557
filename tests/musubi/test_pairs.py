"""Pairs of LoRAs drawn by our driver with the real trainer's code, compared with the trainer's own command."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

import wan_train
from musubi.trainer import DIT, T5, VAE, Dataset, Trainer, TrainingRun, draw_picture, text_of

GENERATE = "wan_generate_video.py"
DRAWING = Path(wan_train.__file__).parent / "preview" / "drawing"
PROMPT = {
    "text": "a cat on a mat",
    "negative": None,
    "width": 96,
    "height": 64,
    "frames": 1,
    "steps": 4,
    "seed": 7,
    "guidance": {"high": 4.0, "low": 3.0},
    "shift": 12.0,
    "image": None,
}
CLIP = {**PROMPT, "text": "the same cat, running", "width": 64, "frames": 5, "negative": "ugly", "seed": 8}


def models(trainer: Trainer, task: str) -> list[str]:
    return [
        "--task", f"{task}-A14B",
        "--dit", str(trainer.models / DIT.format(task=task, expert="low")),
        "--dit_high_noise", str(trainer.models / DIT.format(task=task, expert="high")),
        "--vae", str(trainer.models / VAE),
        "--t5", str(trainer.models / T5),
        "--attn_mode", "torch",
        "--cpu_noise",
        "--device", "cpu",
    ]  # fmt: skip


def command(trainer: Trainer, task: str, prompt: dict[str, Any], output: Path, *more: str) -> list[Path]:
    """The frames that the trainer's own command draws of one prompt."""
    words = [
        *models(trainer, task),
        "--prompt", prompt["text"],
        "--video_size", str(prompt["height"]), str(prompt["width"]),
        "--video_length", str(prompt["frames"]),
        "--infer_steps", str(prompt["steps"]),
        "--seed", str(prompt["seed"]),
        "--guidance_scale", str(prompt["guidance"]["low"]),
        "--guidance_scale_high_noise", str(prompt["guidance"]["high"]),
        "--flow_shift", str(prompt["shift"]),
        "--output_type", "images",
        "--save_path", str(output),
    ]  # fmt: skip
    words += ["--negative_prompt", prompt["negative"]] if prompt["negative"] else []
    words += ["--image_path", prompt["image"]] if prompt["image"] else []
    done = trainer.script(GENERATE, *words, *more)
    assert done.returncode == 0, text_of(done)
    return sorted(output.rglob("*.png"))


class Job:
    """One call of the driver: rows by name, as pairs of LoRA files."""

    def __init__(self, trainer: Trainer, folder: Path, task: str, prompts: list[dict[str, Any]]) -> None:
        self.trainer, self.folder, self.task, self.prompts = trainer, folder, task, prompts
        folder.mkdir(parents=True, exist_ok=True)

    def frames(self, row: str, prompt: int) -> list[Path]:
        return [self.folder / f"{row}_{prompt}_{n:03d}.png" for n in range(self.prompts[prompt]["frames"])]

    def latents(self, row: str, prompt: int, expert: str) -> Path:
        return self.folder / "latents" / f"{row}_{prompt}_{expert}.pt"

    def run(
        self, rows: dict[str, tuple[Path | None, Path | None]], *, decode: str = "each"
    ) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
        job = {
            "backend": str(DRAWING / "musubi.py"),
            "settings": {
                "arguments": [
                    *models(self.trainer, self.task), "--output_type", "images",
                    "--save_path", str(self.folder),
                ],
                "merged": {},
            },
            "prompts": self.prompts,
            "strength": 1.0,
            "decode": decode,
            "events": str(self.folder / "events.jsonl"),
            "cells": [
                {
                    "key": f"{row}_{number}",
                    "prompt": number,
                    "loras": {"high": str(high) if high else None, "low": str(low) if low else None},
                    "latents": {expert: str(self.latents(row, number, expert)) for expert in ("high", "low")},
                    "frames": [str(frame) for frame in self.frames(row, number)],
                }
                for row, (high, low) in rows.items()
                for number in range(len(self.prompts))
            ],
        }  # fmt: skip
        path = self.folder / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        done = self.trainer.call([str(self.trainer.python), str(DRAWING / "driver.py"), str(path)])
        lines = (self.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
        return done, [json.loads(line) for line in lines]


def same(one: Path, other: Path) -> bool:
    with Image.open(one) as first, Image.open(other) as second:
        return first.size == second.size and ImageChops.difference(first, second).getbbox() is None


def loudest_difference(one: Path, other: Path) -> int:
    with Image.open(one) as first, Image.open(other) as second:
        return max(high for _, high in ImageChops.difference(first.convert("RGB"), second.convert("RGB")).getextrema())


@pytest.fixture(scope="session")
def drawer(trainer: Trainer) -> Trainer:
    return replace(trainer, is_drawing=True)


@pytest.fixture(scope="session")
def loras(trainer: Trainer, cached: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Five LoRAs of each expert, of epochs one to five."""
    found = {}
    for expert in ("high", "low"):
        output = tmp_path_factory.mktemp(f"loras-{expert}")
        done = trainer.train(cached, TrainingRun(output=output, expert=expert, epochs=5), "--learning_rate", "1e-2")
        assert done.returncode == 0, text_of(done)
        found[expert] = [*sorted(output.glob("toy-0*.safetensors")), output / "toy.safetensors"]
        assert len(found[expert]) == 5
    return found


def test_the_base_cells_are_the_commands_to_the_bit(drawer: Trainer, tmp_path: Path) -> None:
    job = Job(drawer, tmp_path / "drawn", "t2v", [PROMPT, CLIP])
    done, events = job.run({"base": (None, None)})
    assert done.returncode == 0, text_of(done)
    assert [event["event"] for event in events].count("cell") == 2
    for number, prompt in enumerate((PROMPT, CLIP)):
        plain = command(drawer, "t2v", prompt, tmp_path / f"plain-{number}")
        drawn = job.frames("base", number)
        assert len(plain) == len(drawn) == prompt["frames"]
        assert all(same(one, other) for one, other in zip(drawn, plain, strict=True))


def test_eleven_pairs_are_drawn_with_one_load_of_each_expert(
    drawer: Trainer, loras: dict[str, list[Path]], tmp_path: Path
) -> None:
    high, low = loras["high"], loras["low"]
    rows: dict[str, tuple[Path | None, Path | None]] = {"base": (None, None)}
    rows |= {f"e{n}": (high[n], low[n]) for n in range(5)}
    rows |= {f"mixed{n}": (high[n], low[4 - n]) for n in (0, 1)} | {"high": (high[4], None), "low": (None, low[4])}
    rows["again"] = (high[4], low[4])
    job = Job(drawer, tmp_path / "drawn", "t2v", [PROMPT])
    done, events = job.run(rows)
    assert done.returncode == 0, text_of(done)
    assert len(rows) == 11
    loads = [event["what"] for event in events if event["event"] == "loaded"]
    assert loads == ["high", "low"]
    assert [event["event"] for event in events].count("cell") == 11

    plain = command(drawer, "t2v", PROMPT, tmp_path / "plain-base")
    assert same(job.frames("base", 0)[0], plain[0]), "the base is drawn before any LoRA is attached"
    assert same(job.frames("again", 0)[0], job.frames("e4", 0)[0])
    merged = command(
        drawer, "t2v", PROMPT, tmp_path / "plain-pair",
        "--lora_weight", str(low[4]), "--lora_weight_high_noise", str(high[4]),
    )  # fmt: skip
    # Unmerged, the same numbers are added in another order.
    off, moved = (loudest_difference(job.frames(row, 0)[0], merged[0]) for row in ("e4", "base"))
    assert off * 3 <= moved, f"a pair differs from the merged command's by {off} of 255, from the base by {moved}"


def test_a_killed_drawing_goes_on_from_its_latents(
    drawer: Trainer, loras: dict[str, list[Path]], tmp_path: Path
) -> None:
    """What a kill leaves: latents of the first expert, and no picture. The picture is the same to the bit."""
    rows = {"e2": (loras["high"][2], loras["low"][2])}
    whole = Job(drawer, tmp_path / "whole", "t2v", [PROMPT])
    done, _ = whole.run(rows, decode="end")
    assert done.returncode == 0, text_of(done)
    cut = Job(drawer, tmp_path / "cut", "t2v", [PROMPT])
    kept = cut.latents("e2", 0, "high")
    kept.parent.mkdir()
    kept.write_bytes(whole.latents("e2", 0, "high").read_bytes())
    done, events = cut.run(rows)
    assert done.returncode == 0, text_of(done)
    assert [event["what"] for event in events if event["event"] == "loaded"] == ["low"]
    assert same(cut.frames("e2", 0)[0], whole.frames("e2", 0)[0])


def test_image_to_video_begins_with_the_picture(drawer: Trainer, tmp_path: Path) -> None:
    """At d0a1930 the command cannot do this from a file of prompts; of one prompt it can."""
    draw_picture(tmp_path / "start.png", (96, 64), seed=3)
    prompt = {**CLIP, "width": 96, "image": str(tmp_path / "start.png"), "shift": 5.0}
    job = Job(drawer, tmp_path / "drawn", "i2v", [prompt])
    done, _ = job.run({"base": (None, None)})
    assert done.returncode == 0, text_of(done)
    plain = command(drawer, "i2v", prompt, tmp_path / "plain")
    assert all(same(one, other) for one, other in zip(job.frames("base", 0), plain, strict=True))


def test_a_lora_whose_keys_match_nothing_ends_the_drawing(
    drawer: Trainer, loras: dict[str, list[Path]], tmp_path: Path
) -> None:
    """The command would ignore them and draw a wrong picture with exit code 0."""
    data = loras["high"][0].read_bytes()
    renamed = tmp_path / "renamed.safetensors"
    renamed.write_bytes(data.replace(b"lora_unet_blocks_0_", b"lora_unet_blocks_9_"))
    done, _ = Job(drawer, tmp_path / "drawn", "t2v", [PROMPT]).run({"renamed": (renamed, None)})
    assert done.returncode != 0
    assert "lora_unet_blocks_9_" in done.stderr

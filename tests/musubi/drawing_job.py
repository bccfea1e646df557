"""One call of the program that draws, and the trainer's own command for one picture."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import wan_train
from musubi.trainer import DIT, T5, VAE, Dataset, Trainer, TrainingRun, text_of

GENERATE = "wan_generate_video.py"
EXPERTS = ("high", "low")
Pair = tuple[Path | None, Path | None]
"""The LoRAs of the high-noise and the low-noise expert."""
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


def command(
    trainer: Trainer, task: str, prompt: dict[str, Any], output: Path, *more: str, kind: str = "images"
) -> list[Path]:
    """The files that the trainer's own command makes of one prompt: its frames, or with `latent` their latents."""
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
        "--output_type", kind,
        "--save_path", str(output),
    ]  # fmt: skip
    words += ["--negative_prompt", prompt["negative"]] if prompt["negative"] else []
    words += ["--image_path", prompt["image"]] if prompt["image"] else []
    done = trainer.script(GENERATE, *words, *more)
    assert done.returncode == 0, text_of(done)
    return sorted(output.rglob("*.png" if kind == "images" else "*.safetensors"))


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
        self,
        rows: dict[str, Pair],
        *,
        decode: str = "each",
        program: str = "driver.py",
        under: Pair = (None, None),
        more: Sequence[str] = (),
    ) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
        job = {
            "backend": str(DRAWING / "musubi.py"),
            "settings": {
                "arguments": [
                    *models(self.trainer, self.task), "--output_type", "images",
                    "--save_path", str(self.folder), *more,
                ],
                "merged": {name: [str(file)] for name, file in zip(EXPERTS, under, strict=True) if file},
                "script": f"src/musubi_tuner/{GENERATE}",
                "text_on_cpu": False,
            },
            "python": str(self.trainer.python),
            "prompts": self.prompts,
            "strength": 1.0,
            "decode": decode,
            "events": str(self.folder / "events.jsonl"),
            "cells": [
                {
                    "key": f"{row}_{number}",
                    "prompt": number,
                    "loras": {name: str(file) for name, file in zip(EXPERTS, pair, strict=True) if file},
                    "latents": {expert: str(self.latents(row, number, expert)) for expert in EXPERTS},
                    "frames": [str(frame) for frame in self.frames(row, number)],
                }
                for row, pair in rows.items()
                for number in range(len(self.prompts))
            ],
        }  # fmt: skip
        path = self.folder / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        done = self.trainer.call([str(self.trainer.python), str(DRAWING / program), str(path)])
        lines = (self.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
        return done, [json.loads(line) for line in lines]


def merged(pair: Pair) -> list[str]:
    """The command's options for a pair."""
    options = {"high": "--lora_weight_high_noise", "low": "--lora_weight"}
    return [word for name, file in zip(EXPERTS, pair, strict=True) if file for word in (options[name], str(file))]


def drawing(trainer: Trainer) -> Trainer:
    """The trainer with what drawing on a CPU needs."""
    return replace(trainer, is_drawing=True)


def train_pairs(trainer: Trainer, cached: Dataset, folder: Path, *, epochs: int, rank: int = 16) -> list[Pair]:
    """A pair of LoRAs for every epoch, learned at a rate at which they move."""
    found: dict[str, list[Path]] = {}
    for expert in EXPERTS:
        output = folder / f"rank{rank}-{expert}"
        done = trainer.train(
            cached, TrainingRun(output=output, expert=expert, epochs=epochs),
            "--learning_rate", "1e-2", "--network_dim", str(rank),
        )  # fmt: skip
        assert done.returncode == 0, text_of(done)
        found[expert] = [*sorted(output.glob("toy-0*.safetensors")), output / "toy.safetensors"]
        assert len(found[expert]) == epochs
    return list(zip(found["high"], found["low"], strict=True))

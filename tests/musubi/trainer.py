"""The real trainer, run script by script on shrunken models, and the material it is given."""

from __future__ import annotations

import json
import os
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

VARIABLE = "WAN_TRAIN_TEST_MUSUBI"
VERSIONS = ("d0a1930", "v0.3.4")
HARNESS = Path(__file__).parent / "harness"
SITECUSTOMIZE = HARNESS / "sitecustomize"

CACHE_LATENTS = "wan_cache_latents.py"
CACHE_TEXT = "wan_cache_text_encoder_outputs.py"
TRAIN = "wan_train_network.py"

VAE = "vae/split_files/vae/wan_2.1_vae.safetensors"
T5 = "text_encoders/models_t5_umt5-xxl-enc-bf16.pth"
DIT = "diffusion_models/split_files/diffusion_models/wan2.2_{task}_{expert}_noise_14B_fp16.safetensors"

SIZES = ((96, 64), (64, 64), (60, 100), (150, 110))
"""Width and height of the drawn pictures: one bucket each at RESOLUTION, so that an epoch has four steps."""
RESOLUTION = (64, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """One checkout of musubi-tuner with its environment; `models` and `hf_home` are from make_models.py."""

    version: str
    home: Path
    models: Path
    hf_home: Path
    is_drawing: bool = False
    """Texts are encoded in float32, which drawing on a CPU needs."""

    @property
    def repo(self) -> Path:
        return self.home / "repo"

    @property
    def python(self) -> Path:
        return self.home / "venv" / "bin" / "python"

    def env(self) -> dict[str, str]:
        """No GPU, no network, nothing of this user's own configuration."""
        return {
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.hf_home),
            "HF_HOME": str(self.hf_home),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(SITECUSTOMIZE),
            "PYTHONUNBUFFERED": "1",
            # The models are so small that threads only wait for each other.
            "OMP_NUM_THREADS": "1",
            **({"MUSUBI_TEST_FLOAT32_TEXT": "1"} if self.is_drawing else {}),
        }

    def call(self, argv: list[str], *, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program in the checkout, as the guide does; stdout and stderr are kept apart."""
        return subprocess.run(
            argv, cwd=self.repo, env=self.env(), input=stdin, capture_output=True, text=True, check=False
        )

    def script(self, name: str, *options: str, launcher: bool = False) -> subprocess.CompletedProcess[str]:
        """Run one of the trainer's scripts, `launcher`: through accelerate as in the guide."""
        start = [str(self.python)]
        if launcher:
            start = [str(self.python.parent / "accelerate"), "launch", "--num_cpu_threads_per_process", "1"]
        return self.call([*start, f"src/musubi_tuner/{name}", *options])

    def harness(self, program: str, *arguments: str) -> None:
        """Run a program of the harness that only writes files."""
        done = self.call([str(self.python), str(HARNESS / program), *arguments])
        assert done.returncode == 0, text_of(done)

    def ask(self, program: str, *arguments: str, stdin: str = "") -> Any:
        """The JSON that a program of the harness prints on its last line."""
        done = self.call([str(self.python), str(HARNESS / program), *arguments], stdin=stdin)
        assert done.returncode == 0, text_of(done)
        return json.loads(done.stdout.splitlines()[-1])

    def each(self, script: str, runs: list[list[str]]) -> list[tuple[int, str]]:
        """Exit status and output of one of the scripts under each list of options; it is imported once for all."""
        module = f"musubi_tuner.{script.removesuffix('.py')}"
        ends = self.ask("run_cases.py", module, stdin=json.dumps(runs))
        return [(end["code"], end["said"]) for end in ends]

    def arguments(self, script: str, dataset: Dataset, run: TrainingRun) -> list[str]:
        """The options with which one of the three scripts is started."""
        config = ["--dataset_config", str(dataset.config)]
        match script:
            case "wan_cache_latents.py":
                return [*config, "--vae", str(self.models / VAE)]
            case "wan_cache_text_encoder_outputs.py":
                return [*config, "--t5", str(self.models / T5)]
            case _:
                return run.options(self, dataset)

    def cache_latents(self, dataset: Dataset, *options: str) -> subprocess.CompletedProcess[str]:
        return self.script(
            CACHE_LATENTS, "--dataset_config", str(dataset.config), "--vae", str(self.models / VAE), *options
        )

    def cache_text(self, dataset: Dataset, *options: str) -> subprocess.CompletedProcess[str]:
        return self.script(CACHE_TEXT, "--dataset_config", str(dataset.config), "--t5", str(self.models / T5), *options)

    def train(
        self, dataset: Dataset, run: TrainingRun, *options: str, launcher: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """The guide's training command with sdpa for xformers, full precision, no fp8, and fewer epochs."""
        return self.script(TRAIN, *run.options(self, dataset), *options, launcher=launcher)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A folder of drawn pictures with captions and the dataset.toml beside it."""

    folder: Path
    config: Path
    cache: Path

    def caches(self) -> set[str]:
        return {path.name for path in self.cache.iterdir()} if self.cache.is_dir() else set()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """What differs between the trainings of these tests."""

    output: Path
    expert: str = "high"
    task: str = "t2v"
    epochs: int = 4
    save_every: int = 1
    name: str = "toy"

    def options(self, trainer: Trainer, dataset: Dataset) -> list[str]:
        boundary = {"t2v": 875, "i2v": 900}[self.task]
        lowest, highest = (boundary, 1000) if self.expert == "high" else (0, boundary)
        return [
            "--task", f"{self.task}-A14B",
            "--dit", str(trainer.models / DIT.format(task=self.task, expert=self.expert)),
            "--vae", str(trainer.models / VAE),
            "--t5", str(trainer.models / T5),
            "--dataset_config", str(dataset.config),
            "--sdpa",
            "--mixed_precision", "no",
            "--optimizer_type", "adamw",
            "--learning_rate", "3e-4",
            "--gradient_checkpointing",
            "--gradient_accumulation_steps", "1",
            "--max_data_loader_n_workers", "2",
            "--network_module", "networks.lora_wan",
            "--network_dim", "16",
            "--network_alpha", "16",
            "--timestep_sampling", "shift",
            "--discrete_flow_shift", "1.0",
            "--max_train_epochs", str(self.epochs),
            "--save_every_n_epochs", str(self.save_every),
            "--seed", "5",
            "--optimizer_args", "weight_decay=0.1",
            "--max_grad_norm", "0",
            "--lr_scheduler", "polynomial",
            "--lr_scheduler_power", "8",
            "--lr_scheduler_min_lr_ratio=5e-5",
            "--output_dir", str(self.output),
            "--output_name", self.name,
            "--metadata_title", self.name,
            "--metadata_author", "MyName",
            "--preserve_distribution_shape",
            "--min_timestep", str(lowest),
            "--max_timestep", str(highest),
        ]  # fmt: skip


def draw_dataset(home: Path, *, cache: str = "cache", sizes: tuple[tuple[int, int], ...] = SIZES) -> Dataset:
    """Pictures of these sizes with a caption each, and a dataset.toml with the guide's keys."""
    folder = home / "pictures"
    folder.mkdir(parents=True)
    for number, size in enumerate(sizes):
        draw_picture(folder / f"p{number}.png", size, seed=number)
        (folder / f"p{number}.txt").write_text(f"a drawing, number {number}", encoding="utf-8")
    config = home / "dataset.toml"
    config.write_text(
        f"""\
[general]
resolution = [{RESOLUTION[0]}, {RESOLUTION[1]}]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true
bucket_no_upscale = false

[[datasets]]
image_directory = "{folder}"
cache_directory = "{folder / cache}"
num_repeats = 1
""",
        encoding="utf-8",
    )
    return Dataset(folder=folder, config=config, cache=folder / cache)


def draw_picture(path: Path, size: tuple[int, int], *, seed: int) -> None:
    """Coloured ellipses on a grey ground."""
    dice = random.Random(seed)
    picture = Image.new("RGB", size, (dice.randrange(256),) * 3)
    pen = ImageDraw.Draw(picture)
    for _ in range(12):
        left, top = dice.randrange(size[0]), dice.randrange(size[1])
        colour = (dice.randrange(256), dice.randrange(256), dice.randrange(256))
        pen.ellipse([left, top, left + size[0] // 4, top + size[1] // 4], fill=colour)
    picture.save(path)


def text_of(done: subprocess.CompletedProcess[str]) -> str:
    """Everything a program said, for the message of a failing test."""
    return f"{done.args}\nexit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"

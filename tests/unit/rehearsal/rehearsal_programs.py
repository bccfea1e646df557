"""A tiny dataset and the three programs of the embedded trainer as processes of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from support import forkserver

ROOT = Path(__file__).parents[3] / "src"
PROGRAMS = ROOT / "wan_train" / "rehearsal"
SIZES = {"a": (96, 96), "b": (128, 80), "c_d": (80, 128), "e": (100, 100)}

SEED_FLAGS = """
--task t2v-A14B --dit /models/high.safetensors --vae /models/vae.safetensors --t5 /models/t5.pth --xformers
--mixed_precision fp16 --fp8_base --optimizer_type adamw --learning_rate 3e-4 --gradient_checkpointing
--gradient_accumulation_steps 1 --max_data_loader_n_workers 2 --network_module networks.lora_wan
--network_dim 16 --network_alpha 16 --timestep_sampling shift --discrete_flow_shift 1.0
--seed 5 --optimizer_args weight_decay=0.1 --max_grad_norm 0 --lr_scheduler polynomial
--lr_scheduler_power 8 --lr_scheduler_min_lr_ratio=5e-5 --preserve_distribution_shape
--min_timestep 875 --max_timestep 1000
""".split()  # noqa: SIM905 - it reads as the command line it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiny:
    """A dataset of four captioned pictures in `folder`; its caches go to `cache`."""

    folder: Path
    cache: Path
    config: Path


def write_dataset(root: Path) -> Tiny:
    folder = root / "pictures"
    folder.mkdir()
    for number, (name, size) in enumerate(SIZES.items()):
        picture = Image.new("RGB", size, (40 * number, 90, 200 - 40 * number))
        ImageDraw.Draw(picture).ellipse((10, 10, 60, 60), fill=(230, 60 * number, 40))
        picture.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a drawing, number {number}\n", encoding="utf-8")
    config = root / "dataset.toml"
    config.write_text(
        '[general]\nresolution = [96, 96]\ncaption_extension = ".txt"\nbatch_size = 1\nenable_bucket = true\n'
        f'[[datasets]]\nimage_directory = "{folder}"\ncache_directory = "{folder}/cache"\nnum_repeats = 1\n',
        encoding="utf-8",
    )
    return Tiny(folder=folder, cache=folder / "cache", config=config)


def run_program(name: str, *options: object) -> subprocess.CompletedProcess[str]:
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    # Forked from a process that has torch loaded: its start costs more than most of these programs.
    return forkserver.run(
        [str(option) for option in options],
        env=env,
        cwd=ROOT,
        script=PROGRAMS / f"{name}.py",
        loaded=forkserver.REHEARSAL,
    )


def train(dataset: Tiny, output: Path, *extra: object) -> subprocess.CompletedProcess[str]:
    flags: Sequence[object] = (
        *SEED_FLAGS,
        *("--dataset_config", dataset.config, "--output_dir", output, "--output_name", "WAN2.2_REHEARSAL_t"),
        *("--metadata_title", "WAN2.2_t", "--metadata_author", "me"),
    )
    return run_program("wan_train_network", *flags, *extra)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Three epochs with a state after every one."""

    dataset: Tiny
    output: Path
    result: subprocess.CompletedProcess[str]

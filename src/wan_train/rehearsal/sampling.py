"""Samples during training: small pictures and clips drawn by the tiny model, with the trainer's file names.

The tiny model uses a prompt's text, size, frames, steps, shift and seed. It has no classifier-free guidance. Its
pictures are blots of colour that change as it learns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]  # has no types of its own

from wan_train.rehearsal.data import fit
from wan_train.rehearsal.tiny_model import CHANNELS, STRIDE, TIMESTEPS, LatentEncoder, TinyWan, encode_text

logger = logging.getLogger(__name__)

SIDE = 256
STEPS = 20
SHIFT = 14.5
COLOUR = 1.5
"""The factor of the first three latent channels over the mean colour of their patch."""
FRAMES_A_SECOND = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """Draws the sample prompts of one training when they are due."""

    args: argparse.Namespace
    accelerator: Accelerator
    transformer: TinyWan
    prompts: Sequence[Mapping[str, Any]]

    def after(self, epoch: int, *, steps: int) -> None:
        """Draw if `--sample_every_n_epochs` requires it; epoch 0 is before the first step."""
        every = self.args.sample_every_n_epochs
        due = self.args.sample_at_first if steps == 0 else every is not None and epoch % every == 0
        if not due:
            return
        logger.info("")
        logger.info("generating sample images at step / サンプル画像生成 ステップ: %d", steps)
        if not self.prompts:
            logger.error("No prompt file / プロンプトファイルがありません: %s", self.args.sample_prompts)
            return
        folder = Path(self.args.output_dir) / "sample"
        folder.mkdir(parents=True, exist_ok=True)
        state = torch.get_rng_state()
        with torch.no_grad(), self.accelerator.autocast():
            sample_images(self, folder, epoch)
        torch.set_rng_state(state)

    def draw(self, number: int, prompt: Mapping[str, Any]) -> Tensor:
        """Latents (16, F, H/8, W/8) of one prompt, from noise along the flow that the model predicts."""
        width, height = prompt.get("width", SIDE) // STRIDE, prompt.get("height", SIDE) // STRIDE
        frames = (prompt.get("frame_count", 1) - 1) // 4 + 1
        device = self.accelerator.device
        generator = torch.Generator().manual_seed(prompt.get("seed", torch.initial_seed()))
        x = torch.randn((1, CHANNELS, frames, height, width), generator=generator).to(device)
        text = [encode_text(prompt["prompt"]).to(device)]
        condition = None
        if "image_path" in prompt:
            count = prompt.get("frame_count", 1)
            condition = start_condition(prompt["image_path"], (width * STRIDE, height * STRIDE), count, str(device))
        levels = noise_levels(prompt.get("sample_steps", STEPS), prompt.get("discrete_flow_shift", SHIFT))
        bar = f"Sampling timesteps for prompt {number + 1}"
        for now, then in tqdm(itertools.pairwise(levels), desc=bar, total=len(levels) - 1):
            moment = torch.full((1,), float(now) * TIMESTEPS, device=device)
            x = x + (then - now).to(device) * self.transformer(x, moment, text, condition).float()
        return x[0].cpu()


def noise_levels(steps: int, shift: float) -> Tensor:
    """The `steps` + 1 noise levels, from 1 (pure noise) to 0 (none)."""
    levels = torch.linspace(1, 0, steps + 1)
    return shift * levels / (1 + (shift - 1) * levels)


def start_condition(image_path: str, size: tuple[int, int], frames: int, device: str) -> Tensor:
    """The image-to-video condition that begins with a picture (1, 20, F, H/8, W/8)."""
    with Image.open(image_path) as image:
        first = fit(image.convert("RGB"), size)
    grey = Image.new("RGB", size, (127, 127, 127))
    encoder = LatentEncoder(device)
    return encoder.encode_first([first, *[grey] * (frames - 1)])[None].to(device)


def sampler(args: argparse.Namespace, accelerator: Accelerator, transformer: TinyWan) -> Sampler:
    prompts = process_sample_prompts(args.sample_prompts) if args.sample_prompts else []
    return Sampler(args=args, accelerator=accelerator, transformer=transformer, prompts=prompts)


def process_sample_prompts(path: str) -> list[Mapping[str, Any]]:
    """The prompts of a JSON file. Named as in the trainer, because `diagnosis` finds this name in tracebacks.

    Raises:
        ValueError: not a .json file.
    """
    logger.info("cache Text Encoder outputs for sample prompt: %s", path)
    if not path.endswith(".json"):
        raise ValueError(f"the rehearsal reads sample prompts from .json files only, not {path}")
    prompts: list[Mapping[str, Any]] = json.loads(Path(path).read_text(encoding="utf-8"))
    return prompts


def sample_images(shop: Sampler, folder: Path, epoch: int) -> None:
    """Write a file per prompt. Named as in the trainer, because `diagnosis` finds this name in tracebacks."""
    for number, prompt in enumerate(shop.prompts):
        if "i2v" in shop.args.task and "image_path" not in prompt:
            logger.error("No image_path for i2v model / i2vモデルのサンプル画像生成にはimage_pathが必要です")
            continue
        logger.info("prompt: %s", prompt["prompt"])
        frames = frames_of(shop.draw(number, prompt), prompt.get("frame_count", 1))
        stamp = time.strftime("%Y%m%d%H%M%S", time.localtime())
        seed = f"_{prompt['seed']}" if "seed" in prompt else ""
        name = f"{shop.args.output_name}_e{epoch:06d}_{number:02d}_{stamp}{seed}"
        if len(frames) == 1:
            frames[0].save(folder / f"{name}_000.png")
        else:
            _save_clip(folder / f"{name}.mp4", frames)


def frames_of(latents: Tensor, count: int) -> list[Image.Image]:
    """Frames from the first three channels, the mean colour of every patch, enlarged to pixels."""
    colours = ((latents[:3] / COLOUR + 1) * 127.5).clamp(0, 255).byte().permute(1, 2, 3, 0).contiguous().numpy()
    size = (latents.shape[3] * STRIDE, latents.shape[2] * STRIDE)
    large = [Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC) for frame in colours]
    # Every latent but the first stands for four frames.
    return [large[(number + 3) // 4] for number in range(count)]


def _save_clip(path: Path, frames: Sequence[Image.Image]) -> None:
    try:
        import av  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise RuntimeError(f"{path}: writing clips needs PyAV (pip install av)") from None
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_A_SECOND)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))

"""Stand-ins of the VAE and the text encoder: small, fixed, made from a seed, so that no file is needed."""

from __future__ import annotations

import re
import zlib

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CHANNELS = 16
"""Latent channels, as Wan's VAE has them."""
STRIDE = 8
"""Pixels per latent, in both directions."""
TEXT_DIM = 64
MAX_TOKENS = 512
VOCABULARY = 4096
_SEED = 2022


class LatentEncoder:
    """Turns frames into latents (16, F, H/8, W/8), float32, of about unit spread.

    One linear map of every 8x8 patch: three channels carry its mean colour, the rest a fixed random view
    of its
    texture. F is 1 for a picture and 1 + (frames - 1) / 4 for a clip, as with Wan's VAE.
    """

    def __init__(self, device: str) -> None:
        pixels = 3 * STRIDE * STRIDE
        generator = torch.Generator().manual_seed(_SEED)
        texture = torch.randn(CHANNELS - 3, pixels, generator=generator) / (2 * STRIDE)
        colour = torch.zeros(3, 3, STRIDE * STRIDE)
        for channel in range(3):
            colour[channel, channel] = 1.5 / (STRIDE * STRIDE)
        self.device = device
        self.weight = torch.cat([colour.view(3, pixels), texture]).to(device)

    def encode(self, frames: list[Image.Image]) -> Tensor:
        """Latents of frames of one size.

        Raises:
            ValueError: the size is not a multiple of 16.
        """
        width, height = frames[0].size
        if width % (2 * STRIDE) or height % (2 * STRIDE):
            raise ValueError(f"Image or video size {width}x{height} is not a multiple of {2 * STRIDE}")
        pixels = torch.from_numpy(np.stack([np.asarray(frame, dtype=np.float32) for frame in frames]))
        pixels = (pixels.to(self.device) / 127.5 - 1.0).permute(0, 3, 1, 2)
        patches = torch.nn.functional.pixel_unshuffle(pixels, STRIDE)
        latents = torch.einsum("oc,fchw->ofhw", self.weight, patches)
        groups = [latents[:, :1], *latents[:, 1:].split(4, dim=1)]
        return (
            torch.cat([group.mean(dim=1, keepdim=True) for group in groups if group.shape[1]], dim=1).cpu().contiguous()
        )

    def encode_first(self, frames: list[Image.Image]) -> Tensor:
        """The I2V condition (20, F, H/8, W/8): four mask channels, then the first frame and grey ones."""
        grey = Image.new("RGB", frames[0].size, (127, 127, 127))
        latents = self.encode([frames[0], *[grey] * (len(frames) - 1)])
        mask = torch.zeros(4, *latents.shape[1:])
        mask[:, 0] = 1
        return torch.cat([mask, latents])


def encode_text(caption: str) -> Tensor:
    """One row of 64 numbers per word of the caption and one for its end; at most 512 rows, float32."""
    words = [*re.findall(r"\w+|[^\w\s]", caption.lower()), "</s>"][:MAX_TOKENS]
    generator = torch.Generator().manual_seed(_SEED)
    table = torch.randn(VOCABULARY, TEXT_DIM, generator=generator)
    return table[[zlib.crc32(word.encode()) % VOCABULARY for word in words]]


def default_device() -> str:
    """CUDA when torch can use it (an empty CUDA_VISIBLE_DEVICES forbids it), else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"

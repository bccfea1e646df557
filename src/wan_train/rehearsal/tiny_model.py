"""The tiny model: stand-ins for the VAE and the text encoder, a DiT of Wan's shape, and its LoRA adapters.

All frozen weights come from fixed seeds, so no file is needed. Layers, tensor names and metadata are the real ones.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = 16
"""Latent channels, as Wan's VAE has them."""
STRIDE = 8
"""Pixels per latent, in both directions."""
TEXT_DIM = 64
TIMESTEPS = 1000.0
MAX_TOKENS = 512
VOCABULARY = 4096
_ENCODER_SEED = 2022
DIM = 64
BLOCKS = 4
HEADS = 4
FFN = 128
I2V_CHANNELS = 20
PATCH = 2
GATE = 30.0
"""The gain of a residual branch over its weights, so that an adapter shows after a few dozen steps, as on
a big model."""
KEPT = 0.8
"""The share of its noisy input that the untrained model returns as its prediction; the rest is a fixed
random rotation."""
TINT = 0.5
"""The spread of the untrained model's constant error, which adapters can always remove."""
_MODEL_SEED = 22
Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]
DTYPES = {"float": torch.float32, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class LatentEncoder:
    """Turns frames into latents (16, F, H/8, W/8), float32, of about unit spread.

    One linear map of every 8x8 patch: three channels hold its mean colour, the rest a fixed random projection of its
    texture. F is 1 for a picture and 1 + (frames - 1) / 4 for a clip, as with Wan's VAE.
    """

    def __init__(self, device: str) -> None:
        pixels = 3 * STRIDE * STRIDE
        generator = torch.Generator().manual_seed(_ENCODER_SEED)
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
    generator = torch.Generator().manual_seed(_ENCODER_SEED)
    table = torch.randn(VOCABULARY, TEXT_DIM, generator=generator)
    return table[[zlib.crc32(word.encode()) % VOCABULARY for word in words]]


def default_device() -> str:
    """CUDA when torch can use it (an empty CUDA_VISIBLE_DEVICES forbids it), else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class Attention(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """Multi-head attention with Wan's layer names q, k, v, o; tensors are (batch, tokens, dim)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (HEADS, -1)).transpose(1, 2)

        mixed = functional.scaled_dot_product_attention(
            split(self.q(x)), split(self.k(context)), split(self.v(context)), attn_mask=mask
        )
        return self.o(mixed.transpose(1, 2).flatten(2))


class WanAttentionBlock(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """Self-attention, cross-attention to the text, feed-forward, each shifted and scaled by the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = Attention(), Attention()
        self.ffn = nn.Sequential(nn.Linear(DIM, FFN), nn.GELU(), nn.Linear(FFN, DIM))
        self.modulation = nn.Linear(DIM, 4 * DIM)

    def forward(self, x: Tensor, moment: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        shift_a, scale_a, shift_f, scale_f = self.modulation(moment)[:, None].chunk(4, dim=-1)
        y = _norm(x) * (1 + scale_a) + shift_a
        x = x + GATE * self.self_attn(y, y)
        x = x + GATE * self.cross_attn(_norm(x), text, text_mask)
        return x + GATE * self.ffn(_norm(x) * (1 + scale_f) + shift_f)


class TinyWan(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """Predicts the flow (noise minus latents) of noisy latents (batch, 16, F, H, W) at timesteps 1 to 1000.

    H and W are even. With I2V the condition (batch, 20, F, H, W) is joined to the input channels.
    """

    def __init__(self, *, i2v: bool) -> None:
        super().__init__()
        channels = CHANNELS + (I2V_CHANNELS if i2v else 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_MODEL_SEED)
            self.patch_embedding = nn.Linear(channels * PATCH * PATCH, DIM)
            self.text_embedding = nn.Linear(TEXT_DIM, DIM)
            self.time_embedding = nn.Sequential(nn.Linear(DIM, DIM), nn.SiLU(), nn.Linear(DIM, DIM), nn.SiLU())
            self.blocks = nn.ModuleList(WanAttentionBlock() for _ in range(BLOCKS))
            self.head = nn.Linear(DIM, CHANNELS * PATCH * PATCH)
            with torch.no_grad():
                self._settle()
        self.requires_grad_(requires_grad=False)

    def _settle(self) -> None:
        """Set weights that predict badly but not at random, so that what adapters learn shows in the loss."""
        view = torch.linalg.qr(torch.randn(DIM, DIM)).Q
        confusion = torch.linalg.qr(torch.randn(DIM, DIM)).Q
        self.patch_embedding.weight[:, :DIM] = view
        self.patch_embedding.bias.zero_()
        self.head.weight.copy_(KEPT * view.T + (1 - KEPT) * confusion)
        self.head.bias.copy_(TINT * torch.randn(DIM))
        for block in self.blocks:
            for layer in (block.self_attn.o, block.cross_attn.o, block.ffn[2]):
                layer.weight.div_(GATE)
                layer.bias.div_(GATE)

    def forward(
        self, latents: Tensor, timesteps: Tensor, text: list[Tensor], condition: Tensor | None = None
    ) -> Tensor:
        frames, height, width = latents.shape[2:]
        x = latents if condition is None else torch.cat([latents, condition], dim=1)
        x = self.patch_embedding(_patches(x)) + _positions(frames, height // PATCH, width // PATCH, x.device)
        moment = self.time_embedding(_wave(timesteps, DIM))
        padded = nn.utils.rnn.pad_sequence(text, batch_first=True)
        lengths = torch.tensor([len(rows) for rows in text], device=x.device)
        mask = (torch.arange(padded.shape[1], device=x.device) < lengths[:, None])[:, None, None]
        context = self.text_embedding(padded)
        for block in self.blocks:
            x = block(x, moment, context, mask)
        y = self.head(_norm(x)).unflatten(1, (frames, height // PATCH, width // PATCH))
        y = y.unflatten(-1, (CHANNELS, PATCH, PATCH)).permute(0, 4, 1, 2, 5, 3, 6)
        return y.reshape(len(y), CHANNELS, frames, height, width)


def _norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, (DIM,))


def _patches(x: Tensor) -> Tensor:
    """(batch, C, F, H, W) to (batch, F * H/2 * W/2, C * 4)."""
    batch, channels, frames, height, width = x.shape
    x = x.reshape(batch, channels, frames, height // PATCH, PATCH, width // PATCH, PATCH)
    return x.permute(0, 2, 3, 5, 1, 4, 6).reshape(batch, -1, channels * PATCH * PATCH)


def _wave(positions: Tensor, dim: int) -> Tensor:
    steps = torch.arange(dim // 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[:, None] * torch.exp(-math.log(10000.0) * steps / (dim // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _positions(frames: int, rows: int, columns: int, device: torch.device) -> Tensor:
    def axis(length: int, dim: int) -> Tensor:
        return _wave(torch.arange(length, device=device), dim)

    shape = (frames, rows, columns, -1)
    parts = (
        axis(frames, DIM // 4)[:, None, None].expand(shape),
        axis(rows, DIM * 3 // 8)[None, :, None].expand(shape),
        axis(columns, DIM * 3 // 8)[None, None].expand(shape),
    )
    return torch.cat(parts, dim=-1).flatten(0, 2)


class Adapter(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """The low-rank addition to one linear layer: up(down(x)) * alpha / rank, zero at the start."""

    def __init__(self, layer: nn.Linear, *, rank: int, alpha: float, dropout: float | None) -> None:
        super().__init__()
        self.lora_down = nn.Linear(layer.in_features, rank, bias=False)
        self.lora_up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_up.weight)
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.scale = alpha / rank
        self.dropout = dropout or 0.0

    def forward(self, x: Tensor) -> Tensor:
        low = nn.functional.dropout(self.lora_down(x), self.dropout, self.training)
        return self.lora_up(low) * self.scale


class Network(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """One adapter per attention and feed-forward layer of the blocks, hooked to its output permanently."""

    def __init__(self, transformer: nn.Module, *, rank: int, alpha: float, dropout: float | None) -> None:
        super().__init__()
        for name, layer in targets(transformer):
            adapter = Adapter(layer, rank=rank, alpha=alpha, dropout=dropout)
            self.add_module(f"lora_unet_{name.replace('.', '_')}", adapter)
            layer.register_forward_hook(_added(adapter))

    def save(self, path: Path, *, dtype: torch.dtype, metadata: dict[str, str]) -> None:
        """Write the adapters as one safetensors file, with hashes of the tensors in the metadata."""
        tensors = {
            name: tensor.detach().to("cpu", torch.float32 if name.endswith(".alpha") else dtype).contiguous()
            for name, tensor in self.state_dict().items()
        }
        save_file(tensors, path, metadata=metadata | _hashes(tensors))

    def load(self, path: str) -> None:
        """Load the weights of a file that `save` wrote."""
        self.load_state_dict(load_file(path))


def targets(transformer: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The name and layer of everything that gets an adapter."""
    for name, layer in transformer.named_modules():
        if name.startswith("blocks.") and isinstance(layer, nn.Linear) and "modulation" not in name:
            yield name, layer


def _added(adapter: Adapter) -> Hook:
    def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + adapter(inputs[0])

    return hook


def _hashes(tensors: dict[str, Tensor]) -> dict[str, str]:
    data = save(tensors)
    body = data[8 + int.from_bytes(data[:8], "little") :]
    return {
        "sshs_model_hash": hashlib.sha256(body).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8],
    }

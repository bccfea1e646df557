"""A DiT of Wan's shape, small enough for a CPU: same layers, same names, made from a fixed seed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_train.rehearsal.encoders import CHANNELS, TEXT_DIM

DIM = 64
BLOCKS = 4
HEADS = 4
FFN = 128
I2V_CHANNELS = 20
PATCH = 2
GATE = 30.0
"""How much louder a residual branch is than its weights: an adapter shows after a few dozen steps, as on
a big model."""
KEPT = 0.8
"""How much of its noisy input the untrained model gives back as its prediction; the rest is a fixed
confusion."""
TINT = 0.5
"""Spread of the constant error of the untrained model, something that adapters can always take away."""
_SEED = 22


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
            torch.manual_seed(_SEED)
            self.patch_embedding = nn.Linear(channels * PATCH * PATCH, DIM)
            self.text_embedding = nn.Linear(TEXT_DIM, DIM)
            self.time_embedding = nn.Sequential(nn.Linear(DIM, DIM), nn.SiLU(), nn.Linear(DIM, DIM), nn.SiLU())
            self.blocks = nn.ModuleList(WanAttentionBlock() for _ in range(BLOCKS))
            self.head = nn.Linear(DIM, CHANNELS * PATCH * PATCH)
            with torch.no_grad():
                self._settle()
        self.requires_grad_(requires_grad=False)

    def _settle(self) -> None:
        """Weights of a model that predicts badly, though not blindly: what adapters learn then shows in
        the loss.
        """
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

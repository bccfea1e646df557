"""LoRA adapters for the tiny DiT, with musubi-tuner's tensor names, metadata and file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]
DTYPES = {"float": torch.float32, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


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
    """One adapter per attention and feed-forward layer of the blocks, hooked to its output for good."""

    def __init__(self, transformer: nn.Module, *, rank: int, alpha: float, dropout: float | None) -> None:
        super().__init__()
        for name, layer in targets(transformer):
            adapter = Adapter(layer, rank=rank, alpha=alpha, dropout=dropout)
            self.add_module(f"lora_unet_{name.replace('.', '_')}", adapter)
            layer.register_forward_hook(_added(adapter))

    def save(self, path: Path, *, dtype: torch.dtype, metadata: dict[str, str]) -> None:
        """Write the adapters as one safetensors file, hashes of the tensors added to the metadata."""
        tensors = {
            name: tensor.detach().to("cpu", torch.float32 if name.endswith(".alpha") else dtype).contiguous()
            for name, tensor in self.state_dict().items()
        }
        save_file(tensors, path, metadata=metadata | _hashes(tensors))

    def load(self, path: str) -> None:
        """Take the weights of a file that `save` wrote."""
        self.load_state_dict(load_file(path))


def targets(transformer: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Name and layer of everything that gets an adapter."""
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

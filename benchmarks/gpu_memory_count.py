"""Counts, without a GPU, the bytes one training step of the real trainer's A14B model keeps alive.

The model and LoRA code are musubi-tuner's own; the tensors are PyTorch's fake ones, which have shapes but no
data, so a full-size step takes a minute and no memory. Every storage is counted from its making to its end.
This is an estimate, not a measurement: it leaves out the CUDA context, the allocator's gaps, workspaces of
kernels, and the moment of loading. Run it with the trainer's Python (needs torch; a CPU build is enough):

    python benchmarks/gpu_memory_count.py --musubi-dir musubi-tuner [--side 960] [--frames 1]
"""

from __future__ import annotations

import argparse
import gc
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Alive(TorchDispatchMode):  # type: ignore[misc]  # torch is typed as Any
    """Bytes of the storages alive now and at most, in the allocator's steps of 512."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's signature
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                if storage not in self.seen:
                    self.seen.add(storage)
                    size = -(-storage.nbytes() // 512) * 512
                    self.now += size
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self.end, size)
        return result

    def end(self, size: int) -> None:
        self.now -= size


class Plain(list[Any]):
    """The few integer tensors whose values the model reads, as numbers: fake tensors have no values."""

    def tolist(self) -> list[Any]:
        return [item.tolist() if isinstance(item, Plain) else item for item in self]

    def max(self) -> int:
        return int(max(self))


class ModelTorch:
    """What the model's module sees as `torch`: the real one but for sizes and the fp32 time embedding."""

    class amp:  # noqa: N801 - stands where torch.amp stands
        @staticmethod
        def autocast(**_: object) -> torch.autocast:
            # The time embedding's weights are made float32 below: the CPU's autocast cannot cast to float32.
            return torch.autocast("cpu", enabled=False)

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)

    def tensor(self, data: Any, **_: object) -> Plain:  # noqa: ANN401 - sizes or lists of them
        return Plain(data)

    def stack(self, items: Any, *args: Any) -> Any:  # noqa: ANN401 - torch.stack's own types
        items = list(items)
        return Plain(items) if isinstance(items[0], Plain) else torch.stack(items, *args)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: object) -> Any:  # noqa: ANN401 - operator result
    """Flash attention, which sdpa chooses on a GPU at these sizes; without it the scores would be counted."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001 - has no public name
    return flash(q, k, v, 0.0, False)[0]  # noqa: FBT003 - the operator takes its flags by position


def place(module: torch.nn.Module, dtype: torch.dtype, *, train: bool) -> None:
    """Give every parameter a fake storage of its real size."""
    for name, part in module.named_modules():
        kind = torch.float32 if name.startswith("time_") else dtype
        for key, parameter in list(part.named_parameters(recurse=False)):
            empty = torch.empty(tuple(parameter.shape), dtype=kind)
            setattr(part, key, torch.nn.Parameter(empty, requires_grad=train))
        for key, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, key, torch.empty(tuple(buffer.shape), dtype=buffer.dtype))


def step(*, fp8: bool, checkpointing: bool, side: int, frames: int) -> tuple[int, int]:
    """Bytes at rest (weights, LoRA, optimizer) and at most during the second step."""
    import networks.lora_wan as lora  # noqa: PLC0415 - on the path only once main has put it there
    from musubi_tuner.wan.configs import t2v_A14B as config  # noqa: PLC0415 - the same
    from musubi_tuner.wan.modules import model as room  # noqa: PLC0415 - the same

    room.torch = ModelTorch()
    torch.nn.functional.scaled_dot_product_attention = attention
    names = ("dim", "eps", "ffn_dim", "freq_dim", "in_dim", "num_heads", "num_layers", "out_dim", "text_len")
    sizes = {name: config[name] for name in names}
    with torch.device("meta"):
        model = room.WanModel(model_type="t2v", model_version="2.2", attn_mode="torch", **sizes)
        network = lora.create_arch_network(1.0, 16, 16, None, None, model)
    network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    latent = frames, side // 8, side // 8
    with FakeTensorMode(allow_non_fake_inputs=True), Alive() as alive:
        # The model first: it holds the LoRA's forward functions but none of its parameters.
        place(model, torch.float8_e4m3fn if fp8 else torch.float16, train=False)
        place(network, torch.float32, train=True)
        model.freqs = torch.empty(tuple(model.freqs.shape), dtype=model.freqs.dtype)
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.train(checkpointing)
        optimizer = torch.optim.AdamW(network.parameters())
        for _ in range(2):
            gc.collect()
            alive.most = alive.now
            noisy = torch.empty(16, *latent, dtype=torch.float16, requires_grad=True)
            caption = torch.empty(100, 4096, dtype=torch.float16)
            with torch.autocast("cpu", torch.float16):
                length = frames * (side // 16) ** 2
                prediction = model([noisy], t=torch.empty(1), context=[caption], seq_len=length)[0]
            prediction.float().pow(2).mean().backward()
            del prediction
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        gc.collect()
        return alive.now, alive.most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--musubi-dir", type=Path, required=True)
    parser.add_argument("--side", type=int, default=960, help="picture side in pixels")
    parser.add_argument("--frames", type=int, default=1, help="latent frames; a clip of 4n+1 has n+1")
    args = parser.parse_args()
    source = args.musubi_dir / "src"
    sys.path[:0] = [str(source), str(source / "musubi_tuner")]
    # musubi-tuner asks for the current CUDA device while it is imported.
    torch.cuda.current_device = lambda: "cpu"
    print("| weights | gradient checkpointing | at rest (GiB) | peak of a step (GiB) |\n|---|---|---|---|")
    for fp8 in (True, False):
        for checkpointing in (True, False):
            rest, most = step(fp8=fp8, checkpointing=checkpointing, side=args.side, frames=args.frames)
            words = "fp8" if fp8 else "fp16", "on" if checkpointing else "off"
            print(f"| {words[0]} | {words[1]} | {rest / 2**30:.1f} | {most / 2**30:.1f} |", flush=True)


if __name__ == "__main__":
    main()

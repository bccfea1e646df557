"""One test of a GPU by the trainer's own Python: products with known results, and attention forward and backward.

Its source is passed to that Python with `-c`, so it imports nothing from wan-train. Arguments: ANSWER, a torch device
(`cuda`, or `cpu` without a GPU), and the kinds of attention to test. It fails with a message or a traceback.
"""

import json
import pathlib
import sys

import torch


def main() -> None:
    """Run the tests, then write what was tested to ANSWER."""
    answer, device, *kinds = sys.argv[1:]
    for dtype in (torch.float16, torch.bfloat16):
        multiply(device, dtype)
        for kind in kinds:
            attend(device, dtype, kind)
    said = {"torch": torch.__version__, "cuda": torch.version.cuda, "attention": kinds}
    pathlib.Path(answer).write_text(json.dumps(said), encoding="utf-8")


def multiply(device: str, dtype: torch.dtype) -> None:
    """Multiply matrices of integers: all integers up to 256 are exact in both types."""
    rows = torch.arange(64).reshape(64, 1)
    columns = torch.arange(64).reshape(1, 64)
    left, right = (rows + columns) % 3, (rows * columns) % 3
    found = left.to(device, dtype) @ right.to(device, dtype)
    if not torch.equal(found.cpu().to(torch.int64), left @ right):
        raise SystemExit(f"the product of two matrices in {dtype} is wrong on {device}")


def attend(device: str, dtype: torch.dtype, kind: str) -> None:
    """Compare heads of 128, as in Wan, with float32 on the CPU. Training needs the gradients too."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 64, 128).to(dtype).float() for _ in range(3))
    expected = torch.softmax(query @ key.transpose(2, 3) / 128**0.5, dim=-1) @ value
    inputs = [part.to(device, dtype).requires_grad_() for part in (query, key, value)]
    found = CALLS[kind](*inputs)
    found.float().pow(2).sum().backward()
    if not torch.allclose(found.detach().float().cpu(), expected, atol=0.05, rtol=0.05):
        raise SystemExit(f"attention by {kind} in {dtype} gives wrong numbers on {device}")
    if not all(bool(torch.isfinite(part.grad).all()) for part in inputs):
        raise SystemExit(f"attention by {kind} in {dtype} gives gradients that are not finite on {device}")


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value)


def xformers(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    from xformers.ops import memory_efficient_attention

    parts = (part.transpose(1, 2) for part in (query, key, value))
    return memory_efficient_attention(*parts).transpose(1, 2)


def flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    from flash_attn import flash_attn_func

    parts = (part.transpose(1, 2) for part in (query, key, value))
    return flash_attn_func(*parts).transpose(1, 2)


CALLS = {"sdpa": sdpa, "xformers": xformers, "flash": flash}

if __name__ == "__main__":
    main()

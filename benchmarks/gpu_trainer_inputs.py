"""Inputs of gpu_trainer.py: a DiT, latents, text embeddings and a dataset.toml of real shapes, full of noise.

Written with the standard library alone, so that any Python can run the benchmark.
"""

from __future__ import annotations

import json
import os
import random
import struct
import time
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A DiT's dimensions; the default is one expert of Wan 2.2 T2V A14B.

    Source: musubi-tuner, src/musubi_tuner/wan/configs/wan_t2v_A14B.py.
    """

    dim: int = 5120
    ffn: int = 13824
    layers: int = 40
    heads: int = 40
    freq: int = 256
    text: int = 4096
    channels: int = 16
    dtype: str = "F16"


TINY = Shape(dim=64, ffn=128, layers=4, heads=4, dtype="F32")


def dit_tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of an expert's tensors, as the trainer's strict load wants them."""
    d, f = shape.dim, shape.ffn

    def linear(name: str, n_in: int, n_out: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (n_out, n_in)
        yield f"{name}.bias", (n_out,)

    yield "patch_embedding.weight", (d, shape.channels, 1, 2, 2)
    yield "patch_embedding.bias", (d,)
    yield from linear("text_embedding.0", shape.text, d)
    yield from linear("text_embedding.2", d, d)
    yield from linear("time_embedding.0", shape.freq, d)
    yield from linear("time_embedding.2", d, d)
    yield from linear("time_projection.1", d, 6 * d)
    for i in range(shape.layers):
        block = f"blocks.{i}"
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                yield from linear(f"{block}.{attention}.{part}", d, d)
            yield f"{block}.{attention}.norm_q.weight", (d,)
            yield f"{block}.{attention}.norm_k.weight", (d,)
        yield f"{block}.norm3.weight", (d,)
        yield f"{block}.norm3.bias", (d,)
        yield from linear(f"{block}.ffn.0", d, f)
        yield from linear(f"{block}.ffn.2", f, d)
        yield f"{block}.modulation", (1, 6, d)
    yield from linear("head.head", d, shape.channels * 4)
    yield "head.modulation", (1, 2, d)


def noise_bytes(count: int, dtype: str) -> bytes:
    """`count` finite random numbers of magnitude 0.016 to 0.031 and either sign, little-endian."""
    # A fixed exponent, random sign and mantissa: needs no numpy, and stays normal once cast to fp8.
    exponent, mantissa_bits, width = {"F16": (9, 10, 2), "BF16": (121, 7, 2), "F32": (121, 23, 4)}[dtype]
    raw = bytearray(os.urandom(count * width))
    keep = (1 << 8 * width - 1) | ((1 << mantissa_bits) - 1)
    for at, (kept, fixed) in enumerate(
        zip(keep.to_bytes(width, "little"), (exponent << mantissa_bits).to_bytes(width, "little"), strict=True)
    ):
        raw[at::width] = raw[at::width].translate(bytes(b & kept | fixed for b in range(256)))
    return bytes(raw)


def write_safetensors(path: Path, tensors: list[tuple[str, tuple[int, ...], str]], meta: dict[str, str]) -> int:
    """Write tensors of (name, shape, dtype) full of noise, streaming; returns the bytes of data.

    Norm weights are ones and biases zeros, so that activations stay finite in fp16.
    """
    header: dict[str, object] = {"__metadata__": meta} if meta else {}
    at, sizes = 0, []
    for name, shape, dtype in tensors:
        count = 1
        for n in shape:
            count *= n
        size = count * (4 if dtype == "F32" else 2)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        sizes.append(size)
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pools: dict[str, memoryview] = {}
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for (name, _, dtype), size in zip(tensors, sizes, strict=True):
            if dtype not in pools:
                # Repeating one pool is as good as fresh noise here, and writes at the speed of the disk.
                pools[dtype] = memoryview(noise_bytes(min(64 * MIB, max(sizes)) // 2, dtype))
            pool = pools[dtype]
            if name.endswith(".bias"):
                pool = memoryview(bytes(size))
            elif "norm" in name:
                one = struct.pack("<f", 1.0) if dtype == "F32" else struct.pack("<e", 1.0)
                pool = memoryview(one * (size // len(one)))
            left = size
            while left > 0:
                left -= out.write(pool[:left])
        out.flush()
        os.fsync(out.fileno())
    return at


def write_png(path: Path, side: int) -> None:
    """A plain square picture: the trainer reads only the caches, but its dataset wants pictures."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x60\x80\xa0" * side) * side, 1)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def write_latent(path: Path, side: int) -> None:
    """A latent cache of one picture: 16 x 1 x side/8 x side/8, unit normal, as the Wan VAE's would be."""
    edge = side // 8
    rng = random.Random(path.name)
    count = 16 * edge * edge
    body = array("f", (rng.gauss(0, 1) for _ in range(count))).tobytes()
    entry = {"dtype": "F32", "shape": [16, 1, edge, edge], "data_offsets": [0, len(body)]}
    meta = {"architecture": "wan", "width": str(side), "height": str(side), "format_version": "1.0.1"}
    text = json.dumps({"__metadata__": meta, f"latents_1x{edge}x{edge}_float32": entry}).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def prepare(work: Path, shape: Shape, *, side: int, items: int, tokens: int) -> tuple[Path, Path]:
    """Write what is missing of DiT, dataset and caches; returns (dit, dataset.toml)."""
    data, cache = work / "dataset", work / "dataset" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for i in range(items):
        stem = f"item{i:02d}"
        write_png(data / f"{stem}.png", side)
        (data / f"{stem}.txt").write_text("a plain picture", encoding="utf-8")
        write_latent(cache / f"{stem}_{side:04d}x{side:04d}_wan.safetensors", side)
        meta = {"architecture": "wan", "caption1": "a plain picture", "format_version": "1.0.1"}
        text_cache = [("varlen_t5_bfloat16", (tokens, shape.text), "BF16")]
        write_safetensors(cache / f"{stem}_wan_te.safetensors", text_cache, meta)
    toml = work / "dataset.toml"
    toml.write_text(
        f"[general]\nresolution = [{side}, {side}]\ncaption_extension = '.txt'\nbatch_size = 1\n"
        "enable_bucket = true\nbucket_no_upscale = false\n\n[[datasets]]\n"
        f"image_directory = '{data}'\ncache_directory = '{cache}'\n"
        "num_repeats = 1\n",
        encoding="utf-8",
    )
    dit = work / f"dit-{shape.dim}x{shape.layers}.safetensors"
    if not dit.exists():
        started = time.monotonic()
        part = dit.with_suffix(".part")
        size = write_safetensors(part, [(n, s, shape.dtype) for n, s in dit_tensors(shape)], {})
        part.rename(dit)
        print(f"wrote {dit.name}: {size / 1e9:.1f} GB in {time.monotonic() - started:.0f} s", flush=True)
    return dit, toml

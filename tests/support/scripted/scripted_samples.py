"""Samples during training: the real names and log lines, and one grey picture for each prompt."""

from __future__ import annotations

import argparse
import json
import struct
import time
import zlib
from pathlib import Path

from scripted_faults import Faults
from scripted_program import log, record, seconds, write_in_pieces

_MODULE = "musubi_tuner.hv_train_network"


def encode_prompts(options: argparse.Namespace) -> None:
    """Read the prompt file, as the real trainer does before it loads its model."""
    if options.sample_prompts:
        log("__main__", f"cache Text Encoder outputs for sample prompt: {options.sample_prompts}")
        _prompts(options)


def after_epoch(options: argparse.Namespace, faults: Faults, epoch: int) -> None:
    """Make the samples due after an epoch. `epoch` is this process's own count, 0 before the first step."""
    every = options.sample_every_n_epochs
    if not options.sample_prompts or (epoch and (not every or epoch % every)):
        return
    sample_images(options, faults, epoch)


def sample_images(options: argparse.Namespace, faults: Faults, epoch: int) -> None:
    """Make samples. The name is the real one, because it identifies tracebacks."""
    log(_MODULE, f"generating sample images at step / サンプル画像生成 ステップ: {epoch}")
    folder = Path(options.output_dir) / "sample"
    folder.mkdir(parents=True, exist_ok=True)
    for number, prompt in enumerate(_prompts(options)):
        log(_MODULE, f"prompt: {prompt['prompt']}")
        faults.in_sample(epoch)
        time.sleep(seconds("SAMPLE", 0.002))
        stamp = time.strftime("%Y%m%d%H%M%S", time.localtime())
        seed = f"_{prompt['seed']}" if "seed" in prompt else ""
        name = f"{options.output_name}_e{epoch:06d}_{number:02d}_{stamp}{seed}_000.png"
        write_in_pieces(folder / name, _png(prompt.get("width", 256), prompt.get("height", 256)))
        record("sample", epoch=epoch, prompt=number, path=str(folder / name))


def _prompts(options: argparse.Namespace) -> list[dict[str, object]]:
    prompts: list[dict[str, object]] = json.loads(Path(options.sample_prompts).read_text(encoding="utf-8"))
    return prompts


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x80" * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")

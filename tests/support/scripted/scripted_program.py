"""Code that the three programs share: options, the record of events, the GPU, the dataset, progress bars."""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import struct
import sys
import time
import tomllib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nvml_memory

CHECKOUT = Path(__file__).parents[2]
IMAGE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_TYPES = {"int": int, "float": float, "int_or_float": float}
_RAM_PIECE = 4 * 1024**2
_held: list[object] = []


def seconds(name: str, default: float) -> float:
    return float(os.environ.get(f"SCRIPTED_{name}_SECONDS", default))


def version() -> str:
    return (CHECKOUT / "version").read_text().strip()


def parse_options(script: str) -> argparse.Namespace:
    """Parse the script's options in this version. For other options argparse ends the process with 2."""
    parser = argparse.ArgumentParser(prog=script)
    for name, entry in json.loads((CHECKOUT / "contract.json").read_text())[script].items():
        if entry["kind"] == "flag":
            parser.add_argument(name, action="store_true")
            continue
        more = {key: entry[key] for key in ("nargs", "choices", "required", "default") if key in entry}
        parser.add_argument(name, type=_TYPES.get(entry.get("type"), str), **more)
    return parser.parse_args()


def log(module: str, words: str) -> None:
    sys.stderr.write(f"INFO:{module}:{words}\n")
    sys.stderr.flush()


def say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def record(what: str, **facts: object) -> None:
    """Append one line to the common record of a box. Lines stay whole with several writers."""
    path = os.environ.get("SCRIPTED_RECORD")
    if path is None:
        return
    line = json.dumps({"what": what, "at": time.monotonic(), "pid": os.getpid(), "gpu": gpu(), **facts}) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def gpu() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")


def occupy_gpu(place: str, *, shared: bool = False) -> None:
    """Mark the GPU as used by this process from here on. Record an overlap if another process uses it.

    Two processes with `shared` are allowed: latents and captions may be encoded at once.
    """
    common = os.environ.get("SCRIPTED_RECORD")
    if common is None or not gpu():
        return
    lock = Path(f"{common}.{gpu()}.lock").open("a")  # noqa: SIM115  held until the process ends in any way
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        record("overlap", place=place)
    _held.append(lock)


def load_model(count: int) -> None:
    """Wait for the loading time. Halfway through, the GPU's memory use rises by `count` bytes."""
    time.sleep(seconds("LOAD", 0.02) / 2)
    state = os.environ.get("NVML_STUB_STATE")
    if state and gpu():
        nvml_memory.hold(Path(state), gpu(), os.getpid(), count)
    time.sleep(seconds("LOAD", 0.02) / 2)


def hold_ram() -> None:
    """Allocate SCRIPTED_RAM_BYTES of RAM, piece by piece, and keep them until the process ends."""
    for _ in range(int(os.environ.get("SCRIPTED_RAM_BYTES", "0")) // _RAM_PIECE):
        _held.append(bytearray(b"x") * _RAM_PIECE)
        time.sleep(0.001)


def bar(label: str, done: int, total: int | None, started: float, postfix: str = "") -> None:
    """Write one redraw to stderr as tqdm does."""
    elapsed = time.monotonic() - started
    rate = f"{done / elapsed:5.2f}it/s" if done and elapsed > 0 else "?it/s"
    if total is None:
        sys.stderr.write(f"\r{label}{done}it [{_clock(elapsed)}, {rate}]")
    else:
        blocks = "█" * (10 * done // total)
        left = _clock(elapsed / done * (total - done)) if done else "?"
        percent = 100 * done // total
        sys.stderr.write(
            f"\r{label}{percent:3d}%|{blocks:<10}| {done}/{total} [{_clock(elapsed)}<{left}, {rate}{postfix}]"
        )
    sys.stderr.flush()


def write_in_pieces(path: Path, data: bytes, pieces: int = 4) -> None:
    """Write a file as the trainer does, not atomically: a reader may find any part of it under the final name."""
    size = max(1, -(-len(data) // pieces))
    with path.open("wb") as file:
        for start in range(0, len(data), size):
            file.write(data[start : start + size])
            file.flush()
            time.sleep(seconds("STEP", 0.002) / pieces)


class Picture(NamedTuple):
    """One picture, its caption file and its two cache files. `words` is its caption if a list gives it."""

    image: Path
    caption: Path
    latents: Path
    text: Path
    repeats: int
    bucket: tuple[int, int]
    words: str | None = None


def pictures(dataset_config: str) -> Iterator[Picture]:
    """Yield every picture of a dataset.toml with `image_directory` or `image_jsonl_file` datasets."""
    config = tomllib.loads(Path(dataset_config).read_text(encoding="utf-8"))
    log("musubi_tuner.hv_train_network", f"Load dataset config from {dataset_config}")
    for dataset in config["datasets"]:
        settings = config.get("general", {}) | dataset
        captions: dict[Path, str] = {}
        if "image_jsonl_file" in settings:
            lines = Path(settings["image_jsonl_file"]).read_text(encoding="utf-8").splitlines()
            captions = {Path(record["image_path"]): record["caption"] for record in map(json.loads, lines)}
            cache = Path(settings["cache_directory"])
            images = list(captions)
            log("musubi_tuner.dataset.image_video_dataset", f"loaded {len(images)} images")
        else:
            folder = Path(settings["image_directory"])
            cache = Path(settings.get("cache_directory") or folder)
            images = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_ENDINGS)
            log("musubi_tuner.dataset.image_video_dataset", f"glob images in {folder}")
            log("musubi_tuner.dataset.image_video_dataset", f"found {len(images)} images")
        for image in images:
            width, height = _size(image)
            yield Picture(
                image=image,
                caption=image.with_suffix(settings.get("caption_extension", ".txt")),
                latents=cache / f"{image.stem}_{width:04d}x{height:04d}_wan.safetensors",
                text=cache / f"{image.stem}_wan_te.safetensors",
                repeats=settings.get("num_repeats", 1),
                bucket=_bucket(width, height, settings),
                words=captions.get(image),
            )


def trained(dataset_config: str) -> dict[str, int]:
    """Return what a training sees: the repeats of every latent cache with a text cache, by name."""
    for _ in pictures(dataset_config):
        pass  # only for the log lines about pictures; the trainer trains what is cached
    config = tomllib.loads(Path(dataset_config).read_text(encoding="utf-8"))
    found = {}
    for settings in (config.get("general", {}) | dataset for dataset in config["datasets"]):
        folder = Path(settings.get("cache_directory") or settings["image_directory"])
        for latents in sorted(folder.glob("*_wan.safetensors")):
            stem = "_".join(latents.name.split("_")[:-2])
            if (folder / f"{stem}_wan_te.safetensors").exists():
                found[latents.name] = settings.get("num_repeats", 1)
    return found


def latents_of(item: Picture, *, i2v: bool) -> bytes:
    """Return a latent cache in the real format. Its numbers depend on the picture's bytes."""
    width, height = item.bucket
    shape = [1, 1, height // 8, width // 8]
    count = shape[2] * shape[3]
    values = struct.pack(f"<{count}H", *([0x3F80 + zlib.crc32(item.image.read_bytes()) % 64] * count))
    label = f"1x{height // 8}x{width // 8}_bfloat16"
    names = [f"latents_{label}", *([f"latents_image_{label}"] if i2v else [])]
    return _file(dict.fromkeys(names, ("BF16", shape, values)), {"architecture": "wan", "format_version": "1.0.1"})


def text_of(item: Picture) -> bytes:
    caption = item.words if item.words is not None else item.caption.read_text(encoding="utf-8").strip()
    values = struct.pack("<4H", *([0x3F80 + zlib.crc32(caption.encode()) % 64] * 4))
    metadata = {"architecture": "wan", "caption1": caption, "format_version": "1.0.1"}
    return _file({"varlen_t5_bfloat16": ("BF16", [1, 4], values)}, metadata)


def _file(tensors: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + data


def _bucket(width: int, height: int, settings: dict[str, Any]) -> tuple[int, int]:
    """Return the real trainer's bucket size in steps of 16, without `bucket_no_upscale`."""
    resolution = settings.get("resolution", [960, 544])
    wide, high = (resolution, resolution) if isinstance(resolution, int) else resolution
    if not settings.get("enable_bucket"):
        return wide, high
    side = math.isqrt(wide * high)
    sizes = set()
    for one in range(side // 2 // 16 * 16, side + 16, 16):
        other = wide * high // one // 16 * 16
        sizes |= {(one, other), (other, one)}
    return min(sorted(sizes), key=lambda size: abs(size[0] / size[1] - width / height))


def safetensors(values: list[float], metadata: dict[str, str], dtype: str = "F16") -> bytes:
    """Return a complete file with one down and one up tensor of these numbers."""
    packed = struct.pack(f"<{len(values)}{'e' if dtype == 'F16' else 'f'}", *values)
    name = "lora_unet_blocks_0_cross_attn_k"
    header = {
        "__metadata__": metadata,
        f"{name}.lora_down.weight": {"dtype": dtype, "shape": [1, len(values)], "data_offsets": [0, len(packed)]},
        f"{name}.lora_up.weight": {
            "dtype": dtype, "shape": [len(values), 1], "data_offsets": [len(packed), 2 * len(packed)],
        },
    }  # fmt: skip
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + packed + packed


def _size(image: Path) -> tuple[int, int]:
    data = image.read_bytes()[:24]
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise OSError(f"cannot identify image file {str(image)!r}")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def _clock(elapsed: float) -> str:
    return f"{int(elapsed) // 60:02d}:{int(elapsed) % 60:02d}"

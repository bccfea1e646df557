"""Looking at a dataset: `dataset check` of ten and of twenty thousand captioned pictures beside a plain Pillow loop."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from figures import Figure
from wan_train.dataset.model import GUIDE_READING, DatasetOverrides
from wan_train.dataset.resolve import resolve_dataset
from wan_train.dataset.scan import check

_FEW, _MANY = 10_000, 20_000
_MOST_SECONDS, _MOST_MB = 3.0, 200


def measure() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="wan-train-bench-") as folder:
        few, many = Path(folder) / "few", Path(folder) / "many"
        draw(few, _FEW)
        draw(many, _MANY)
        plain = min(_timed(lambda: pillow_loop(few)) for _ in range(3))
        ours = min(_timed(lambda: look(few)) for _ in range(3))
        at_large = min(_timed(lambda: look(many)) for _ in range(2))
        wall, megabytes = by_hand(few)
    yield Figure(
        what=f"`dataset check`, {_FEW:,} captioned pictures, processor time of the look",
        measured=f"{1e6 * ours / _FEW:.0f} us a picture",
        against=f"Pillow opening each: {1e6 * plain / _FEW:.0f} us",
        ratio=ours / plain,
    )
    yield Figure(
        what="the same, twice as many pictures",
        measured=f"{1e6 * at_large / _MANY:.0f} us a picture",
        against=f"{1e6 * ours / _FEW:.0f} us",
        ratio=(at_large / _MANY) / (ours / _FEW),
        goal="linear: < 1.3",
        met=(at_large / _MANY) / (ours / _FEW) < 1.3,
    )
    yield Figure(
        what=f"the whole command, {_FEW:,} pictures",
        measured=f"{wall:.1f} s, {megabytes:.0f} MB",
        goal=f"< {_MOST_SECONDS:.0f} s, < {_MOST_MB} MB",
        met=wall < _MOST_SECONDS and megabytes < _MOST_MB,
    )


def draw(folder: Path, count: int) -> None:
    """JPEG, as from a camera, and PNG in turn; all of different size, since only files of one size are read whole."""
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 1, "camera"
    jpeg, png = io.BytesIO(), io.BytesIO()
    picture = Image.effect_noise((256, 192), 40).convert("RGB").resize((1024, 768))
    picture.save(jpeg, "JPEG", quality=30, exif=exif)
    picture.convert("1").save(png, "PNG")
    for number in range(count):
        fill = bytes(number)
        if number % 2:
            data = b"\xff\xd8\xff\xfe" + struct.pack(">H", len(fill) + 2) + fill + jpeg.getvalue()[2:]
        else:
            chunk = b"prIv" + fill
            ending = png.getvalue()[-12:]
            length, crc = struct.pack(">I", len(fill)), struct.pack(">I", zlib.crc32(chunk))
            data = png.getvalue()[:-12] + length + chunk + crc + ending
        (folder / f"{number:06d}.{'jpg' if number % 2 else 'png'}").write_bytes(data)
        (folder / f"{number:06d}.txt").write_text(f"a photo of a cat on a wall in the evening sun, number {number}")


def pillow_loop(folder: Path) -> None:
    for entry in os.scandir(folder):
        if not entry.name.endswith(".txt"):
            with Image.open(entry.path) as image:
                assert image.width


def look(folder: Path) -> None:
    check(resolve_dataset(str(folder)), reading=GUIDE_READING, overrides=DatasetOverrides())


def by_hand(folder: Path) -> tuple[float, float]:
    """Seconds and MB of one call of the program."""
    code = (
        "import resource, subprocess, sys, time; began = time.monotonic();"
        "subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL);"
        "print(time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    program = [str(Path(sys.executable).with_name("wan-train")), "dataset", "check", str(folder)]
    done = subprocess.run([sys.executable, "-c", code, *program], capture_output=True, text=True, check=True)
    wall, kilobytes = done.stdout.split()
    return float(wall), float(kilobytes) / 1000


def _timed(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started

"""Draws report.png: a rehearsal of two minutes at most, and the top of its report in headless Chromium.

.venv/bin/python docs/pictures/report.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

RUNS = Path("/tmp/wan-train-picture")
SIZE = (1280, 1290)
COLOURS = 200
WORDS = [
    str(Path(sys.executable).with_name("wan-train")),
    "rehearse",
    "--title",
    "mylora",
    "--author",
    "authorName",
    "--epochs",
    "60",
    "--runs-dir",
    str(RUNS),
]


def main() -> None:
    browser = next(found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name)))
    try:
        subprocess.run(WORDS, check=True, stdin=subprocess.DEVNULL)
        (page,) = RUNS.glob("*-mylora/report.html")
        with tempfile.TemporaryDirectory() as folder:
            shot = Path(folder) / "shot.png"
            subprocess.run(
                [
                    browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=3000",
                    "--blink-settings=preferredColorScheme=1", f"--window-size={SIZE[0]},{SIZE[1]}",
                    f"--screenshot={shot}", page.as_uri(),
                ],
                check=True,
            )  # fmt: skip
            picture = Image.open(shot).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            picture.save(Path(__file__).with_suffix(".png"), optimize=True)
    finally:
        shutil.rmtree(RUNS, ignore_errors=True)


if __name__ == "__main__":
    main()

"""The README's picture of the live view, from a real run: `python docs/pictures/make_screens.py`.

A rehearsal runs in a terminal of 100 columns (tmux, which must be installed); in the middle of it the screen is taken
as it is and written as an SVG beside this file. Takes about two minutes.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS, ROWS = 100, 30
EPOCHS, KEEP_EVERY = 100, 20
PICTURE = Path(__file__).parent / "live.svg"
SOCKET = "wan-train-picture"
FONTS = "ui-monospace, 'Cascadia Mono', Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
PATIENCE_SECONDS = 300.0


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="wan-train-picture-") as folder:
        screen = take_screen(Path(folder))
    PICTURE.write_text(as_svg(screen), encoding="utf-8")
    sys.stderr.write(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes\n")
    return 0


def take_screen(folder: Path) -> list[str]:
    """The lines on the screen in mid-run, with their escape sequences."""
    program = Path(sys.executable).parent / "wan-train"
    pictures, runs = folder / "pictures", folder / "runs"
    subprocess.run([sys.executable, "-m", "wan_train.rehearsal.example_pictures", str(pictures)], check=True)
    command = [
        *(str(program), "--engine", "rehearsal", "--runs-dir", str(runs), "--dataset", str(pictures)),
        *("--title", "mylora", "--author", "authorName", "--resolution", "256x256"),
        *("--epochs", str(EPOCHS), "--save-every", str(KEEP_EVERY), "--yes"),
    ]
    size = ["-x", str(COLUMNS), "-y", str(ROWS)]
    tmux("new-session", "-d", *size, f"LANG=C.UTF-8 {shlex.join(command)}")
    try:
        tmux("set-option", "-g", "status", "off")
        return wait_for_mid_run()
    finally:
        subprocess.run([program, "stop", "--now", "--runs-dir", str(runs)], check=False)
        wait_until_over(runs)
        tmux("kill-server")


def wait_for_mid_run() -> list[str]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.3)
        lines = tmux("capture-pane", "-e", "-p").rstrip("\n").split("\n")
        plain = "\n".join(Text.from_ansi(line).plain for line in lines)
        kept = plain.count(f"LoRA of epoch {3 * KEEP_EVERY} kept")
        if kept == 2 and plain.count("per step, TensorBoard") == 2:
            return lines
    raise TimeoutError("\n".join(lines))


def wait_until_over(runs: Path) -> None:
    """Nothing may write into the folder any more when it is removed."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        journals = list(runs.glob("*/events.jsonl"))
        if all('"run_finished"' in journal.read_text(encoding="utf-8") for journal in journals):
            return
        time.sleep(0.3)


def tmux(*words: str) -> str:
    done = subprocess.run(["tmux", "-L", SOCKET, *words], check=True, capture_output=True, text=True)
    return done.stdout


def as_svg(lines: list[str]) -> str:
    """A picture that needs nothing from the network: fonts are those of whoever looks."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    # All at once: a style may begin on one line and end on another.
    console.print(Text.from_ansi("\n".join(lines)), no_wrap=True, crop=True)
    svg = console.export_svg(title="wan-train", unique_id="live")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("font-family: Fira Code, monospace", f"font-family: {FONTS}")
    svg = svg.replace("<!-- Generated with Rich https://www.textualize.io -->", "")
    found = [url for url in re.findall(r"https?://[^\s\"')]+", svg) if url != "http://www.w3.org/2000/svg"]
    if found:
        raise ValueError(f"the picture would be fetched from elsewhere: {found}")
    return svg


if __name__ == "__main__":
    sys.exit(main())

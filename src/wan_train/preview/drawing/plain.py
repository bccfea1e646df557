"""Draws the cells of a preview with the trainer's own command, one process for each picture.

It is for musubi-tuner versions that `driver.py` was not tested with. `driver.py` documents the job and the events.
Each process loads all models, so this is slow, and a kill costs the current picture. A process draws only one prompt,
because the command has bugs with several. They share the high-noise guidance; prompts with the same text share the
negative prompt; and image-to-video fails in one version.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, TextIO


def main(argv: list[str]) -> int:
    job = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    with closing(Path(job["events"]).open("a", encoding="utf-8")) as events:
        cells = [cell for cell in job["cells"] if not all(Path(frame).is_file() for frame in cell["frames"])]
        for number, cell in enumerate(cells):
            _tell(events, "drawing", key=cell["key"], number=number + 1, of=len(cells))
            began = time.monotonic()
            code = _draw(job, cell)
            if code:
                return code
            _tell(events, "cell", key=cell["key"], seconds=time.monotonic() - began)
        _tell(events, "done")
    return 0


def _draw(job: dict[str, Any], cell: dict[str, Any]) -> int:
    prompt, loras = job["prompts"][cell["prompt"]], cell["loras"]
    folder = Path(cell["latents"]["low"]).parent
    folder.mkdir(parents=True, exist_ok=True)
    frames = [Path(frame) for frame in cell["frames"]]
    frames[0].parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as drawn:
        words = [*job["settings"]["arguments"], *_of_prompt(prompt), *_of_loras(job, loras)]
        # The last --save_path counts.
        argv = [job["python"], job["settings"]["script"], *words, "--save_path", drawn]
        done = subprocess.run(argv, check=False)
        if done.returncode:
            return done.returncode if done.returncode > 0 else 128 - done.returncode
        found = sorted(Path(drawn).rglob("*.png"))
        if len(found) != len(frames):
            sys.stderr.write(f"RuntimeError: {len(found)} frames were written instead of {len(frames)}\n")
            return 1
        for source, target in zip(found, frames, strict=True):
            os.replace(source, target)  # noqa: PTH105  Path.replace makes another Path
    return 0


def _of_prompt(prompt: dict[str, Any]) -> list[str]:
    words = [
        # With `=` a text may begin with a dash.
        f"--prompt={prompt['text']}",
        "--video_size", str(prompt["height"]), str(prompt["width"]),
        "--video_length", str(prompt["frames"]),
        "--infer_steps", str(prompt["steps"]),
        "--seed", str(prompt["seed"]),
        "--guidance_scale", str(prompt["guidance"]["low"]),
        "--guidance_scale_high_noise", str(prompt["guidance"]["high"]),
        "--flow_shift", str(prompt["shift"]),
    ]  # fmt: skip
    if prompt["negative"]:
        words.append(f"--negative_prompt={prompt['negative']}")
    if prompt["image"]:
        words += ["--image_path", prompt["image"]]
    return words


def _of_loras(job: dict[str, Any], loras: dict[str, str]) -> list[str]:
    words = []
    for expert, option in (("low", ""), ("high", "_high_noise")):
        merged = job["settings"]["merged"].get(expert, [])
        files = [*merged, *([loras[expert]] if expert in loras else [])]
        strengths = [*(["1"] * len(merged)), *([str(job["strength"])] if expert in loras else [])]
        if files:
            words += [f"--lora_weight{option}", *files, f"--lora_multiplier{option}", *strengths]
    return words


def _tell(events: TextIO, event: str, **values: object) -> None:
    events.write(json.dumps({"event": event, "at": time.time(), **values}) + "\n")
    events.flush()
    os.fsync(events.fileno())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

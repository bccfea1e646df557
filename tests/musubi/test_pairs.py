"""Pairs of LoRAs drawn by our driver with the real trainer's code, compared with the trainer's own command."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops
from safetensors.numpy import load_file

from musubi.drawing_job import Job, Pair, command, drawing, merged, train_pairs
from musubi.trainer import Dataset, Trainer, draw_picture, text_of
from wan_train.engine.lightning import converted
from wan_train.engine.lora_distance import LoraFile, distance
from wan_train.engine.tensors import read_header, rename_tensors

PROMPT = {
    "text": "a cat on a mat",
    "negative": None,
    "width": 96,
    "height": 64,
    "frames": 1,
    "steps": 4,
    "seed": 7,
    "guidance": {"high": 4.0, "low": 3.0},
    "shift": 12.0,
    "image": None,
}
CLIP = {**PROMPT, "text": "the same cat, running", "width": 64, "frames": 5, "negative": "ugly", "seed": 8}
EPOCHS = 10
MERGED_AWAY = 1e-3
"""How far latents are from the command's, which merges LoRAs: the same numbers are added in another order. Measured
here: 3e-4."""


def same(one: Path, other: Path) -> bool:
    with Image.open(one) as first, Image.open(other) as second:
        return first.size == second.size and ImageChops.difference(first, second).getbbox() is None


def away(one: np.ndarray, other: np.ndarray) -> float:
    """The distance of latents, as a part of their size."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def latents(job: Job, row: str) -> np.ndarray:
    torch = pytest.importorskip("torch")  # loaded by who draws, not by each process that lists the tests
    found: np.ndarray = torch.load(job.latents(row, 0, "low"), weights_only=True)["latent"].float().numpy()
    return found


def merged_latents(trainer: Trainer, pair: Pair, output: Path) -> np.ndarray:
    (path,) = command(trainer, "t2v", PROMPT, output, *merged(pair), kind="latent")
    found: np.ndarray = load_file(path)["latent"]
    return found


def from_last(files: Sequence[Path | None]) -> list[float]:
    """The distances of LoRAs from the last one."""
    with ExitStack() as opened:
        loras = [opened.enter_context(LoraFile(path)) for path in files if path is not None]
        return [distance(each, loras[-1]) for each in loras[:-1]]


@pytest.fixture(scope="session")
def drawer(trainer: Trainer) -> Trainer:
    return drawing(trainer)


@pytest.fixture(scope="session")
def pairs(trainer: Trainer, cached: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    return train_pairs(trainer, cached, tmp_path_factory.mktemp("pairs"), epochs=EPOCHS)


@pytest.fixture(scope="session")
def other_rank(trainer: Trainer, cached: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Rank 4 with alpha 16, so that its strength is another one too."""
    (pair,) = train_pairs(trainer, cached, tmp_path_factory.mktemp("pairs"), epochs=1, rank=4)
    return pair


def test_the_base_cells_are_the_commands_to_the_bit(drawer: Trainer, tmp_path: Path) -> None:
    job = Job(drawer, tmp_path / "drawn", "t2v", [PROMPT, CLIP])
    done, events = job.run({"base": (None, None)})
    assert done.returncode == 0, text_of(done)
    assert [event["event"] for event in events].count("cell") == 2
    for number, prompt in enumerate((PROMPT, CLIP)):
        plain = command(drawer, "t2v", prompt, tmp_path / f"plain-{number}")
        drawn = job.frames("base", number)
        assert len(plain) == len(drawn) == prompt["frames"]
        assert all(same(one, other) for one, other in zip(drawn, plain, strict=True))


def test_eleven_pairs_are_drawn_with_one_load_of_each_expert(
    drawer: Trainer, pairs: list[Pair], other_rank: Pair, tmp_path: Path
) -> None:
    rows: dict[str, Pair] = {"base": (None, None)}
    rows |= {f"e{epoch}": pair for epoch, pair in enumerate(pairs, start=1)}
    job = Job(drawer, tmp_path / "drawn", "t2v", [PROMPT])
    done, events = job.run(rows)
    assert done.returncode == 0, text_of(done)
    assert len(rows) == 11
    assert [event["what"] for event in events if event["event"] == "loaded"] == ["high", "low"]
    assert [event["event"] for event in events].count("cell") == 11

    plain = command(drawer, "t2v", PROMPT, tmp_path / "plain-base")
    assert same(job.frames("base", 0)[0], plain[0]), "the base is drawn before any LoRA is attached"
    last = latents(job, f"e{EPOCHS}")
    off = away(last, merged_latents(drawer, pairs[-1], tmp_path / "merged"))
    assert off < MERGED_AWAY, f"a pair's latents are {off:.1e} from those of the merged command"
    # What the LoRAs say of epochs, the latents say in the same order.
    moved = [away(latents(job, f"e{epoch}"), last) for epoch in range(1, EPOCHS)]
    learned = [from_last([pair[expert] for pair in pairs]) for expert in (0, 1)]
    furthest = [max(both) for both in zip(*learned, strict=True)]
    apart = [number for number, each in enumerate(furthest) if each > MERGED_AWAY]
    assert len(apart) >= 4, furthest
    assert sorted(apart, key=lambda number: furthest[number]) == sorted(apart, key=lambda number: moved[number]), moved

    mixed: dict[str, Pair] = {"again": pairs[-1], "other": other_rank, "cross": (other_rank[0], pairs[-1][1])}
    mixed |= {"half": (None, pairs[-1][1])}
    then = Job(drawer, tmp_path / "mixed", "t2v", [PROMPT])
    done, _ = then.run(mixed)
    assert done.returncode == 0, text_of(done)
    assert same(then.frames("again", 0)[0], job.frames(f"e{EPOCHS}", 0)[0])
    for row in ("other", "cross", "half"):
        off = away(latents(then, row), merged_latents(drawer, mixed[row], tmp_path / row))
        assert off < MERGED_AWAY, f"{row}: {off:.1e} from the merged command"


def test_an_unknown_version_is_drawn_by_its_own_command_one_process_a_picture(
    drawer: Trainer, pairs: list[Pair], tmp_path: Path
) -> None:
    rows: dict[str, Pair] = {"pair": pairs[-1], "half": (pairs[0][0], None)}
    job = Job(drawer, tmp_path / "plain", "t2v", [PROMPT])
    done, events = job.run(rows, program="plain.py")
    assert done.returncode == 0, text_of(done)
    assert [event["key"] for event in events if event["event"] == "cell"] == ["pair_0", "half_0"]
    for row, pair in rows.items():
        asked = command(drawer, "t2v", PROMPT, tmp_path / row, *merged(pair))
        assert same(job.frames(row, 0)[0], asked[0])


def test_lightning_under_a_row_is_what_the_command_merges(drawer: Trainer, pairs: list[Pair], tmp_path: Path) -> None:
    """A LoRA of the trainer's, under the names of Lightning's tensors, stands for Lightning's own."""
    fast = ["--sample_solver", "vanilla", "--cfg_skip_mode", "late", "--cfg_apply_ratio", "0"]
    under = [converted(as_lightning(path, tmp_path / f"{n}.safetensors")) for n, path in enumerate(pairs[-1]) if path]
    for program in ("driver.py", "plain.py"):
        job = Job(drawer, tmp_path / program, "t2v", [PROMPT])
        done, _ = job.run({"base": (None, None)}, under=(under[0], under[1]), more=fast, program=program)
        assert done.returncode == 0, text_of(done)
        asked = command(drawer, "t2v", PROMPT, tmp_path / f"asked-{program}", *fast, *merged(pairs[-1]))
        assert same(job.frames("base", 0)[0], asked[0])
    plain = command(drawer, "t2v", PROMPT, tmp_path / "plain", *fast)
    assert not same(plain[0], asked[0]), "the LoRAs change the picture"


def as_lightning(path: Path, target: Path) -> Path:
    names = {}
    for name in read_header(path).tensors:
        module, _, part = name.removeprefix("lora_unet_").partition(".")
        dotted = re.sub(r"_(?=\d)|(?<=\d)_|(?<=attn)_", ".", module)
        names[name] = f"diffusion_model.{dotted}.{part}"
    rename_tensors(path, target, names)
    return target


def test_a_killed_drawing_goes_on_from_its_latents(drawer: Trainer, pairs: list[Pair], tmp_path: Path) -> None:
    """What a kill leaves: latents of the first expert, and no picture. The picture is the same to the bit."""
    rows = {"e2": pairs[1]}
    whole = Job(drawer, tmp_path / "whole", "t2v", [PROMPT])
    done, _ = whole.run(rows, decode="end")
    assert done.returncode == 0, text_of(done)
    cut = Job(drawer, tmp_path / "cut", "t2v", [PROMPT])
    kept = cut.latents("e2", 0, "high")
    kept.parent.mkdir()
    kept.write_bytes(whole.latents("e2", 0, "high").read_bytes())
    done, events = cut.run(rows)
    assert done.returncode == 0, text_of(done)
    assert [event["what"] for event in events if event["event"] == "loaded"] == ["low"]
    assert same(cut.frames("e2", 0)[0], whole.frames("e2", 0)[0])


def test_image_to_video_begins_with_the_picture(drawer: Trainer, tmp_path: Path) -> None:
    """At d0a1930 the command cannot do this from a file of prompts; of one prompt it can."""
    draw_picture(tmp_path / "start.png", (96, 64), seed=3)
    prompt = {**CLIP, "width": 96, "image": str(tmp_path / "start.png"), "shift": 5.0}
    job = Job(drawer, tmp_path / "drawn", "i2v", [prompt])
    done, _ = job.run({"base": (None, None)})
    assert done.returncode == 0, text_of(done)
    plain = command(drawer, "i2v", prompt, tmp_path / "plain")
    assert all(same(one, other) for one, other in zip(job.frames("base", 0), plain, strict=True))


def test_a_lora_whose_keys_match_nothing_ends_the_drawing(drawer: Trainer, pairs: list[Pair], tmp_path: Path) -> None:
    """The command would ignore them and draw a wrong picture with exit code 0."""
    assert pairs[0][0] is not None
    data = pairs[0][0].read_bytes()
    renamed = tmp_path / "renamed.safetensors"
    renamed.write_bytes(data.replace(b"lora_unet_blocks_0_", b"lora_unet_blocks_9_"))
    done, _ = Job(drawer, tmp_path / "drawn", "t2v", [PROMPT]).run({"renamed": (renamed, None)})
    assert done.returncode != 0
    assert "lora_unet_blocks_9_" in done.stderr

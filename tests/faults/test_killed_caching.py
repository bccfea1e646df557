"""`kill -9` at random moments of a real caching: the caches are in the end those of a caching that nobody disturbed."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from support import forkserver
from support.nvml import NvmlStub
from support.trainers import ScriptedBox, make_dataset
from wan_train import rehearsal
from wan_train.engine.tensors import Header, read_header

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the [rehearsal] extra")

COUNT = 30
KILLS = 2
WORDS = [
    *("--engine", "rehearsal", "--experts", "high", "--epochs", "1"),
    *("--resolution", "256x256", "--rank", "4"),
]


@pytest.mark.timeout(600)  # torch starts once more for each kill, also on a machine that is busy
def test_killed_at_random_moments(scripted_box: ScriptedBox, nvml_stub: NvmlStub) -> None:
    nvml_stub.write([], init_error=9)
    shutil.rmtree(scripted_box.dataset)
    cache = make_dataset(scripted_box.dataset, COUNT) / "cache" / "rehearsal-float32"
    seed = random.randrange(1 << 30)
    dice = random.Random(seed)
    killed = _cache(scripted_box, "killed", sorted(dice.sample(range(1, 2 * COUNT), KILLS)))
    assert killed, f"seed {seed}: nothing was killed"
    found = _contents(cache)
    assert len(found) == 2 * COUNT
    shutil.rmtree(cache)
    _cache_undisturbed(scripted_box.run() / "dataset.toml")
    assert found == _contents(cache), f"seed {seed}"


def _cache_undisturbed(config: Path) -> None:
    """The trainer's two programs, without wan-train around them."""
    src = Path(rehearsal.__file__).parents[2]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(src), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    for name, option in (("wan_cache_latents", "--vae"), ("wan_cache_text_encoder_outputs", "--t5")):
        done = forkserver.run(
            ["--dataset_config", str(config), option, "stand-in"],
            env=env,
            cwd=src,
            script=Path(rehearsal.__file__).with_name(f"{name}.py"),
            loaded=forkserver.REHEARSAL,
        )
        assert done.returncode == 0, done.stderr


def _cache(box: ScriptedBox, title: str, moments: list[int]) -> int:
    """Cache in a run of its own, killing the caching programs once that many caches are there; how many were killed."""
    cache = box.dataset / "cache" / "rehearsal-float32"
    child = box.popen_cli(*box.train_words(*WORDS, title=title))
    killed = 0
    for there in moments:
        box.wait_for(lambda there=there: len(list(cache.glob("*.safetensors"))) >= there, what=f"{there} caches")
        for pid, words in box.trainers().items():
            if "wan_cache_" in words and "warden" not in words:
                os.kill(pid, signal.SIGKILL)
                killed += 1
    box.wait_for(lambda: _is_cached(box), what="the end of caching")
    box.run_cli("stop", title, "--now")
    assert child.wait(timeout=60) == 143
    return killed


def _is_cached(box: ScriptedBox) -> bool:
    run = box.run_directories()[-1] if box.run_directories() else None
    if run is None:
        return False
    done = {event["step"] for event in box.events("step_succeeded", "caches_up_to_date", run=run)}
    steps = [step["id"] for step in json.loads((run / "plan.json").read_bytes())["steps"]]
    return {step for step in steps if step.startswith("cache-")} <= done


def _contents(cache: Path) -> dict[str, tuple[Header, bytes]]:
    """Whole files by what they say: the order of their metadata differs from one writing to the next."""
    found = {}
    for path in cache.glob("*.safetensors"):
        header = read_header(path)
        found[path.name] = (header, path.read_bytes()[header.data_begins :])
    return found

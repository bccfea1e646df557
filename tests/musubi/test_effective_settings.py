"""Settings of each expert with the real trainer: what was asked for is what was trained, also over a resume."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

from musubi.test_wan_train import Box, box, eventually, saved
from musubi.trainer import SIZES
from wan_train.engine.tensors import read_header
from wan_train.recipe.terms import Expert
from wan_train.run.directory import RunDirectory

__all__ = ["box"]  # the fixture

HIGH_EPOCHS, LOW_EPOCHS = 60, 40
STEPS = -(-len(SIZES) // 3)
"""Of one epoch: the gradients of three batches make a step, and the last one takes what is left."""


def test_each_expert_trains_by_its_own_settings_over_a_resume(box: Box, tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text('[any]\ngradient_accumulation_steps = 3\nlr_scheduler = "constant"\nmax_grad_norm = 1.0\n')
    words = [
        *("--high", "network_dim=4", "--high", "learning_rate=2e-4", "--low", "network_dim=8"),
        *("--low", f"max_train_epochs={LOW_EPOCHS}", "--low", "network_args=exclude_patterns=[]"),
    ]
    after = ["--", "--config_file", str(tmp_path / "mine"), "--network_alpha", "2"]
    line = [*box.train(*words, epochs=HIGH_EPOCHS), "--save-every", "4", *after]
    with subprocess.Popen(
        box.command(*line), env=box.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as watcher:
        eventually(lambda: saved(box, "train-high", attempt=1), watcher)
        config.write_text("learning_rate = 1.0\n")  # nothing of a run depends on the file any more
        for process in box.processes():
            with suppress(psutil.NoSuchProcess):
                words = process.cmdline()
                if any("train-high" in word for word in words) and words[1].endswith("wan_train_network.py"):
                    process.kill()
        assert watcher.wait() == 0
    run = RunDirectory(box.run())
    plan = run.read_plan()
    assert (plan.steps_of(Expert.HIGH), plan.steps_of(Expert.LOW)) == (STEPS * HIGH_EPOCHS, STEPS * LOW_EPOCHS)
    began = {str(event["step"]): event["steps"] for event in box.events("training_began")}
    assert began == {"train-high": STEPS * HIGH_EPOCHS, "train-low": STEPS * LOW_EPOCHS}
    wanted = {"high": ("4", "0.0002", HIGH_EPOCHS), "low": ("8", "0.0003", LOW_EPOCHS)}
    for step in plan.steps:
        if step.expert is None:
            continue
        metadata = read_header(run.path / f"{step.produces}.safetensors").metadata
        rank, rate, epochs = wanted[step.expert.value]
        assert (metadata["ss_network_dim"], metadata["ss_learning_rate"]) == (rank, rate)
        assert float(metadata["ss_network_alpha"]) == 2
        assert metadata["ss_lr_scheduler"] == "constant"
        assert metadata["ss_gradient_accumulation_steps"] == "3"
        assert metadata["ss_num_epochs"] == metadata["ss_epoch"] == str(epochs)
        assert metadata["ss_steps"] == metadata["ss_max_train_steps"] == str(STEPS * epochs)
    assert len([event for event in box.events("step_started") if event["step"] == "train-high"]) == 2
    eventually(lambda: not box.processes())


def test_a_lora_is_continued_from(box: Box) -> None:
    """Both experts go on from the LoRAs of an earlier run, each from its own."""
    first = box.call(*box.train("--experts", "both", epochs=1))
    assert first.returncode == 0, first.stderr
    done = box.call(*box.train("--network-weights", box.run().name, "--title", "u", epochs=1))
    assert done.returncode == 0, done.stderr
    (result,) = [json.loads(line) for line in done.stdout.splitlines() if '"event": "result"' in line]
    for expert, name in ((Expert.HIGH, "HighNoise"), (Expert.LOW, "LowNoise")):
        log = (Path(result["run_dir"]) / f"train-{expert.value}" / "1" / "output.log").read_text(encoding="utf-8")
        (said,) = [each for each in log.splitlines() if "load network weights from" in each]
        assert f"WAN2.2-{name}_t.safetensors: <All keys matched successfully>" in said

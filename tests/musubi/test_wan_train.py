"""`wan-train` itself with the real trainer: a folder of captioned pictures in, two verified LoRAs out."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from musubi.trainer import SITECUSTOMIZE, SIZES, Trainer, draw_picture, text_of
from support.nvml import GIB, NvmlStub, StubGpu
from wan_train.engine.output import OutputParser, StepRecord
from wan_train.engine.tensors import first_non_finite, read_header

# A GPU for which nothing has to be swapped: block swap needs CUDA.
GPU = StubGpu(name="NVIDIA H100 80GB HBM3", total=80 * GIB, compute_capability=(9, 0))
TASKS = ("t2v", "i2v")
EPOCHS = 4


@pytest.fixture
def workspace(trainer: Trainer, tmp_path: Path) -> Path:
    """A rented box's working directory as the guide leaves it: checkout, its venv and the models inside."""
    checkout = tmp_path / "workspace" / "musubi-tuner"
    checkout.mkdir(parents=True)
    for entry in trainer.repo.iterdir():
        (checkout / entry.name).symlink_to(entry)
    (checkout / "venv").symlink_to(trainer.home / "venv")
    (checkout / "models").symlink_to(trainer.models)
    return checkout.parent


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "my pictures"
    folder.mkdir()
    for number, size in enumerate(SIZES):
        draw_picture(folder / f"p{number}.png", size, seed=number)
        (folder / f"p{number}.txt").write_text(f"a drawing, number {number}", encoding="utf-8")
    return folder


def environment(trainer: Trainer, stub: NvmlStub, home: Path) -> dict[str, str]:
    """This process's own, less what would lead wan-train or the trainer elsewhere."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WAN_TRAIN_", "CUDA_", "HF_", "XDG_", "PYTEST_", "ACCELERATE_"))
    }
    return {
        **kept,
        **stub.env(),
        "HOME": str(home),
        "HF_HOME": str(trainer.hf_home),
        "PYTHONPATH": str(SITECUSTOMIZE),
        "WAN_TRAIN_LEASE_DIR": str(home / "leases"),
    }


def wan_train(*words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "wan-train"
    return subprocess.run(
        [str(program), *words], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("task", TASKS)
def test_pictures_become_two_verified_loras(
    *, trainer: Trainer, workspace: Path, pictures: Path, nvml_stub: NvmlStub, tmp_path: Path, task: str
) -> None:
    nvml_stub.write([GPU, GPU])
    home = tmp_path / "home"
    home.mkdir()
    runs = tmp_path / "runs"

    done = wan_train(
        "train", "--engine", "musubi", "--workspace", str(workspace), "--runs-dir", str(runs),
        "--title", "t", "--author", "a", "--dataset", str(pictures), "--task", task,
        "--epochs", str(EPOCHS), "--save-every", "2", "--resolution", "64x64",
        "--attention", "sdpa", "--no-fp8", "--blocks-to-swap", "0",
        "--yes", "--json", "--", "--mixed_precision=no",
        env=environment(trainer, nvml_stub, home),
    )  # fmt: skip

    assert done.returncode == 0, text_of(done)
    for line in done.stdout.splitlines():
        json.loads(line)
    [run] = [folder for folder in runs.iterdir() if (folder / "plan.json").is_file()]
    prefix = {"t2v": "WAN2.2-", "i2v": "WAN2.2-I2V_"}[task]
    boundary = {"t2v": 875, "i2v": 900}[task]
    timesteps = {f"{prefix}HighNoise_t": f"{boundary},1000", f"{prefix}LowNoise_t": f"0,{boundary}"}
    for name, timestep_range in timesteps.items():
        lora = run / f"{name}.safetensors"
        header = read_header(lora)
        assert first_non_finite(lora, header) is None
        # 4 blocks of 10 modules with lora_down, lora_up and alpha each.
        assert len(header.tensors) == 4 * 10 * 3
        assert header.metadata["modelspec.title"] == name
        assert header.metadata["modelspec.author"] == "a"
        assert header.metadata["modelspec.timestep_range"] == timestep_range
        assert header.metadata["ss_epoch"] == str(EPOCHS)
        assert header.metadata["ss_num_train_items"] == str(len(SIZES))
        # What the user asked to keep on the way.
        read_header(run / f"{name}-000002.safetensors")
    assert [losses_finite(log) for log in training_logs(run)] == [True, True]


def training_logs(run: Path) -> list[Path]:
    return [log for log in sorted(run.rglob("output.log")) if b"running training" in log.read_bytes()]


def losses_finite(log: Path) -> bool:
    parser = OutputParser()
    records = [*parser.feed(log.read_bytes()), *parser.finish()]
    losses = [record.loss for record in records if isinstance(record, StepRecord) and record.loss is not None]
    return len(losses) > EPOCHS * len(SIZES) and all(math.isfinite(loss) for loss in losses)

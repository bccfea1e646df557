"""A real driver and a real GPU: what the stub is a stand-in for. Opt-in by WAN_TRAIN_TEST_GPU=1.

The CUDA tests use torch from the Python named by WAN_TRAIN_TEST_TORCH_PYTHON, else from this one. They
allocate 2 GiB on a GPU that is free.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from wan_train.gpu.choose import choose
from wan_train.gpu.free import is_free, observe, why_busy
from wan_train.gpu.leases import LeaseHolder, LeaseRoom
from wan_train.gpu.model import Gpu
from wan_train.gpu.probe import NvmlProbe

pytestmark = pytest.mark.skipif(
    os.environ.get("WAN_TRAIN_TEST_GPU") != "1", reason="needs a GPU; opt in with WAN_TRAIN_TEST_GPU=1"
)

GIB = 1024**3
TORCH_PYTHON = os.environ.get("WAN_TRAIN_TEST_TORCH_PYTHON", sys.executable)
ALLOCATES = """
import json, sys, torch
held = torch.ones(2 * 1024**3, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
uuid = str(torch.cuda.get_device_properties(0).uuid)
print(json.dumps({"count": torch.cuda.device_count(), "uuid": uuid}), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def probe() -> Iterator[NvmlProbe]:
    with closing(NvmlProbe()) as probe:
        yield probe


@pytest.fixture
def free_gpu(probe: NvmlProbe) -> Gpu:
    reading = probe.read()
    counts = observe(observe({}, reading), probe.read())
    for gpu in choose(reading, None, os.environ.get("CUDA_VISIBLE_DEVICES")):
        if is_free(counts, gpu.uuid):
            return gpu
    pytest.skip("no GPU of this box is free")


@contextmanager
def trainer(gpu: Gpu, pass_fds: tuple[int, ...] = ()) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    """A process that holds 2 GiB on the GPU, and what it says of the GPU that it sees."""
    if subprocess.run([TORCH_PYTHON, "-c", "import torch"], check=False, capture_output=True).returncode:
        pytest.skip(f"{TORCH_PYTHON} has no torch; name one that has in WAN_TRAIN_TEST_TORCH_PYTHON")
    with subprocess.Popen(
        [TORCH_PYTHON, "-c", ALLOCATES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu.uuid},
        pass_fds=pass_fds,
    ) as child:
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            assert line, "the CUDA process ended before it held memory"
            yield child, json.loads(line)
        finally:
            child.kill()


def test_the_reading_is_sane(probe: NvmlProbe) -> None:
    reading = probe.read()
    assert reading.driver
    assert reading.gpus
    for gpu in reading.gpus:
        assert gpu.name
        assert gpu.uuid.startswith("GPU-")
        assert 0 <= gpu.used_bytes < gpu.total_bytes
        assert gpu.utilization is None or 0 <= gpu.utilization <= 100
        assert gpu.temperature is None or 0 < gpu.temperature < 120
        assert gpu.compute_capability is not None
        assert gpu.compute_capability >= (5, 0)


def test_memory_in_use_is_seen_and_its_end_is_seen(probe: NvmlProbe, free_gpu: Gpu) -> None:
    def now() -> Gpu:
        return next(gpu for gpu in probe.read().gpus if gpu.uuid == free_gpu.uuid)

    with trainer(free_gpu):
        busy = now()
        assert busy.used_bytes - free_gpu.used_bytes >= 2 * GIB
        assert why_busy(busy) is not None
        assert "GB in use" in (why_busy(busy) or "")
    while why_busy(now()) is not None:  # the driver clears up after a killed process in its own time
        time.sleep(0.05)


def test_a_leased_gpu_is_the_one_that_the_trainer_gets(free_gpu: Gpu, tmp_path: Path) -> None:
    room = LeaseRoom(tmp_path / "leases")
    lease = room.try_take(free_gpu.uuid, LeaseHolder(pid=os.getpid(), run_id="real", step="train-high"))
    assert lease is not None
    with trainer(free_gpu, pass_fds=(lease.fileno(),)) as (child, sees):
        lease.release()
        assert sees["count"] == 1
        assert free_gpu.uuid.removeprefix("GPU-") in str(sees["uuid"])
        assert room.try_take(free_gpu.uuid, LeaseHolder()) is None
        child.kill()
        child.wait()
        assert room.holder(free_gpu.uuid) is None


def test_tune_measures_the_guides_settings(free_gpu: Gpu, tmp_path: Path) -> None:
    """On a provisioned box: WAN_TRAIN_TEST_WORKSPACE names its workspace."""
    workspace = os.environ.get("WAN_TRAIN_TEST_WORKSPACE")
    if workspace is None:
        pytest.skip("name a provisioned workspace in WAN_TRAIN_TEST_WORKSPACE")
    program = Path(sys.executable).with_name("wan-train")
    done = subprocess.run(
        [program, "tune", "--json", "--workspace", workspace, "--gpus", free_gpu.uuid, "--minutes", "1"],
        env=os.environ | {"XDG_DATA_HOME": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    guide = json.loads(done.stdout.splitlines()[-1])["rows"][0]
    assert guide["outcome"] in {"measured", "out_of_memory"}
    assert guide["card"] == free_gpu.name
    if guide["outcome"] == "measured":
        assert guide["steps_timed"] == 15
        assert guide["seconds_per_step"] > 0
        assert GIB < guide["peak_bytes"] <= free_gpu.total_bytes

"""Every GPU tried by the trainer's own Python: what is remembered, and what is never touched."""

from __future__ import annotations

import importlib.util
import json
import os
import threading
from pathlib import Path

import pytest

from support import forkserver
from support.doctor_places import GIB, card_5090, facts_of, gpu, gpus_of, guide_build
from wan_train.base.errors import NotReadyError
from wan_train.gpu.leases import LeaseHolder, LeaseRoom
from wan_train.gpu.model import GpuReading
from wan_train.provision.driver_checks import GpuFacts, recipe_for
from wan_train.provision.gpu_check import CHILD, GpuCheck
from wan_train.provision.status_table import Phase, Row, StatusTable
from wan_train.provision.steps import State
from wan_train.provision.work import Work
from wan_train.recipe.terms import Task

# Stands in for the trainer's Python: notes how it was called, then does what the file beside it says.
STAND_IN = """#!/bin/sh
folder="$(dirname "$0")"
echo "$CUDA_VISIBLE_DEVICES $4 $5 $6" >> "$folder/calls"
if [ -f "$folder/fails" ]; then cat "$folder/fails" >&2; exit 1; fi
printf '{"torch": "2.7.0+cu128", "cuda": "12.8", "attention": ["sdpa", "xformers"]}' > "$3"
"""


class Box:
    """A trainer's environment, leases and a folder for records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "venv/bin/python"
        self.python.parent.mkdir(parents=True)
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)
        self.packages = folder / "venv/lib/python3.11/site-packages"
        for name in ("torch-2.7.0.dist-info", "xformers-0.0.30.dist-info", "xformers"):
            (self.packages / name).mkdir(parents=True)
        (self.packages / "xformers/__init__.py").touch()
        self.room = LeaseRoom(folder / "leases")

    def kernel(self, facts: GpuFacts) -> GpuCheck:
        return GpuCheck(
            python=self.python,
            folder=self.folder / "records",
            facts=facts,
            room=self.room,
            recipe=recipe_for((Task.T2V,)),
        )

    def apply(self, kernel: GpuCheck) -> None:
        table = StatusTable()
        table.add(Row(id="kernel", title="CUDA", phase=Phase.RUNNING))
        lock = os.open(os.devnull, os.O_RDONLY)
        log = self.folder / "logs/kernel.log"
        try:
            kernel.apply(Work(step="kernel", table=table, log=log, lock=lock, ended=threading.Event()))
        finally:
            os.close(lock)

    def calls(self) -> list[str]:
        path = self.python.parent / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def test_every_gpu_is_tried_once_by_its_uuid_with_the_attention_that_it_will_use(box: Box) -> None:
    kernel = box.kernel(facts_of(gpu(0), card_5090(1)))
    assert kernel.check().state is State.UNVERIFIED
    box.apply(kernel)
    assert box.calls() == ["GPU-0 cuda sdpa xformers", "GPU-1 cuda sdpa "]
    found = kernel.check()
    assert found.state is State.READY
    assert "GPU 0: torch 2.7.0+cu128, sdpa and xformers work" in found.detail
    assert "GPU 1: torch 2.7.0+cu128, sdpa work" in found.detail
    box.apply(kernel)
    assert len(box.calls()) == 2


def test_another_driver_another_torch_or_another_gpu_has_to_be_tried_anew(box: Box) -> None:
    box.apply(box.kernel(facts_of(gpu(0))))
    assert box.kernel(facts_of(gpu(0))).check().state is State.READY
    assert box.kernel(facts_of(gpu(0), driver="580.1")).check().state is State.UNVERIFIED
    assert box.kernel(facts_of(gpu(0, uuid="GPU-another"))).check().state is State.UNVERIFIED
    (box.packages / "torch-2.7.0.dist-info").rename(box.packages / "torch-2.8.0.dist-info")
    assert box.kernel(facts_of(gpu(0))).check().state is State.UNVERIFIED


def test_a_torn_record_counts_for_nothing(box: Box) -> None:
    kernel = box.kernel(facts_of(gpu(0)))
    box.apply(kernel)
    for text in ("", "[]", '{"gpus": []}', '{"basis": 1}'):
        (box.folder / "records/kernel.json").write_text(text)
        assert kernel.check().state is State.UNVERIFIED


def test_a_gpu_at_work_is_never_touched(box: Box) -> None:
    facts = facts_of(gpu(0, used_bytes=20 * GIB), gpu(1))
    with box.room.try_take("GPU-1", LeaseHolder(run_id="20261122-141500-cat")) or pytest.fail("the lease is free"):
        kernel = box.kernel(facts)
        found = kernel.check()
        assert found.state is State.WARNING
        assert "20261122-141500-cat" in found.detail
        assert "20.0 of 24.0 GiB in use" in found.detail
        box.apply(kernel)
    assert box.calls() == []
    assert box.kernel(facts).check().state is State.UNVERIFIED  # the second one is free again


def test_a_gpu_that_gets_busy_meanwhile_is_left_alone_and_its_lease_given_back(box: Box) -> None:
    quiet, busy = gpu(0), gpu(0, used_bytes=20 * GIB)
    # The look at the beginning, then the first of the two looks that a free GPU needs.
    readings = [GpuReading(gpus=(each,), driver="575.57.08") for each in (quiet, quiet, busy)]
    facts = GpuFacts(gpus=gpus_of(*readings), build=guide_build(), needed=True, environ={})
    kernel = box.kernel(facts)
    box.apply(kernel)
    assert box.calls() == []
    assert box.room.holder("GPU-0") is None
    assert kernel.check().state is State.WARNING  # no failure of the provision


def test_a_failure_names_gpu_cause_and_advice_and_is_remembered(box: Box) -> None:
    fails = box.python.parent / "fails"
    fails.write_text("Traceback\nRuntimeError: CUDA error: no kernel image is available for execution on the device\n")
    kernel = box.kernel(facts_of(gpu(0), gpu(1)))
    with pytest.raises(NotReadyError, match="GPU 0 RTX 4090") as caught:
        box.apply(kernel)
    assert "GPU 1 RTX 4090" in caught.value.message
    assert "no kernels for this GPU" in caught.value.message
    assert "cu128" in (caught.value.hint or "")
    found = kernel.check()
    assert found.state is State.MISSING
    assert "GPU 0 failed its test" in found.detail
    fails.unlink()
    box.apply(kernel)
    assert kernel.check().state is State.READY


def test_an_unknown_failure_of_xformers_leads_to_sdpa(box: Box) -> None:
    (box.python.parent / "fails").write_text("NotImplementedError: No operator found\n")
    with pytest.raises(NotReadyError, match="No operator found") as caught:
        box.apply(box.kernel(facts_of(gpu(0))))
    assert "--attention sdpa" in (caught.value.hint or "")


def test_without_gpu_or_environment_nothing_is_claimed(box: Box) -> None:
    assert box.kernel(facts_of()).check().state is State.UNTESTED
    box.python.unlink()
    assert box.kernel(facts_of(gpu(0))).check().state is State.MISSING


SEVERAL = """
import json, sys
outcomes = []
for kinds, text in json.load(open(sys.argv[2])):
    sys.argv = ["-c", sys.argv[1], "cpu", *kinds]
    try:
        exec(compile(text, "child", "exec"), {"__name__": "__main__"})
        outcomes.append("fine")
    except (SystemExit, ImportError) as error:
        outcomes.append(str(error))
print(json.dumps(outcomes))
"""


def test_the_childs_text_passes_right_numbers_and_nothing_else(tmp_path: Path) -> None:
    """Here with the rehearsal's torch and on the CPU; all in one process, since importing torch takes seconds."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs the [rehearsal] extra")
    text = CHILD.read_text()
    changes = [
        ("left.to(device, dtype) @", "(left + 1).to(device, dtype) @"),
        ("_product_attention(query,", "_product_attention(-query,"),
        (".pow(2).sum()", ".mul(float('inf')).sum()"),
    ]
    assert all(text.count(right) == 1 for right, _ in changes)
    tries = [(["sdpa"], text), *((["sdpa"], text.replace(*change)) for change in changes), (["sdpa", "flash"], text)]
    (tmp_path / "several.py").write_text(SEVERAL)
    (tmp_path / "tries.json").write_text(json.dumps(tries))
    done = forkserver.run(
        [str(tmp_path / "answer.json"), str(tmp_path / "tries.json")],
        env=os.environ,
        cwd=tmp_path,
        script=tmp_path / "several.py",
        loaded=forkserver.REHEARSAL,
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert outcomes[0] == "fine"
    assert "the product of two matrices" in outcomes[1]
    assert "gives wrong numbers" in outcomes[2]
    assert "gradients that are not finite" in outcomes[3]
    assert outcomes[4] == "No module named 'flash_attn'"
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert (answer["attention"], bool(answer["torch"])) == (["sdpa"], True)

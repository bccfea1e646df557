"""Whether an attempt succeeded, judged by real files."""

from __future__ import annotations

import json
import signal
import struct
from pathlib import Path

import pytest

from support.runs import make_plan
from wan_train.engine.failures import Cause, Diagnosis
from wan_train.run.directory import AttemptDirectory
from wan_train.run.events import Exit, Exited, Lost, Signaled
from wan_train.run.outcome import judge
from wan_train.run.plan import Plan

NAN = {"F64": b"\0" * 6 + b"\xf8\x7f", "F32": b"\0\0\xc0\x7f", "F16": b"\0\x7e", "BF16": b"\xc0\x7f"}
SAMPLES = Path(__file__).parents[2] / "contract" / "samples"


def tensors(path: Path, dtype: str = "F32", raw: bytes = struct.pack("<4f", 1, -2, 0, 1e-40)) -> Path:
    width = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}[dtype]
    entry = {"dtype": dtype, "shape": [len(raw) // width], "data_offsets": [0, len(raw)]}
    header = json.dumps({"lora_unet_blocks_0.lora_up.weight": entry}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw)
    return path


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(run_dir=tmp_path / "run")


def judged(
    plan: Plan,
    step: str,
    *,
    lora: Path | None = None,
    ended: Exit | None = None,
    log: str = "",
    out_of_ram: bool = False,
) -> Diagnosis | None:
    attempt = AttemptDirectory(plan.run_dir / step / "1")
    attempt.output.mkdir(parents=True, exist_ok=True)
    attempt.log.write_text(log, encoding="utf-8")
    return judge(
        plan.step(step),
        attempt,
        ended or Exited(code=0),
        final_lora=lora or attempt.output / "lora.safetensors",
        out_of_ram=out_of_ram,
    )


class TestLoras:
    def test_a_whole_one(self, plan: Plan, tmp_path: Path) -> None:
        assert judged(plan, "train-high", lora=tensors(tmp_path / "a.safetensors")) is None

    @pytest.mark.parametrize("dtype", list(NAN))
    def test_numbers_that_are_none(self, plan: Plan, tmp_path: Path, dtype: str) -> None:
        lora = tensors(tmp_path / "a.safetensors", dtype, b"\0" * len(NAN[dtype]) * 5 + NAN[dtype])
        found = judged(plan, "train-high", lora=lora)
        assert found is not None
        assert found.cause is Cause.NAN_LOSS
        assert found.evidence is not None
        assert "lora_unet_blocks_0" in found.evidence

    @pytest.mark.parametrize("part", [0, 1, 8, 40, -1])
    def test_a_cut_one(self, plan: Plan, tmp_path: Path, part: int) -> None:
        lora = tensors(tmp_path / "a.safetensors")
        lora.write_bytes(lora.read_bytes()[:part])
        found = judged(plan, "train-high", lora=lora)
        assert found is not None
        assert "incomplete" in found.meaning

    def test_none_at_all(self, plan: Plan) -> None:
        found = judged(plan, "train-high")
        assert found is not None
        assert "left no LoRA" in found.meaning

    def test_an_empty_one(self, plan: Plan, tmp_path: Path) -> None:
        lora = tmp_path / "a.safetensors"
        lora.write_bytes((2).to_bytes(8, "little") + b"{}")
        found = judged(plan, "train-high", lora=lora)
        assert found is not None
        assert "empty" in found.meaning


class TestEnds:
    @pytest.mark.parametrize("step", ["train-high", "cache-text"])
    def test_an_error_is_explained_by_the_log(self, plan: Plan, step: str) -> None:
        log = (SAMPLES / "d0a1930" / "train-no-cache.log").read_text(encoding="utf-8")
        found = judged(plan, step, ended=Exited(code=1), log=log)
        assert found is not None
        assert found.cause is Cause.BAD_INPUT

    def test_an_error_without_words(self, plan: Plan) -> None:
        found = judged(plan, "train-high", ended=Exited(code=3))
        assert found is not None
        assert (found.cause, found.evidence) == (Cause.UNKNOWN, "exit code 3")

    def test_a_good_file_does_not_hide_an_error(self, plan: Plan, tmp_path: Path) -> None:
        lora = tensors(tmp_path / "a.safetensors")
        assert judged(plan, "train-high", lora=lora, ended=Exited(code=1)) is not None

    @pytest.mark.parametrize(
        ("number", "out_of_ram", "cause"),
        [
            (signal.SIGKILL, True, Cause.HOST_OUT_OF_MEMORY),
            (signal.SIGKILL, False, Cause.INTERRUPTED),
            (signal.SIGSEGV, True, Cause.CRASHED),
            (200, False, Cause.INTERRUPTED),
        ],
    )
    def test_signals(self, plan: Plan, number: int, out_of_ram: bool, cause: Cause) -> None:
        found = judged(plan, "train-high", ended=Signaled(signal=number), out_of_ram=out_of_ram)
        assert found is not None
        assert found.cause is cause

    def test_a_trainer_that_vanished_is_judged_by_its_files(self, plan: Plan, tmp_path: Path) -> None:
        lost = Lost(reason="the machine went down")
        found = judged(plan, "train-high", ended=lost)
        assert found is not None
        assert found.cause is Cause.LOST
        assert judged(plan, "train-high", ended=lost, lora=tensors(tmp_path / "a.safetensors")) is None

"""The whole pipeline on the embedded trainer, as a script would call it."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest

from support.nvml import NvmlStub
from support.trainers import ScriptedBox
from wan_train.engine.tensors import first_non_finite, read_header

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the [rehearsal] extra")


@pytest.mark.timeout(300)  # torch starts four times, also on a machine that is busy
def test_a_script_gets_two_marked_loras_and_only_json(scripted_box: ScriptedBox, nvml_stub: NvmlStub) -> None:
    nvml_stub.write([], init_error=9)
    prompts = scripted_box.dataset.parent / "prompts.txt"
    prompts.write_text("a red fox --w 64 --h 64 --f 1 --s 2\n", encoding="utf-8")
    words = ["--engine", "rehearsal", "--epochs", "2", "--resolution", "64x64", "--rank", "4", "--json"]
    words += ["--sample-prompts", str(prompts)]
    done = scripted_box.run_cli(*scripted_box.train_words(*words, title="t"), timeout=280, WAN_TRAIN_REPORT="at-end")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1]["event"] == "result"
    report = json.loads((scripted_box.run() / "report.json").read_text(encoding="utf-8"))
    assert [(each["steps"], each["loss_source"]) for each in report["experts"]] == [(6, "tensorboard")] * 2
    assert all(loss > 0 and rate > 0 for each in report["experts"] for _, loss, rate in each["points"])
    # One loss at the end, whoever tells it.
    losses = [each["final_loss"] for each in report["experts"]]
    assert [each["loss"] for each in lines[-1]["steps"] if each["expert"]] == losses
    assert [each["curve"]["smoothed"] for each in lines[-1]["steps"] if each["expert"]] == losses
    assert "Its LoRAs are no real ones" in (scripted_box.run() / "report.html").read_text(encoding="utf-8")
    loras = sorted(scripted_box.run().glob("*.safetensors"))
    assert len(loras) == 2
    for path in loras:
        header = read_header(path)
        assert "REHEARSAL" in path.name
        assert any("REHEARSAL" in value for value in header.metadata.values())
        assert first_non_finite(path, header) is None
    compare_with_the_document(scripted_box.run())


@pytest.mark.timeout(300)  # torch starts four times, also on a machine that is busy
def test_a_script_of_a_rehearsal_trains(scripted_box: ScriptedBox, nvml_stub: NvmlStub) -> None:
    nvml_stub.write([], init_error=9)
    script = scripted_box.root / "train.sh"
    words = ["--engine", "rehearsal", "--epochs", "1", "--resolution", "64x64", "--rank", "4", "--dry-run"]
    done = scripted_box.run_cli(*scripted_box.train_words(*words, "--script", str(script), title="t"))
    assert done.returncode == 0, done.stderr
    ran = subprocess.run(["sh", str(script)], env=scripted_box.env(), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    loras = sorted(path for path in scripted_box.root.rglob("REHEARSAL_*.safetensors"))
    assert [first_non_finite(path, read_header(path)) for path in loras] == [None, None]


DOCUMENT = Path(__file__).parents[2] / "docs" / "run-directory.md"
SOMETIMES = {
    "stop.json", "STEP/N/stall.txt", "gpus.jsonl", "items-N.jsonl", "sample-pictures/NN.…",
    "WAN2.2-…_TITLE-000020.safetensors",
}  # fmt: skip
"""Rows of the document that an undisturbed rehearsal gives no file for: CPU slots have no readings."""


def compare_with_the_document(run: Path) -> None:
    """Every file of a run has its row in docs/run-directory.md, and every row its file."""
    table = DOCUMENT.read_text(encoding="utf-8").partition("## Files")[2].partition("## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(rows) > 10
    files = [str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()]
    seen = {row: [file for file in files if re.match(pattern_of(row), file)] for row in rows}
    assert {row for row, found in seen.items() if not found} <= SOMETIMES
    assert set(files) == {file for found in seen.values() for file in found}


def pattern_of(row: str) -> str:
    """`STEP/N/output/` stands for all that is below it in any attempt."""
    words = {"STEP": "[a-z-]+", "N": "[0-9]+", "…_TITLE": ".+_t"}
    pattern = re.sub(r"STEP|\bN\b|…_TITLE", lambda found: words[found[0]], re.escape(row).replace("\\…", "…"))
    return f"(?:REHEARSAL_)?{pattern}{'' if row.endswith('/') else '$'}"

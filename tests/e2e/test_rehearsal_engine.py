"""The whole pipeline on the embedded trainer, as a script would call it."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.kills import kill
from support.nvml import NvmlStub, StubGpu
from support.trainers import ScriptedBox
from wan_train.engine.tensors import first_non_finite, read_header
from wan_train.recipe.terms import Expert
from wan_train.run.directory import RunDirectory
from wan_train.run.events import JournalReader
from wan_train.run.samples import samples_of
from wan_train.run.state import fold_all

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the [rehearsal] extra")


PROMPTS = "a red fox --w 64 --h 64 --f 1 --s 2 --d 7\nI stand in the rain --w 32 --h 32 --f 1 --s 2\n"
EPOCHS, SAMPLE_EVERY = 18, 6


@pytest.mark.timeout(600)  # torch starts a dozen times, also on a machine that is busy
def test_a_rehearsal_from_a_script_over_a_killed_trainer(scripted_box: ScriptedBox, nvml_stub: NvmlStub) -> None:
    """One box after another use of it, since every program here costs the start of torch."""
    box = scripted_box
    nvml_stub.write([], init_error=9)
    prompts = box.dataset.parent / "prompts.txt"
    prompts.write_text(PROMPTS, encoding="utf-8")
    words = ["--engine", "rehearsal", "--epochs", str(EPOCHS), "--resolution", "64x64", "--rank", "4"]
    words += ["--sample-prompts", str(prompts), "--sample-every", str(SAMPLE_EVERY), "--save-every", "2"]
    started = box.run_cli(*box.train_words(*words, "--detach", title="t"), WAN_TRAIN_REPORT="at-end")
    assert started.returncode == 0, started.stderr
    box.wait_for_event("state_saved", step="train-high", attempt=1)
    kill(pid for pid, line in box.trainers().items() if "train-high" in line and "warden.py" not in line)
    done = box.run_cli("attach", "--json", timeout=400)
    assert done.returncode == 0, done.stderr
    run = box.run()
    box.wait_for((run / "report.html").exists, what="the report")

    check_results(box, [json.loads(line) for line in done.stdout.splitlines()])
    check_samples(box)
    compare_with_the_document(run)
    check_the_script(box)
    check_caches_of_both_kinds(box)


def check_results(box: ScriptedBox, lines: list[dict[str, Any]]) -> None:
    """Two whole LoRAs, marked as a rehearsal's, and the same losses wherever they are reported."""
    assert lines[-1]["event"] == "result"
    report = json.loads((box.run() / "report.json").read_text(encoding="utf-8"))
    high, low = report["experts"]
    assert [each["loss_source"] for each in (high, low)] == ["tensorboard"] * 2
    assert low["steps"] == 3 * EPOCHS
    assert 3 * EPOCHS - 6 <= high["steps"] <= 3 * EPOCHS  # what its killed trainer had not yet written is unknown
    assert all(loss > 0 and rate > 0 for _, loss, rate in low["points"])
    # A killed trainer may have written the loss of its last step and not the learning rate.
    assert sum(rate is None for _, _, rate in high["points"]) <= 1
    assert all(loss > 0 and (rate is None or rate > 0) for _, loss, rate in high["points"])
    losses = [each["final_loss"] for each in report["experts"]]
    assert [each["loss"] for each in lines[-1]["steps"] if each["expert"]] == losses
    assert [each["curve"]["smoothed"] for each in lines[-1]["steps"] if each["expert"]] == losses
    assert "REHEARSAL" in (box.run() / "report.html").read_text(encoding="utf-8")
    loras = [path for path in box.run().glob("*.safetensors") if "-0000" not in path.name]
    assert len(loras) == 2
    for path in loras:
        header = read_header(path)
        assert "REHEARSAL" in path.name
        assert any("REHEARSAL" in value for value in header.metadata.values())
        assert first_non_finite(path, header) is None


def check_samples(box: ScriptedBox) -> None:
    """Real pictures of the epochs that were asked for, counted over both attempts."""
    first, second = (event for event in box.events("step_started") if event["step"] == "train-high")
    before = second["epochs_before"]
    assert first["attempt"] == 1
    assert before > 0
    run = RunDirectory(box.run())
    plan = run.read_plan()
    found = samples_of(run, plan, fold_all(plan, JournalReader(run.events).new_events()))
    epochs = {
        expert: sorted({(sample.epoch, sample.prompt_index) for sample in found if sample.expert is expert})
        for expert in Expert
    }
    of_high = [*range(SAMPLE_EVERY, before + 1, SAMPLE_EVERY), *range(before + SAMPLE_EVERY, EPOCHS + 1, SAMPLE_EVERY)]
    of_low = range(SAMPLE_EVERY, EPOCHS + 1, SAMPLE_EVERY)
    assert epochs[Expert.HIGH] == [(epoch, prompt) for epoch in of_high for prompt in (0, 1)]
    assert epochs[Expert.LOW] == [(epoch, prompt) for epoch in of_low for prompt in (0, 1)]
    for sample in found:
        with Image.open(sample.path) as image:
            image.load()
            assert image.size == (sample.width, sample.height)
    fox = [sample.path.read_bytes() for sample in found if sample.prompt == "a red fox"]
    assert len(set(fox)) == len(fox)  # each expert draws another picture after each round


def check_the_script(box: ScriptedBox) -> None:
    """`--script` writes what trains without wan-train."""
    script = box.root / "train.sh"
    words = ["--engine", "rehearsal", "--epochs", "1", "--resolution", "64x64", "--rank", "4", "--experts", "low"]
    done = box.run_cli(*box.train_words(*words, "--dry-run", "--script", str(script), title="s"))
    assert done.returncode == 0, done.stderr
    ran = subprocess.run(["sh", str(script)], env=box.env(), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    (lora,) = (path for path in box.root.rglob("REHEARSAL_*_s.safetensors"))
    assert first_non_finite(lora, read_header(lora)) is None


def check_caches_of_both_kinds(box: ScriptedBox) -> None:
    """A rehearsal and a real run of one dataset leave each other's caches alone."""
    first = caches(box.dataset / "cache")
    assert {Path(name).parts[0] for name in first} == {"rehearsal-float32"}
    box.nvml.write([StubGpu(), StubGpu()])
    done = box.train("--experts", "high", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    both = caches(box.dataset / "cache")
    assert len(both) == 2 * len(first)
    assert first.items() <= both.items()

    words = ["rehearse", str(box.dataset), "--epochs", "1", "--resolution", "64x64"]
    done = box.run_cli(*words, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert caches(box.dataset / "cache") == both
    cleared = [event for run in box.run_directories() for event in box.events("caches_cleared", run=run)]
    assert sum(number for event in cleared for number in event["removed"].values()) == 0
    last = box.run_directories()[-1]
    assert [event["step"] for event in box.events("caches_up_to_date", run=last)] == ["cache-latents", "cache-text"]


def caches(folder: Path) -> dict[str, int]:
    """Every cache below a folder, with the time it was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*_wan*.safetensors")}


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
    words = {"STEP": "[a-z-]+", "N": "[0-9]+", "…_TITLE": ".+_t", "000020": "[0-9]{6}"}
    pattern = re.sub(r"STEP|\bN\b|…_TITLE|000020", lambda found: words[found[0]], re.escape(row).replace("\\…", "…"))
    return f"(?:REHEARSAL_)?{pattern}{'' if row.endswith('/') else '$'}"

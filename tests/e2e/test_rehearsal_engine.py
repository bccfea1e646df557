"""The whole pipeline on the embedded trainer, as a script would call it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.kills import kill
from support.nvml import NvmlStub, StubGpu
from support.trainers import ScriptedBox
from wan_train.engine.tensors import first_non_finite, read_header
from wan_train.gpu.leases import Lease, LeaseHolder, LeaseRoom
from wan_train.gpu.probe import CpuSlots
from wan_train.preview.model import BASE, PreviewDirectory, drawn, previews_of
from wan_train.recipe.terms import Expert
from wan_train.run.directory import RunDirectory
from wan_train.run.events import JournalReader
from wan_train.run.samples import samples_of
from wan_train.run.state import fold_all

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the [rehearsal] extra")


PREVIEWS = "a red fox --w 64 --h 32 --s 4\na clip --w 32 --h 32 --f 5 --s 4\n"
PROMPTS = "a red fox --w 64 --h 64 --f 1 --s 2 --d 7\nI stand in the rain --w 32 --h 32 --f 1 --s 2\n"
EPOCHS, SAMPLE_EVERY = 10, 4


@pytest.mark.timeout(600)  # torch starts a dozen times, also on a machine that is busy
def test_a_rehearsal_from_a_script_over_a_killed_trainer(scripted_box: ScriptedBox, nvml_stub: NvmlStub) -> None:
    """One run is looked at from all sides, since every program of it costs the start of torch."""
    box = scripted_box
    assert box.train("--experts", "high", "--epochs", "1").returncode == 0
    nvml_stub.write([], init_error=9)
    samples, previews = box.root / "prompts.txt", box.root / "preview.txt"
    samples.write_text(PROMPTS, encoding="utf-8")
    previews.write_text(PREVIEWS, encoding="utf-8")
    words = ["--epochs", str(EPOCHS), "--resolution", "64x64", "--title", "t", "--sample-prompts", str(samples)]
    words += ["--sample-every", str(SAMPLE_EVERY), "--preview-prompts", str(previews), "--detach"]
    started = box.run_cli("rehearse", str(box.dataset), *words, WAN_TRAIN_REPORT="at-end")
    assert started.returncode == 0, started.stderr
    run = box.run_directories()[-1]
    box.wait_for(
        lambda: any(event["step"] == "train-high" for event in box.events("state_saved", run=run)), what="a state"
    )
    kill(pid for pid, line in box.trainers().items() if "train-high" in line and "warden.py" not in line)
    done = box.run_cli("attach", "--json", timeout=400)
    assert done.returncode == 0, done.stderr
    box.wait_for((run / "report.json").exists, what="the report, which follows the preview")

    check_results(run, [json.loads(line) for line in done.stdout.splitlines()])
    check_samples(box, run)
    assert box.run_cli("pick", run.name, str(EPOCHS)).returncode == 0
    compare_with_the_document(run)
    check_caches_of_both_kinds(box, run)
    check_previews(box, run)


def check_results(run: Path, lines: list[dict[str, Any]]) -> None:
    """Two whole LoRAs, marked as a rehearsal's, and the same losses wherever they are reported."""
    assert lines[-1]["event"] == "result"
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
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
    assert "REHEARSAL" in (run / "report.html").read_text(encoding="utf-8")
    loras = [path for path in run.glob("*.safetensors") if "-0000" not in path.name]
    assert len(loras) == 2
    for path in loras:
        header = read_header(path)
        assert "REHEARSAL" in path.name
        assert any("REHEARSAL" in value for value in header.metadata.values())
        assert first_non_finite(path, header) is None


def check_samples(box: ScriptedBox, directory: Path) -> None:
    """Real pictures of the epochs that were asked for, counted over both attempts."""
    first, second = (event for event in box.events("step_started", run=directory) if event["step"] == "train-high")
    before = second["epochs_before"]
    assert first["attempt"] == 1
    assert before > 0
    run = RunDirectory(directory)
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


def check_caches_of_both_kinds(box: ScriptedBox, run: Path) -> None:
    """A rehearsal and a real run of one dataset leave each other's caches alone."""
    both = caches(box.dataset / "cache")
    of_rehearsal = {name for name in both if Path(name).parts[0] == "rehearsal-float32"}
    assert len(both) == 2 * len(of_rehearsal) == 2 * 6
    box.nvml.write([StubGpu(), StubGpu()])
    done = box.train("--experts", "high", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert caches(box.dataset / "cache") == both
    for each in (run, box.run_directories()[-1]):
        cleared = box.events("caches_cleared", run=each)
        assert sum(number for event in cleared for number in event["removed"].values()) == 0
    last = box.events("caches_up_to_date", run=box.run_directories()[-1])
    assert [event["step"] for event in last] == ["cache-latents", "cache-text"]


def caches(folder: Path) -> dict[str, int]:
    """Every cache below a folder, with the time it was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*_wan*.safetensors")}


def check_previews(box: ScriptedBox, run: Path) -> None:
    """The run was drawn at its end, which a second call sees."""
    (preview,) = previews_of(run)
    assert all_drawn(preview)
    assert preview.sheet.is_file()
    assert len(list(preview.path.glob("*.webp"))) == len(preview.read().rows), "a looping clip for each row"
    words = ["preview", run.name, "--prompts", str(run / "preview-prompts.json"), "--json"]
    again = told(box.run_cli(*words))
    assert again["directory"] == str(preview.path)
    assert (again["sheet"], again["workflow"]) == (str(preview.sheet), None), "no workflow for a rehearsal's LoRAs"
    assert (again["drawn"], again["drawn_now"]) == (again["total"], 0)
    check_a_killed_program(box, run)


def check_a_killed_program(box: ScriptedBox, run: Path) -> None:
    """It waits for a GPU; another call waits for it; the command retries and draws only what was missing.

    Nothing but the kill is in the way.
    """
    prompts = run.parent / "others.txt"
    prompts.write_text("".join(f"fox {n} --w 64 --h 64 --s 60\n" for n in range(3)), encoding="utf-8")
    words = ("preview", run.name, "--prompts", str(prompts), "--epochs", f"{2 * SAMPLE_EVERY},{EPOCHS}")
    with ExitStack() as training:
        for slot in CpuSlots().read().gpus:
            holder = LeaseHolder(pid=os.getpid(), run_id="20261129-cat", step="train-high", since=0.0)
            training.enter_context(held(LeaseRoom(box.leases).try_take(slot.uuid, holder)))
        drawing = box.popen_cli(*words)
        box.wait_for(lambda: "GPU 0 is in use by 20261129-cat" in said(box), what="the wait for a GPU")
        assert not list(run.glob("preview/others-*/work"))
    box.wait_for(lambda: list(run.glob("preview/others-*/work")), what="the drawing's start")
    second = box.popen_cli(*words)
    box.wait_for(lambda: "another preview of this run is drawing" in said(box), what="the wait for the first call")
    box.wait_for(lambda: list(run.glob("preview/others-*/work/latents/*.high")), what="the first latents")
    kill(pid for pid, line in box.trainers().items() if "driver.py" in line and "warden.py" not in line)
    assert drawing.wait() == 0
    assert second.wait() == 0
    (preview,) = (each for each in previews_of(run) if each.path.name.startswith("others"))
    assert all_drawn(preview)
    assert len(preview.read_drawings()) == 2
    assert len(preview.cells.read_text().splitlines()) == 3 * 3, "the second call drew nothing again"
    assert not preview.work.exists()


def held(lease: Lease | None) -> Lease:
    assert lease is not None
    return lease


def said(box: ScriptedBox) -> str:
    """What the commands that still run have printed."""
    return "".join(path.read_text() for path in box.root.glob("cli-*.out"))


def all_drawn(directory: PreviewDirectory) -> bool:
    preview = directory.read()
    names = [row.name for row in preview.rows]
    assert [names[0], names[-1]] == [BASE, str(EPOCHS)]
    return len(drawn(directory, preview)) == len(names) * len(preview.prompts)


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    assert found["event"] == "preview"
    return found


DOCUMENT = Path(__file__).parents[2] / "docs" / "run-directory.md"
SOMETIMES = {
    "stop.json", "STEP/N/stall.txt", "gpus.jsonl", "items-N.jsonl", "sample-pictures/NN.…",
    "WAN2.2-…_TITLE-000020.safetensors", "WAN2.2-…_TITLE_earlier.safetensors", "duties.json", "preview-pictures/NN.…",
    "notices.jsonl", "notices.lock", "uploads.jsonl", "uploads.lock", "guard.json",
}  # fmt: skip
"""Rows of the document that an undisturbed rehearsal gives no file for: CPU slots have no readings."""


def compare_with_the_document(run: Path) -> None:
    """Every file of a run has its row in docs/run-directory.md, and every row its file."""
    table = DOCUMENT.read_text(encoding="utf-8").partition("## Files")[2].partition("## ")[0]
    cells = re.findall(r"^\| (`[^|]+`) \|", table, re.MULTILINE)
    rows = [name for cell in cells for name in re.findall("`([^`]+)`", cell)]
    assert len(rows) > 10
    files = [str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()]
    seen = {row: [file for file in files if re.match(pattern_of(row), file)] for row in rows}
    assert {row for row, found in seen.items() if not found} <= SOMETIMES
    assert set(files) == {file for found in seen.values() for file in found}


def pattern_of(row: str) -> str:
    """`STEP/N/output/` stands for all that is below it in any attempt."""
    words = {
        "STEP": "[a-z-]+",
        "NAME": "[^/]+",
        "N": "[0-9]+",
        "…_TITLE": ".+_t",
        "000020": "[0-9]{6}",
        "-60": "-[0-9]+",
    }
    pattern = re.sub(
        r"STEP|\bN\b|NAME|…_TITLE|000020|-60", lambda found: words[found[0]], re.escape(row).replace("\\…", "…")
    )
    return f"(?:REHEARSAL_)?{pattern}{'' if row.endswith('/') else '$'}"

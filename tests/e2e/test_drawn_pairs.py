"""Both LoRAs drawn together by real processes: at the end of a run, again, and over a killed program."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.kills import kill
from support.nvml import NvmlStub
from support.trainers import ScriptedBox
from wan_train.gpu.leases import Lease, LeaseHolder, LeaseRoom
from wan_train.gpu.probe import CpuSlots
from wan_train.preview.model import BASE, PreviewDirectory, drawn, previews_of

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the [rehearsal] extra")

EPOCHS = 3


@pytest.mark.timeout(600)  # torch starts half a dozen times, also on a machine that is busy
def test_a_rehearsal_is_drawn_at_its_end_and_again_over_a_killed_program(
    scripted_box: ScriptedBox, nvml_stub: NvmlStub
) -> None:
    box = scripted_box
    nvml_stub.write([], init_error=9)
    prompts = box.dataset.parent / "prompts.txt"
    prompts.write_text("a red fox --w 64 --h 32 --s 4\na clip --w 32 --h 32 --f 5 --s 4\n", encoding="utf-8")
    words = ["--engine", "rehearsal", "--epochs", str(EPOCHS), "--resolution", "64x64", "--rank", "4"]
    done = box.run_cli(
        *box.train_words(*words, "--preview-prompts", str(prompts), title="t"), WAN_TRAIN_REPORT="at-end"
    )
    assert done.returncode == 0, done.stderr
    assert "The preview is drawn now" in done.stdout
    run = box.run()
    box.wait_for((run / "report.html").exists, what="the report, which follows the preview")
    (preview,) = previews_of(run)
    assert all_drawn(preview)
    assert preview.sheet.is_file()
    assert len(list(preview.path.glob("*.webp"))) == len(preview.read().rows), "a looping clip for each row"

    again = told(box.run_cli("preview", "--prompts", str(run / "preview-prompts.json"), "--json"))
    assert again["directory"] == str(preview.path)
    assert (again["sheet"], again["workflow"]) == (str(preview.sheet), None), "no workflow for a rehearsal's LoRAs"
    assert (again["drawn"], again["drawn_now"]) == (again["total"], 0)

    check_a_killed_program(box, run)


def check_a_killed_program(box: ScriptedBox, run: Path) -> None:
    """It waits for a GPU; another call waits for it; the command retries and draws only what was missing.

    Nothing but the kill is in the way.
    """
    prompts = run.parent / "others.txt"
    prompts.write_text("".join(f"fox {n} --w 64 --h 64 --s 60\n" for n in range(6)), encoding="utf-8")
    words = ("preview", "--prompts", str(prompts), "--epochs", "1,3")
    with ExitStack() as training:
        for slot in CpuSlots().read().gpus:
            holder = LeaseHolder(pid=os.getpid(), run_id="20261129-cat", step="train-high", since=0.0)
            training.enter_context(held(LeaseRoom(box.leases).try_take(slot.uuid, holder)))
        drawing = box.popen_cli(*words)
        box.wait_for(lambda: "GPU 0 is taken by 20261129-cat" in said(box), what="the wait for a GPU")
        assert not list(run.glob("preview/others-*/work"))
    box.wait_for(lambda: list(run.glob("preview/others-*/work/latents/*.high")), what="the first latents")
    second = box.popen_cli(*words)
    box.wait_for(lambda: "another preview of this run is drawing" in said(box), what="the wait for the first call")
    kill(pid for pid, line in box.trainers().items() if "driver.py" in line and "warden.py" not in line)
    assert drawing.wait() == 0
    assert second.wait() == 0
    (preview,) = (each for each in previews_of(run) if each.path.name.startswith("others"))
    assert all_drawn(preview)
    assert len(preview.read_drawings()) == 2
    assert len(preview.cells.read_text().splitlines()) == 3 * 6, "the second call drew nothing again"
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

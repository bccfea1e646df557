"""Two `wan-train` started at the same moment on one GPU never train at the same time."""

from __future__ import annotations

import os
import subprocess

import pytest

from support.nvml import NvmlStub, StubGpu
from support.trainers import ScriptedBox, SurvivorError

TRIES = int(os.environ.get("WAN_TRAIN_OVERLAP_TRIES", "2"))


@pytest.mark.timeout(60 + 30 * TRIES)
def test_two_at_the_same_moment_never_overlap(
    tmp_path_factory: pytest.TempPathFactory, nvml_library: object, nvml_stub: NvmlStub
) -> None:
    del nvml_library
    for number in range(TRIES):
        nvml_stub.write([StubGpu()])
        box = ScriptedBox(tmp_path_factory.mktemp(f"try{number}") / "box", nvml_stub)
        try:
            both = [
                box.popen_cli(*box.train_words("--epochs", "1", title=title), SCRIPTED_LOAD_SECONDS="0.05")
                for title in ("one", "other")
            ]
            assert [process.wait() for process in both] == [0, 0]
            assert not box.recorded("overlap"), f"try {number + 1}"
            entries = box.recorded("start", "end")
            # Whoever comes second finds the caches of the first.
            assert sorted(entry["place"] for entry in entries[:4]) == ["latents", "latents", "text", "text"]
            assert [entry["what"] for entry in entries[4:]] == ["start", "end"] * 4, f"try {number + 1}"
            times = [entry["at"] for entry in entries]
            assert times == sorted(times)
        finally:
            box.close()


def test_the_younger_run_says_whom_it_waits_for(scripted_box: ScriptedBox) -> None:
    scripted_box.nvml.write([StubGpu()])
    first = scripted_box.popen_cli(*scripted_box.train_words(title="first"), SCRIPTED_STEP_SECONDS="0.2")
    scripted_box.wait_for_record("epoch", place="high")
    second = scripted_box.popen_cli(*scripted_box.train_words(title="second"))
    scripted_box.wait_for(
        lambda: "first" in scripted_box.run_cli("status", "second", "--json").stdout, what="the other run's name"
    )
    assert [first.wait(), second.wait()] == [0, 0]
    assert not scripted_box.recorded("overlap")


def test_a_survivor_fails_the_test_that_left_it(tmp_path_factory: pytest.TempPathFactory, nvml_stub: NvmlStub) -> None:
    """The box's own check can fail."""
    box = ScriptedBox(tmp_path_factory.mktemp("survivor") / "box", nvml_stub)
    run = box.runs / "x"
    run.mkdir(parents=True)
    (run / "plan.json").write_text("{}")
    (run / "events.jsonl").write_text('{"kind": "run_finished"}\n')
    child = subprocess.Popen(["sleep", "60"], env=box.env(WAN_TRAIN_ATTEMPT=str(run / "train-high" / "1")))
    box.wait_for(lambda: box.trainers(run), what="the survivor to be seen")  # its environment comes a moment late
    with pytest.raises(SurvivorError):
        box.close()
    assert child.wait() == -9


def test_two_runs_cache_the_same_into_one_folder_once(scripted_box: ScriptedBox) -> None:
    """With GPUs enough for everything at once: only the folder is shared."""
    scripted_box.nvml.write([StubGpu(), StubGpu(), StubGpu(), StubGpu()])
    both = [
        scripted_box.popen_cli(*scripted_box.train_words("--epochs", "1", title=title), SCRIPTED_CACHE_SECONDS="0.3")
        for title in ("one", "other")
    ]
    assert [process.wait() for process in both] == [0, 0]
    for place in ("latents", "text"):
        entries = [entry["what"] for entry in scripted_box.recorded("start", "end") if entry["place"] == place]
        assert entries == ["start", "end"], place

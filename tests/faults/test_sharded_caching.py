"""Caching split over GPUs: the same files as unsplit, whatever is killed, taken away or changed meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from support.nvml import GIB, StubGpu, uuid_of
from support.trainers import ScriptedBox, make_dataset

COUNT = 12
ONE = ["--experts", "high", "--epochs", "1"]
SPLIT = {"WAN_TRAIN_CACHE_SHARDS": "2"}
SHARDS = {"cache-latents-1", "cache-latents-2", "cache-text-1", "cache-text-2"}
SMALL = StubGpu(total=16 * 1024**3)
"""A GPU that two cachings do not share."""


@pytest.fixture
def box(scripted_box: ScriptedBox) -> ScriptedBox:
    """Two GPUs and twelve pictures."""
    scripted_box.nvml.write([SMALL, SMALL])
    shutil.rmtree(scripted_box.dataset)
    make_dataset(scripted_box.dataset, COUNT)
    return scripted_box


def cache_of(box: ScriptedBox) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (box.dataset / "cache").glob("*.safetensors")}


def made(box: ScriptedBox) -> list[str]:
    return sorted(name for entry in box.recorded("made") for name in entry["names"])


def starts(box: ScriptedBox, place: str) -> list[dict[str, Any]]:
    return [entry for entry in box.recorded("start") if entry["place"] == place]


def trained(box: ScriptedBox) -> set[str]:
    return set(box.recorded("items")[-1]["names"])


def settled(box: ScriptedBox, run: Path | None = None) -> set[str]:
    return {event["step"] for event in box.events("step_succeeded", "caches_up_to_date", run=run)}


def test_shards_make_what_one_program_makes_and_nothing_again(box: ScriptedBox) -> None:
    done = box.train(*ONE, title="whole")
    assert done.returncode == 0, done.stderr
    whole, names = cache_of(box), trained(box)
    shutil.rmtree(box.dataset / "cache")
    box.record.unlink()

    told = " ".join(box.train(*ONE, "--dry-run", SCRIPTED_CACHE_SECONDS="0.1", **SPLIT).stdout.split())
    done = box.train(*ONE, title="split", SCRIPTED_CACHE_SECONDS="0.1", **SPLIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{COUNT} of {COUNT} to make ({COUNT} not cached yet), in 2 parts on as many GPUs" in told
    assert cache_of(box) == whole
    assert trained(box) == names
    assert made(box) == sorted(whole)  # each once
    assert settled(box, box.run_directories()[-1]) >= SHARDS
    # Two at once, on two GPUs, and only then the next two.
    assert len({entry["gpu"] for entry in starts(box, "latents")}) == 2
    order = [(entry["what"], entry["place"]) for entry in box.recorded("start", "end")]
    assert order[:2] == [("start", "latents")] * 2
    box.record.unlink()

    done = box.train(*ONE, title="again", **SPLIT)
    assert done.returncode == 0, done.stderr
    assert [entry["place"] for entry in box.recorded("start")] == ["high"]
    assert {event["step"] for event in box.events("caches_up_to_date", run=box.run_directories()[-1])} == {
        "cache-latents",
        "cache-text",
    }


def test_only_what_is_to_be_made_is_shared_out(box: ScriptedBox) -> None:
    assert box.train(*ONE, title="first").returncode == 0
    box.record.unlink()
    for number in range(4):
        (box.dataset / f"picture{number}.txt").write_text("other words", encoding="utf-8")
    for ending in (".png", ".txt"):
        (box.dataset / f"picture11{ending}").unlink()
    orphans = {path.name for path in (box.dataset / "cache").glob("picture11_*")}
    assert len(orphans) == 2
    done = box.train(*ONE, title="second", **SPLIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert made(box) == [f"picture{number}_wan_te.safetensors" for number in range(4)]
    assert [len(entry["names"]) for entry in box.recorded("made")] == [2, 2]
    run = box.run_directories()[-1]
    assert [event["step"] for event in box.events("caches_up_to_date", run=run)] == ["cache-latents"]
    removed = [event["removed"] for event in box.events("caches_cleared", run=run)]
    assert removed == [{"caption_changed": 2, "no_item": 1}, {"caption_changed": 2}]
    assert not orphans & cache_of(box).keys()
    listed = [json.loads(line) for line in (run / "cache-text-1" / "items-0.jsonl").read_text().splitlines()]
    assert [(Path(one["image_path"]).name, one["caption"]) for one in listed] == [
        ("picture0.png", "other words"),
        ("picture2.png", "other words"),
    ]
    ledger = json.loads((box.dataset / "cache" / ".wan-train-text.json").read_text())
    assert len(ledger["entries"]) == COUNT - 1


def test_a_killed_shard_is_tried_again_and_loses_nothing(box: ScriptedBox) -> None:
    running = box.popen_cli(*box.train_words(*ONE), SCRIPTED_CACHE_SECONDS="0.3", **SPLIT)
    box.wait_for(lambda: len(starts(box, "latents")) == 2, what="both shards")
    victim, other = (entry["pid"] for entry in starts(box, "latents"))
    box.wait_for(lambda: len(cache_of(box)) >= 4, what="some caches")
    os.kill(victim, signal.SIGKILL)
    assert running.wait() == 0
    run = box.run()
    retried = {event["step"] for event in box.events("retry_scheduled")}
    assert len(retried) == 1
    assert retried <= {"cache-latents-1", "cache-latents-2"}
    assert other in {entry["pid"] for entry in box.recorded("end")}
    # What the killed one had finished is not made again: its two attempts together miss at most the file being written.
    second = [event for event in box.events("caches_cleared") if {event["step"]} == retried][1]
    assert 0 < second["make"] < COUNT / 2
    assert trained(box) == {name for name in cache_of(box) if not name.endswith("_te.safetensors")}
    assert len(trained(box)) == COUNT
    assert not [path for path in (run / "cache-latents-1").iterdir() if path.name.endswith(".tmp")]


def test_everything_killed_then_resumed_makes_only_what_is_missing(box: ScriptedBox) -> None:
    running = box.popen_cli(*box.train_words(*ONE), SCRIPTED_CACHE_SECONDS="0.3", **SPLIT)
    box.wait_for(lambda: len(cache_of(box)) >= 5, what="some caches")
    for pid in box.processes():
        if pid != running.pid:
            os.kill(pid, signal.SIGKILL)
    running.kill()
    running.wait()
    before = {name: (box.dataset / "cache" / name).stat().st_mtime_ns for name in cache_of(box)}
    done = box.run_cli("resume", "--detach", **SPLIT)
    assert done.returncode == 0, done.stderr
    assert box.run_cli("attach").returncode == 0
    after = {name: (box.dataset / "cache" / name).stat().st_mtime_ns for name in cache_of(box)}
    assert len(after) == 2 * COUNT
    # At most the two files that were being written are made anew.
    assert sum(after[name] != when for name, when in before.items()) <= 2
    assert settled(box) >= SHARDS
    assert len(trained(box)) == COUNT


def test_with_one_gpu_left_the_shards_take_turns(box: ScriptedBox) -> None:
    box.nvml.write([SMALL, StubGpu(total=16 * 1024**3, used=10 * 1024**3)])
    done = box.train(*ONE, **SPLIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert settled(box) >= SHARDS
    assert [entry["what"] for entry in box.recorded("start", "end")] == ["start", "end"] * 5
    assert len({entry["gpu"] for entry in box.recorded("start")}) == 1
    assert len(trained(box)) == COUNT


def test_one_gpu_is_never_split(box: ScriptedBox) -> None:
    done = box.train(*ONE, "--gpus", "0", **SPLIT)
    assert done.returncode == 0, done.stderr
    assert len(box.recorded("start")) == 3
    assert not (box.run() / "shards.json").exists()


def test_without_the_record_of_shares_names_decide(box: ScriptedBox) -> None:
    box.nvml.write([StubGpu(total=16 * 1024**3, used=10 * 1024**3)] * 2)
    running = box.popen_cli(*box.train_words(*ONE), **SPLIT)
    box.wait_for(lambda: box.run_directories() and (box.run() / "live.json").exists(), what="the run")
    (box.run() / "shards.json").unlink()
    box.nvml.write([SMALL, SMALL])
    assert running.wait() == 0
    assert len(trained(box)) == COUNT
    assert len(made(box)) == 2 * COUNT


def test_after_a_supervisors_death_the_next_part_says_whom_it_waits_for(box: ScriptedBox) -> None:
    box.set_used(uuid_of(1), 10 * GIB)  # so the parts come in turn
    child = box.popen_cli(*box.train_words(*ONE), SCRIPTED_CACHE_SECONDS="1.5", **SPLIT)
    box.wait_for(lambda: box.recorded("start"), what="the first part")
    os.kill(int(box.events("supervisor_started")[-1]["identity"]["pid"]), signal.SIGKILL)
    box.wait_for(lambda: len(box.events("supervisor_started")) == 2, what="another supervisor")
    box.set_used(uuid_of(1), 0)

    def reasons() -> str:
        status = json.loads(box.run_cli("status", "--json").stdout)
        return " ".join(step["waiting_for"] or "" for step in status["steps"])

    box.wait_for(lambda: "which another supervisor of this run began" in reasons(), what="the reason")
    assert "another run" not in reasons()
    assert box.run_cli("stop", "--now").returncode == 0
    assert child.wait() == 143

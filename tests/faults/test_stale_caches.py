"""Caches that follow from something else than before: exactly those are made again, and nothing else is touched."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.nvml import NvmlStub, StubGpu
from support.old_plans import as_sharded
from support.past_runs import PreparedBoxes
from support.trainers import ScriptedBox, make_dataset

COUNT = 6
ONE = ["--experts", "high", "--epochs", "1"]


@pytest.fixture
def cached_box(prepared_boxes: PreparedBoxes, nvml_stub: NvmlStub) -> Iterator[ScriptedBox]:
    """A box on which six pictures were cached and trained once."""

    def cache(box: ScriptedBox) -> None:
        shutil.rmtree(box.dataset)
        make_dataset(box.dataset, COUNT)
        done = box.train(*ONE, title="first")
        assert done.returncode == 0, done.stderr
        assert _made(box) == (COUNT, COUNT)
        box.record.unlink()

    box = prepared_boxes.box("six-pictures-cached", nvml_stub, cache)
    yield box
    box.close()


def _made(box: ScriptedBox) -> tuple[int, int]:
    """How many latent and text caches the trainer's programs wrote."""
    counts = {"latents": 0, "text": 0}
    for entry in box.recorded("made"):
        counts[entry["place"]] += len(entry["names"])
    return counts["latents"], counts["text"]


def _trained(box: ScriptedBox) -> set[str]:
    """The pictures whose caches the last training saw."""
    return {name.rpartition("_")[0].rpartition("_")[0] for name in box.recorded("items")[-1]["names"]}


def _again(box: ScriptedBox, *words: str, title: str = "second") -> None:
    done = box.train(*ONE, *words, title=title)
    assert done.returncode == 0, done.stdout + done.stderr


def _all(*left_out: int) -> set[str]:
    return {f"picture{number}" for number in range(COUNT) if number not in left_out}


def test_unchanged_data_starts_no_caching_process(cached_box: ScriptedBox) -> None:
    before = {path: path.stat().st_mtime_ns for path in (cached_box.dataset / "cache").iterdir()}
    done = cached_box.train(*ONE, title="second")
    assert done.returncode == 0, done.stderr
    assert [entry["place"] for entry in cached_box.recorded("start")] == ["high"]
    run = cached_box.run_directories()[-1]
    found = cached_box.events("caches_up_to_date", run=run)
    assert [(event["step"], event["items"]) for event in found] == [("cache-latents", COUNT), ("cache-text", COUNT)]
    assert "caches are up to date: 6 of 6" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before if path.suffix == ".safetensors"}.items() <= before.items()


def test_one_changed_caption_makes_one_text_cache(cached_box: ScriptedBox) -> None:
    (cached_box.dataset / "picture3.txt").write_text("something else\n", encoding="utf-8")
    shown = cached_box.run_cli(*cached_box.train_words(*ONE, "--dry-run"))
    assert "1 of 6 to make (1 caption changed)" in shown.stdout
    assert "up to date: 6 of 6" in shown.stdout
    _again(cached_box)
    assert [entry["names"] for entry in cached_box.recorded("made")] == [["picture3_wan_te.safetensors"]]
    assert _trained(cached_box) == _all()


def test_another_resolution_makes_all_latents_and_no_text(cached_box: ScriptedBox) -> None:
    _again(cached_box, "--resolution", "512x512")
    assert _made(cached_box) == (COUNT, 0)
    _again(cached_box, "--resolution", "512x512", title="third")
    assert _made(cached_box) == (COUNT, 0)


def test_latents_of_text_to_video_are_not_used_for_image_to_video_but_the_other_way_round(
    cached_box: ScriptedBox,
) -> None:
    _again(cached_box, "--task", "i2v")
    assert _made(cached_box) == (COUNT, 0)
    _again(cached_box, title="third")
    assert _made(cached_box) == (COUNT, 0)


def test_a_deleted_picture_is_not_trained_and_costs_no_process(cached_box: ScriptedBox) -> None:
    for ending in (".png", ".txt"):
        (cached_box.dataset / f"picture4{ending}").unlink()
    kept = cached_box.dataset / "cache" / "my notes.txt"
    kept.write_text("mine", encoding="utf-8")
    _again(cached_box)
    assert [entry["place"] for entry in cached_box.recorded("start")] == ["high"]
    assert _trained(cached_box) == _all(4)
    names = {path.name for path in (cached_box.dataset / "cache").iterdir()}
    assert not any(name.startswith("picture4") for name in names)
    assert kept.read_text(encoding="utf-8") == "mine"


def test_an_emptied_folder_is_refused_and_loses_no_cache(cached_box: ScriptedBox) -> None:
    cache = cached_box.dataset / "cache"
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    for path in cached_box.dataset.glob("picture*"):
        path.unlink()
    done = cached_box.train(*ONE, title="second")
    assert done.returncode == 2
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before


def test_a_folder_that_is_emptied_while_the_run_waits_is_refused_too(cached_box: ScriptedBox) -> None:
    """As after an unmount: the plan was made with pictures, the caching is due without them."""
    cache = cached_box.dataset / "cache"
    before = {path.name for path in cache.iterdir()}
    (cached_box.dataset / "picture0.txt").write_text("other words", encoding="utf-8")
    cached_box.nvml.write([StubGpu(used=20 * 1024**3)])
    running = cached_box.popen_cli(*cached_box.train_words(*ONE, title="second"))
    cached_box.wait_for(lambda: len(cached_box.run_directories()) == 2, what="the run")
    away = cached_box.root / "away"
    away.mkdir()
    for path in cached_box.dataset.glob("picture*"):
        path.rename(away / path.name)
    cached_box.nvml.write([StubGpu()])
    assert running.wait() == 4
    run = cached_box.run_directories()[-1]
    assert cached_box.events("step_refused", run=run)[0]["diagnosis"]["meaning"] == "the dataset cannot be trained now"
    assert {path.name for path in cache.iterdir()} == before
    told = cached_box.run_cli("explain", run.name)
    assert "cannot be trained now" in told.stdout


def test_a_file_that_only_looks_like_a_cache_is_left_alone_and_named(cached_box: ScriptedBox) -> None:
    mine = cached_box.dataset / "cache" / "my_lora_wan.safetensors"
    mine.write_bytes(b"precious")
    done = cached_box.train(*ONE, title="second")
    assert done.returncode == 4
    assert str(mine) in done.stdout
    assert mine.read_bytes() == b"precious"


def test_caching_that_is_killed_goes_on_where_it_was(scripted_box: ScriptedBox) -> None:
    """Both the trainer and the supervisor: another run of the same dataset finds what is whole."""
    running = scripted_box.popen_cli(*scripted_box.train_words(*ONE), SCRIPTED_CACHE_SECONDS="0.4")
    cache = scripted_box.dataset / "cache"
    scripted_box.wait_for(lambda: len(list(cache.glob("*_wan.safetensors"))) >= 2, what="some caches")
    for pid in scripted_box.processes():
        if pid != running.pid:
            os.kill(pid, signal.SIGKILL)
    running.kill()
    running.wait()
    shutil.rmtree(scripted_box.run())
    _again(scripted_box)
    assert 0 < sum(_made(scripted_box)) < 6
    assert _trained(scripted_box) == {f"picture{number}" for number in range(3)}


def test_a_run_whose_caching_was_split_by_an_earlier_version_is_resumed(scripted_box: ScriptedBox) -> None:
    box = scripted_box
    box.nvml.write([StubGpu(used=20 * 1024**3)])
    assert box.train(*ONE, "--detach").returncode == 0
    assert box.run_cli("stop", "--now").returncode == 0
    assert box.run_cli("attach").returncode == 143  # nobody writes to the journal any more
    run = box.run()
    as_sharded(run)
    box.nvml.write([StubGpu()])
    done = box.run_cli("resume", "--detach")
    assert done.returncode == 0, done.stderr
    assert box.run_cli("attach").returncode == 0
    assert _made(box) == (3, 3)
    assert len(_trained(box)) == 3
    assert sorted(event["step"] for event in box.events("caches_up_to_date")) == ["cache-latents-2", "cache-text-2"]


def test_a_run_that_would_change_what_another_trains_from_waits(cached_box: ScriptedBox) -> None:
    cached_box.nvml.write([StubGpu(), StubGpu()])
    slow = cached_box.train_words("--experts", "high", "--epochs", "500", title="slow")
    first = cached_box.popen_cli(*slow, SCRIPTED_STEP_SECONDS="0.1")
    cached_box.wait_for_record("items", place="high")
    before = {path: path.stat().st_mtime_ns for path in Path(cached_box.dataset / "cache").glob("*_wan.safetensors")}
    other = cached_box.popen_cli(*cached_box.train_words(*ONE, "--resolution", "512x512", title="wide"))
    cached_box.wait_for(
        lambda: "which uses these caches" in cached_box.run_cli("status", "wide", "--json").stdout,
        what="the reason for waiting",
    )
    assert {path: path.stat().st_mtime_ns for path in before} == before
    cached_box.run_cli("stop", "slow", "--now")
    assert first.wait() == 143
    assert other.wait() == 0
    assert _made(cached_box) == (COUNT, 0)
    # What the first one trained from is gone, so it looks again before it goes on.
    done = cached_box.run_cli("resume", "slow", "--detach")
    assert done.returncode == 0, done.stderr
    cached_box.wait_for(lambda: _made(cached_box) == (2 * COUNT, 0), what="its latents at the old resolution")
    (run,) = (run for run in cached_box.run_directories() if run.name.endswith("slow"))
    assert cached_box.events("caches_disturbed", run=run)
    cached_box.run_cli("stop", "slow", "--now")
    assert cached_box.run_cli("attach", "slow").returncode == 143


def test_latents_and_text_share_one_gpu_that_is_large_enough(scripted_box: ScriptedBox) -> None:
    scripted_box.nvml.write([StubGpu()])
    done = scripted_box.train(*ONE, SCRIPTED_CACHE_SECONDS="0.5")
    assert done.returncode == 0, done.stderr
    entries = [(entry["what"], entry["place"]) for entry in scripted_box.recorded("start", "end")]
    assert {place for what, place in entries[:2] if what == "start"} == {"latents", "text"}
    assert not scripted_box.recorded("overlap")


def test_on_a_smaller_one_they_take_turns(scripted_box: ScriptedBox) -> None:
    scripted_box.nvml.write([StubGpu(total=16 * 1024**3)])
    done = scripted_box.train(*ONE)
    assert done.returncode == 0, done.stderr
    assert [entry["what"] for entry in scripted_box.recorded("start", "end")] == ["start", "end"] * 3

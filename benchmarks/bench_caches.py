"""What caching costs: nothing for unchanged data, one file for one caption."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from box import DEFAULT_PATIENCE, box
from figures import Figure
from serial_script import run_serially
from support import nvml
from support.runs import events_of, make_plan
from support.trainers import ScriptedBox, make_dataset
from wan_train.run.progress import Progress
from wan_train.run.readahead import ReadAhead
from wan_train.run.state import JobState, fold_all

_PICTURES = 200
# Half of what one caching script takes on a rented box, as in bench_schedule.
_SPEED = {"SCRIPTED_CACHE_SECONDS": "0.06", "SCRIPTED_LOAD_SECONDS": "3"}
_PATIENCE_SECONDS = 300.0
_FILE_BYTES = 2_000_000_000
_GIB = 1024**3


def measure() -> Iterator[Figure]:
    yield from _again()
    yield from _two_devices()
    yield _page_cache()


def _again() -> Iterator[Figure]:
    with box(2) as machine:
        shutil.rmtree(machine.dataset)
        make_dataset(machine.dataset, _PICTURES)
        _run(machine, "first")
        unchanged, processes, _ = _run(machine, "unchanged")
        (machine.dataset / "picture7.txt").write_text("other words\n", encoding="utf-8")
        edited, _, made = _run(machine, "edited")
        machine.record.unlink()
        began = time.monotonic()
        run_serially(machine, machine.run_directories()[0], **_SPEED)
        script = _first_training(machine, began)
    for what, ours, fact, met in (
        (f"nothing changed: {processes} caching processes", unchanged, "0 processes", processes == 0),
        (f"one caption changed: made {', '.join(made)}", edited, "that one text cache", made == ["text picture7"]),
    ):
        yield Figure(
            what=f"{_PICTURES} pictures cached before, {what}; command to start of the first training",
            measured=f"{ours:.2f} s",
            against=f"serial script, which encodes all {script:.2f} s",
            ratio=script / ours,
            goal=f">= 5 times sooner, {fact}" if "nothing" in what else fact,
            met=met and (script / ours >= 5 or "nothing" not in what),
        )


def _run(machine: ScriptedBox, title: str) -> tuple[float, int, list[str]]:
    """Seconds to the first training, caching processes started, caches made."""
    machine.record.unlink(missing_ok=True)
    began = time.monotonic()
    words = machine.train_words("--epochs", "1", title=title)
    done = machine.run_cli(*words, timeout=_PATIENCE_SECONDS, **_SPEED, **DEFAULT_PATIENCE)
    assert done.returncode == 0, done.stderr
    caching = [entry for entry in machine.recorded("start") if entry["place"] in {"latents", "text"}]
    made = [
        f"{entry['place']} {name.partition('_')[0]}" for entry in machine.recorded("made") for name in entry["names"]
    ]
    return _first_training(machine, began), len(caching), made


def _first_training(machine: ScriptedBox, began: float) -> float:
    return float(min(entry["at"] for entry in machine.recorded("items")) - began)


def _two_devices() -> Iterator[Figure]:
    small, large = nvml.StubGpu(total=16 * _GIB), nvml.StubGpu()
    in_turn = _caching_seconds(small)
    for what, gpus, goal in (
        ("two devices", (small, small), 1.6),
        ("one device of 32 GiB, shared", (large,), 1.6),
    ):
        ours = _caching_seconds(*gpus)
        yield Figure(
            what=f"latents and text of 60 pictures, {what}: first caching program's start to last one's end",
            measured=f"{ours:.2f} s",
            against=f"in turn on one device of 16 GiB {in_turn:.2f} s",
            ratio=in_turn / ours,
            goal=f">= {goal} times faster",
            met=in_turn / ours >= goal,
        )


def _caching_seconds(*gpus: nvml.StubGpu) -> float:
    with box(len(gpus)) as machine:
        machine.nvml.write(list(gpus))
        shutil.rmtree(machine.dataset)
        make_dataset(machine.dataset, 60)
        speed = {"SCRIPTED_CACHE_SECONDS": "0.15", "SCRIPTED_LOAD_SECONDS": "3"}
        words = machine.train_words("--epochs", "1", "--experts", "high")
        done = machine.run_cli(*words, timeout=_PATIENCE_SECONDS, **speed, **DEFAULT_PATIENCE)
        assert done.returncode == 0, done.stderr
        times = [entry["at"] for entry in machine.recorded("start", "end") if entry["place"] in {"latents", "text"}]
    return float(max(times) - min(times))


def _page_cache() -> Figure:
    with tempfile.TemporaryDirectory(prefix="wan-train-bench-", dir=Path.home()) as folder:
        path = Path(folder) / "high.safetensors"
        with path.open("wb") as file:
            for _ in range(_FILE_BYTES // 10_000_000):
                file.write(os.urandom(10_000_000))
            file.flush()
            os.fsync(file.fileno())
        _forget(path)
        cold = _seconds_to_read(path)
        _forget(path)
        plan = make_plan()
        plan = replace(plan, gpu_uuids=plan.gpu_uuids[:1], models=replace(plan.models, dit={"high": path, "low": path}))
        reader = ReadAhead(plan)
        state = fold_all(plan, events_of(plan, {"cache-text": JobState.RUNNING}))
        reader.look(state, {"cache-text": Progress(cached=1)})
        assert reader.thread is not None
        reader.thread.join()
        warm = _seconds_to_read(path)
    return Figure(
        what=f"weights of {_FILE_BYTES / 1e9:.0f} GB read by a trainer after reading ahead",
        measured=f"{warm:.2f} s ({_FILE_BYTES / 1e9 / warm:.1f} GB/s)",
        against=f"not in the page cache {cold:.2f} s ({_FILE_BYTES / 1e9 / cold:.1f} GB/s)",
        ratio=cold / warm,
        goal=">= 2 times faster",
        met=cold / warm >= 2,
    )


def _forget(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _seconds_to_read(path: Path) -> float:
    buffer = bytearray(8 * 1024 * 1024)
    began = time.monotonic()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.monotonic() - began

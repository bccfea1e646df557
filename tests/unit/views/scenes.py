"""Runs at the moments that a person watching would remember."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from support.runs import GIB, OUT_OF_MEMORY, SUPERVISOR, T0, events_of, make_gpus, make_plan, make_view
from wan_train.dataset.layout import Bucket, DatasetSummary, SubsetSummary
from wan_train.dataset.model import MediaKind
from wan_train.engine.failures import Cause, Diagnosis
from wan_train.engine.sample_prompts import SamplePrompt
from wan_train.recipe.adaptation import Choice
from wan_train.recipe.terms import EngineKind
from wan_train.run.curves import Curve, LossSource, Point, Segment
from wan_train.run.events import (
    CachesCleared,
    CachesUpToDate,
    CheckpointKept,
    DiskLow,
    Event,
    Exited,
    MovementMeasured,
    RetryScheduled,
    StateSaved,
    StepExited,
    StepRefused,
    StepStarted,
    SupervisorStarted,
    TrainingBegan,
)
from wan_train.run.live import Live
from wan_train.run.plan import CacheNeed, Devices, Plan, Sampling
from wan_train.run.progress import Progress
from wan_train.run.scheduler import why_waiting
from wan_train.run.state import JobState
from wan_train.views.losses import Losses, losses_of
from wan_train.views.model import GpuNow, History, RunView
from wan_train.views.summary import AtStart

DONE, RUNS, FAILED = JobState.SUCCEEDED, JobState.RUNNING, JobState.FAILED
CACHED = {"cache-latents": DONE, "cache-text": DONE}
FREE_DISK = 212_000_000_000
NOW = T0 + 2000

HIGH = Progress(
    epoch=42, epochs=100, step=1008, steps=2400, loss=0.0831, seconds_per_step=2.93, eta_seconds=1392 * 2.93
)
LOW = replace(HIGH, epoch=40, step=957, loss=0.1034, seconds_per_step=3.02, eta_seconds=1443 * 3.02)

Scene = tuple[RunView, float]
"""A view and the time to look at it."""


def learning(steps: int, *, seed: int = 1, source: LossSource = LossSource.TENSORBOARD) -> Losses:
    """The losses of a training that learns: fast at first, then slowly, with the noise of single steps."""
    chance = random.Random(seed)
    points = []
    for step in range(1, steps + 1):
        level = 0.07 + 0.08 * math.exp(-step / 300) + 0.02 * math.exp(-step / 2000)
        points.append(Point(step=step, loss=level * chance.lognormvariate(0.0, 0.35), lr=3e-4))
    found = losses_of(Curve(segments=(Segment(attempt=1, source=source, points=tuple(points)),)), 24)
    assert found is not None
    return found


def began(step: str, at: float, *, attempt: int = 1) -> TrainingBegan:
    return TrainingBegan(at=at, step=step, attempt=attempt, steps=2400)


def saved(step: str, epoch: int, at: float, *, attempt: int = 1) -> StateSaved:
    path = f"/workspace/runs/20251122-120000-mylora/{step}/{attempt}/output/{step}-{epoch:06d}-state"
    return StateSaved(at=at, step=step, attempt=attempt, path=path, epoch=epoch)


def told(view: RunView, events: list[Event], **losses: Losses) -> RunView:
    """The view with what its reader learns from the journal and from the curves; `train_high=` and so on."""
    history = History()
    for event in events:
        history.add(event)
    named = {step.replace("_", "-"): of_step for step, of_step in losses.items()}
    return replace(view, losses=named, paces=dict(history.paces), recent=tuple(history.recent))


def caching() -> Scene:
    plan = make_plan()
    events = events_of(plan, {"cache-latents": RUNS, "cache-text": RUNS}, gpus={"cache-text": 1})
    live = Live(
        at=T0 + 30,
        gpus=make_gpus(used=(6, 11)),
        progress={"cache-latents": Progress(cached=7, items=None), "cache-text": Progress(stage="loading T5")},
        waiting={
            "train-high": "waiting for cache-latents and cache-text",
            "train-low": "waiting for cache-latents and cache-text",
        },
        disk_free_bytes=FREE_DISK,
    )
    return make_view(plan, events, live=live), T0 + 31


def both_running() -> Scene:
    plan = make_plan()
    events = events_of(plan, {**CACHED, "train-high": RUNS, "train-low": RUNS}, gpus={"train-low": 1})
    events += [
        began("train-high", T0 + 120),
        began("train-low", T0 + 140),
        saved("train-high", 40, NOW - 190),
        saved("train-low", 40, NOW - 21),
        MovementMeasured(at=NOW - 195, step="train-high", since_epoch=30, epoch=40, relative=0.0312),
        CheckpointKept(at=NOW - 190, step="train-high", path="/workspace/runs/x/y-000040.safetensors", epoch=40),
    ]
    live = Live(
        at=NOW,
        gpus=make_gpus(used=(27, 26)),
        progress={"train-high": HIGH, "train-low": LOW},
        disk_free_bytes=FREE_DISK,
    )
    view = told(make_view(plan, events, live=live), events, train_high=learning(1008), train_low=learning(957, seed=2))
    return view, NOW + 1


def waiting() -> Scene:
    """One GPU of two is somebody else's; the loss comes from the progress line, since there is no TensorBoard."""
    plan = make_plan()
    live = Live(
        at=NOW,
        gpus=make_gpus(used=(27, 30)),
        progress={"train-high": HIGH},
        waiting={"train-low": "waiting for a GPU: GPU 0 runs train-high; GPU 1: 30.0 of 32.0 GiB are in use by others"},
        disk_free_bytes=5_000_000_000,
    )
    events = [*events_of(plan, {**CACHED, "train-high": RUNS}), began("train-high", T0 + 120)]
    events.append(saved("train-high", 40, NOW - 190))
    average = learning(1008, source=LossSource.PROGRESS_LINE)
    return told(make_view(plan, events, live=live), events, train_high=average), NOW + 1


def retry() -> Scene:
    """Out of memory after an hour, tried again with less, and loading; the other expert waits for the one GPU."""
    plan = make_plan(gpu_uuids=("GPU-0",))
    events = events_of(plan, {**CACHED, "train-high": RUNS}, epochs={"train-high": 40})
    started = next(event for event in events if isinstance(event, StepStarted) and event.step == "train-high")
    failed = started.at + 1300
    swap = {"blocks_to_swap": 20}
    events += [
        began("train-high", started.at + 60),
        saved("train-high", 40, started.at + 1210),
        StepExited(at=failed, step="train-high", attempt=1, exit=Exited(code=1)),
        RetryScheduled(
            at=failed,
            step="train-high",
            attempt=1,
            diagnosis=OUT_OF_MEMORY,
            not_before=failed + 5,
            why="out of GPU memory: 20 blocks swapped to RAM now",
            changes=swap,
        ),
        replace(
            started,
            at=failed + 6,
            attempt=2,
            resumed_from="/workspace/state",
            epochs_before=40,
            changes=swap,
        ),
    ]
    events.sort(key=lambda event: event.at)
    live = Live(
        at=failed + 30,
        gpus=make_gpus(count=1, used=(3,)),
        progress={"train-high": Progress(stage="loading the DiT")},
        waiting={"train-low": "waiting for a GPU: GPU 0 runs train-high"},
        disk_free_bytes=FREE_DISK,
    )
    view = told(make_view(plan, events, live=live), events, train_high=learning(960))
    return view, failed + 31


def one_failed() -> Scene:
    plan = make_plan()
    events = events_of(plan, {**CACHED, "train-high": FAILED, "train-low": RUNS}, gpus={"train-low": 1})
    live = Live(at=T0 + 3700, gpus=make_gpus(used=(0, 26)), progress={"train-low": LOW}, disk_free_bytes=FREE_DISK)
    tail = (
        "Traceback (most recent call last):",
        '  File "/workspace/musubi-tuner/src/musubi_tuner/wan/modules/model.py", line 611, in forward',
        "    x = block(x, **kwargs)",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 31 GiB",
    )
    events.append(saved("train-low", 40, T0 + 3600))
    view = make_view(plan, events, live=live, tails={"train-high": tail})
    return told(view, events, train_low=learning(957, seed=2)), T0 + 3701


def finished() -> Scene:
    plan = make_plan()
    jobs = {**CACHED, "train-high": DONE, "train-low": DONE}
    events = events_of(plan, jobs, gpus={"train-low": 1}, epochs={"train-high": 100}, exit_code=0)
    live = Live(at=T0 + 3650, gpus=make_gpus(), disk_free_bytes=FREE_DISK)
    view = told(make_view(plan, events, live=live), events, train_high=learning(2400), train_low=learning(2400, seed=2))
    return view, T0 + 9999


def lost() -> Scene:
    view, now = both_running()
    return replace(view, supervisor_alive=False, orphans=frozenset({"train-low"})), now + 100


def stale() -> Scene:
    view, now = both_running()
    return view, now + 90


def rehearsal() -> Scene:
    plan = make_plan(engine=EngineKind.REHEARSAL, epochs=20, items=8)
    events = events_of(plan, {**CACHED, "train-high": RUNS, "train-low": RUNS}, gpus={"train-low": 1})
    short = Progress(epoch=3, epochs=20, step=20, steps=160, loss=0.91, seconds_per_step=0.051, eta_seconds=7.1)
    live = Live(
        at=T0 + 60,
        gpus=make_gpus(devices=Devices.CPU_SLOTS),
        progress={"train-high": short, "train-low": Progress(stage="loading the DiT")},
        disk_free_bytes=FREE_DISK,
    )
    return told(make_view(plan, events, live=live), events, train_high=learning(20)), T0 + 61


def retrying() -> Scene:
    """Out of GPU memory after half an hour, in a pause before the next attempt; another run holds a GPU."""
    plan = make_plan()
    events = events_of(plan, {**CACHED, "train-high": RUNS})
    events += [
        StepExited(at=T0 + 1800, step="train-high", attempt=1, exit=Exited(code=1)),
        RetryScheduled(
            at=T0 + 1800,
            step="train-high",
            attempt=1,
            diagnosis=OUT_OF_MEMORY,
            not_before=T0 + 1815,
            why="out of GPU memory, next: 20 of 40 blocks are kept in RAM",
            changes={"blocks_to_swap": 20},
        ),
    ]
    waits = why_waiting(plan, make_view(plan, events).state, plan.step("train-high"), (), T0 + 1803)
    live = Live(
        at=T0 + 1803,
        gpus=make_gpus(),
        taken={"GPU-0": "run 20251122-110000-one"},
        waiting={"train-high": waits},
        disk_free_bytes=FREE_DISK,
    )
    return make_view(plan, events, live=live), T0 + 1803


def full_disk() -> Scene:
    view, now = stale()
    return replace(view, disk_free=45_000), now


def crashed() -> Scene:
    view, now = lost()
    return replace(view, supervisor_said="OSError: [Errno 5] Input/output error"), now


def caches() -> Scene:
    """Latents are up to date, three captions changed, and the dataset was unmounted meanwhile."""
    plan = make_plan()
    away = Diagnosis(cause=Cause.BAD_INPUT, meaning="the dataset is missing", advice="Mount it.", evidence="x")
    changed = {"caption_changed": 2}
    events: list[Event] = [
        SupervisorStarted(at=T0, identity=SUPERVISOR),
        CachesUpToDate(at=T0, step="cache-latents", items=200, removed={"no_item": 2}),
        CachesCleared(
            at=T0, step="cache-text", items=200, keep=197, make=3, made={**changed, "new": 1}, removed=changed
        ),
        StepRefused(at=T0, step="cache-text", diagnosis=away),
    ]
    return told(make_view(plan, events), events), T0 + 5


SCENES = {
    scene.__name__: scene
    for scene in (
        caching,
        both_running,
        waiting,
        retry,
        retrying,
        one_failed,
        finished,
        lost,
        crashed,
        stale,
        full_disk,
        rehearsal,
        caches,
    )
}


def ended(high: JobState, low: JobState, code: int, *, engine: EngineKind = EngineKind.MUSUBI) -> RunView:
    plan = make_plan(engine=engine)
    events = events_of(plan, {**CACHED, "train-high": high, "train-low": low}, gpus={"train-low": 1}, exit_code=code)
    return make_view(plan, events)


def stopped(kept: int = 1) -> RunView:
    """Stopped with a checkpoint and some LoRAs of earlier epochs."""
    plan = make_plan()
    events = events_of(plan, {**CACHED, "train-high": JobState.STOPPED}, exit_code=130)
    output = plan.run_dir / "train-high/1/output/WAN2.2-HighNoise_mylora-000040-state"
    events[-1:-1] = [
        StateSaved(at=T0 + 900, step="train-high", attempt=1, path=str(output), epoch=40),
        *(
            CheckpointKept(
                at=T0 + 901,
                step="train-high",
                path=str(plan.run_dir / f"WAN2.2-HighNoise_mylora-{epoch:06d}.safetensors"),
                epoch=epoch,
            )
            for epoch in range(10, 10 * kept + 1, 10)
        ),
    ]
    return make_view(plan, events)


def wrong_setting() -> RunView:
    """A failure that resuming cannot fix: a run keeps the settings it was started with."""
    plan = make_plan()
    events = events_of(
        plan,
        {**CACHED, "train-high": FAILED, "train-low": FAILED},
        exit_code=4,
        diagnosis=replace(OUT_OF_MEMORY, cause=Cause.SETTING),
    )
    return make_view(plan, events)


def low_disk() -> RunView:
    plan = make_plan()
    events = events_of(plan, {**CACHED, "train-high": JobState.STOPPED, "train-low": JobState.STOPPED}, exit_code=3)
    events.insert(-1, DiskLow(at=T0 + 900, free=1_100_000_000, needed=5_500_000_000))
    return make_view(plan, events)


ENDED: dict[str, Callable[[], RunView]] = {
    "both": lambda: ended(DONE, DONE, 0),
    "one_failed": lambda: ended(FAILED, DONE, 5),
    "all_failed": lambda: ended(FAILED, FAILED, 4),
    "one_stopped": lambda: ended(JobState.STOPPED, DONE, 143),
    "stopped": stopped,
    "many_kept": lambda: stopped(kept=9),
    "wrong_setting": wrong_setting,
    "low_disk": low_disk,
    "rehearsal": lambda: ended(DONE, DONE, 0, engine=EngineKind.REHEARSAL),
    "not_begun": lambda: make_view(make_plan(), []),
    "lost": lambda: lost()[0],
}

GPUS = (
    GpuNow(label="GPU 0", name="NVIDIA GeForce RTX 5090", used_bytes=GIB // 2, total_bytes=32 * GIB),
    GpuNow(
        label="GPU 1",
        name="NVIDIA GeForce RTX 5090",
        used_bytes=20 * GIB,
        total_bytes=32 * GIB,
        busy_because="20.0 of 32.0 GiB are in use",
    ),
)
PICTURES = DatasetSummary(
    subsets=(
        SubsetSummary(
            index=0,
            kind=MediaKind.IMAGE,
            files=24,
            captions=24,
            items=24,
            num_repeats=1,
            batch_size=4,
            resolution=(960, 960),
            buckets=(Bucket(width=960, height=960, frames=1, items=24),),
            batches_per_epoch=6,
        ),
    ),
    files=24,
    captions=24,
    items_with_repeats=24,
    batches_per_epoch=6,
    latent_bytes=11_000_000,
    text_bytes=9_000_000,
)
AT_START = AtStart(
    gpus=GPUS,
    dataset=PICTURES,
    problems=0,
    disk_free_bytes=FREE_DISK,
    new_toml=Path("/workspace/pictures/dataset.toml"),
)


def summary_plan() -> Plan:
    plan = make_plan(
        choices=(
            Choice(setting="attention", value="sdpa", reason="xformers has no working kernels on this GPU"),
            Choice(setting="fp8_base", value="on", reason="as the recipe says"),
            Choice(setting="max_data_loader_n_workers", value="2", reason="as the recipe says"),
        )
    )
    needs = {
        "cache-latents": CacheNeed(items=200, make=3, remove=2, reasons={"picture_changed": 2, "new": 1}),
        "cache-text": CacheNeed(items=200, make=0, remove=0),
    }
    return replace(
        plan,
        dataset=replace(plan.dataset, caches=needs, notes=("the T5 tokenizer will be downloaded",)),
        samples=Sampling(
            prompts=(SamplePrompt(prompt="a red fox", seed=5), SamplePrompt(prompt="a cat", seed=6, width=512)),
            every_epochs=10,
            at_first=True,
            source=Path("/workspace/prompts.txt"),
        ),
    )

"""Runs at the moments that a person watching would remember."""

from __future__ import annotations

from dataclasses import replace

from support.runs import T0, events_of, make_gpus, make_plan, make_view
from wan_train.recipe.terms import EngineKind
from wan_train.run.live import Live
from wan_train.run.plan import Devices
from wan_train.run.progress import Progress
from wan_train.run.state import JobState
from wan_train.views.model import RunView

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
    live = Live(
        at=NOW,
        gpus=make_gpus(used=(27, 26)),
        progress={"train-high": HIGH, "train-low": LOW},
        disk_free_bytes=FREE_DISK,
    )
    return make_view(plan, events, live=live), NOW + 1


def waiting() -> Scene:
    plan = make_plan()
    live = Live(
        at=NOW,
        gpus=make_gpus(used=(27, 30)),
        progress={"train-high": HIGH},
        waiting={"train-low": "waiting for a GPU: GPU 0 runs train-high; GPU 1: 30.0 of 32.0 GiB are in use by others"},
        disk_free_bytes=5_000_000_000,
        warnings=("the disk has room for 2 more states",),
    )
    return make_view(plan, events_of(plan, {**CACHED, "train-high": RUNS}), live=live), NOW + 1


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
    return make_view(plan, events, live=live, tails={"train-high": tail}), T0 + 3701


def finished() -> Scene:
    plan = make_plan()
    jobs = {**CACHED, "train-high": DONE, "train-low": DONE}
    events = events_of(plan, jobs, gpus={"train-low": 1}, epochs={"train-high": 100}, exit_code=0)
    live = Live(at=T0 + 3650, gpus=make_gpus(), disk_free_bytes=FREE_DISK)
    return make_view(plan, events, live=live), T0 + 9999


def lost() -> Scene:
    view, now = both_running()
    return replace(view, supervisor_alive=False), now + 100


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
    return make_view(plan, events, live=live), T0 + 61


SCENES = {
    scene.__name__: scene for scene in (caching, both_running, waiting, one_failed, finished, lost, stale, rehearsal)
}

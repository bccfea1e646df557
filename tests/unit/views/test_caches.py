"""What is told of caches: before a run, as it goes, on the screen, in JSON."""

from __future__ import annotations

from dataclasses import replace

from support.runs import SUPERVISOR, T0, make_plan, make_view
from views.support import shown
from wan_train.engine.failures import Cause, Diagnosis
from wan_train.run.events import (
    CachesCleared,
    CachesDisturbed,
    CachesUpToDate,
    Event,
    StepRefused,
    SupervisorStarted,
)
from wan_train.run.plan import CacheNeed
from wan_train.views.dashboard import render
from wan_train.views.event_lines import event_line
from wan_train.views.json_records import status_json
from wan_train.views.summary import plan_text

PLAN = make_plan()
AWAY = Diagnosis(cause=Cause.BAD_INPUT, meaning="the dataset cannot be trained now", advice="Mount it.", evidence="x")
STORY: list[Event] = [
    SupervisorStarted(at=T0, identity=SUPERVISOR),
    CachesUpToDate(at=T0, step="cache-latents", items=200, removed={"no_item": 2}),
    CachesCleared(
        at=T0,
        step="cache-text",
        items=200,
        keep=197,
        make=3,
        made={"caption_changed": 2, "new": 1},
        removed={"caption_changed": 2},
    ),
    StepRefused(at=T0, step="cache-text", diagnosis=AWAY),
]


def test_before_a_run() -> None:
    needs = {
        "cache-latents": CacheNeed(items=200, make=3, remove=2, reasons={"picture_changed": 2, "new": 1}),
        "cache-text": CacheNeed(items=200, make=0, remove=0),
    }
    text = plan_text(replace(PLAN, dataset=replace(PLAN.dataset, caches=needs)))
    assert "latents  3 of 200 to make (2 picture changed, 1 not cached yet)" in text
    assert "text     up to date: 200 of 200" in text
    assert "to make" not in plan_text(PLAN)


def test_as_it_goes() -> None:
    view = make_view(PLAN, STORY)
    told = [line for event in STORY if (line := event_line(event, view)) is not None]
    assert "caches are up to date: 200 of 200; 2 caches without a picture removed" in told[-3]
    assert "3 of 200 caches to make (2 caption changed, 1 not cached yet), 2 files removed" in told[-2]
    assert "failed: the dataset cannot be trained now. Mount it. [x]" in told[-1]
    changed = CachesDisturbed(at=T0, step="cache-text", what="a_wan_te.safetensors is gone")
    assert "a_wan_te.safetensors is gone" in (event_line(changed, view) or "")


def test_on_the_screen_and_in_json() -> None:
    view = make_view(PLAN, STORY)
    screen = shown(render(view, T0 + 5, 100), 100)
    assert "caches are up to date: 200 of 200" in screen
    assert "the dataset cannot be trained now" in screen
    latents, text, *_ = status_json(view, T0 + 5)["steps"]
    assert (latents["state"], latents["caches"]["kind"], latents["log"]) == ("succeeded", "caches_up_to_date", None)
    assert (text["state"], text["failure"]["cause"], text["failure"]["log"]) == ("failed", "bad_input", None)

"""The JSON contract: scripts depend on exactly these keys."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from support.json_output import json_lines
from support.runs import T0, events_of, make_plan
from views.scenes import SCENES, both_running, caches, finished, lost, one_failed, waiting
from wan_train.base import codec
from wan_train.box.rental import Price, PriceSource
from wan_train.run.events import DiskLow, Event
from wan_train.run.plan import Plan, Quote
from wan_train.run.step_commands import command_of
from wan_train.views.json_records import event_json, plan_json, result_json, status_json
from wan_train.views.model import GpuNow
from wan_train.views.summary import AtStart

STATUS = {
    "event", "run_id", "run_dir", "title", "task", "engine", "state", "exit_code", "started", "elapsed_seconds",
    "ends_at", "steps", "gpus", "disk_free_bytes", "disk_low", "cost", "warnings", "supervisor_alive",
    "updated", "report", "picked", "uploads", "box_end",
}  # fmt: skip
STEP = {
    "id", "kind", "expert", "state", "attempt", "gpu", "progress", "waiting_for", "failure", "result", "loss", "kept",
    "caches", "log", "curve", "ends_early", "newest_state", "movement",
}  # fmt: skip
PROGRESS = {
    "stage", "epoch", "epochs", "step", "steps", "loss", "loss_is_finite", "seconds_per_step", "eta_seconds", "items",
    "cached",
}  # fmt: skip
CURVE = {"loss_source", "step", "loss", "smoothed", "trend", "not_finite", "learning_rate"}
GPU = {"label", "index", "uuid", "name", "used_bytes", "total_bytes", "utilization", "temperature", "step"}


@pytest.mark.parametrize("name", SCENES)
def test_status_has_exactly_the_documented_keys(name: str) -> None:
    view, now = SCENES[name]()
    data = status_json(view, now)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert set(data) == STATUS
    for step in data["steps"]:
        assert set(step) == STEP
        assert step["progress"] is None or set(step["progress"]) == PROGRESS
        assert step["curve"] is None or set(step["curve"]) == CURVE
        assert step["newest_state"] is None or set(step["newest_state"]) == {"epoch", "at", "path"}
        assert step["failure"] is None or set(step["failure"]) == {
            "cause",
            "meaning",
            "advice",
            "evidence",
            "another_attempt",
            "retry_after",
            "log",
        }
        assert step["result"] is None or set(step["result"]) == {"path", "bytes", "sha256"}
    for gpu in data["gpus"]:
        assert set(gpu) == GPU


@pytest.mark.parametrize(
    ("name", "state"),
    [("both_running", "running"), ("finished", "finished"), ("lost", "lost"), ("retrying", "retrying")],
)
def test_a_run_in_one_word(name: str, state: str) -> None:
    view, now = SCENES[name]()
    assert status_json(view, now)["state"] == state


@pytest.mark.parametrize(
    ("code", "state"), [(0, "finished"), (4, "failed"), (5, "failed"), (130, "stopped"), (143, "stopped")]
)
def test_exit_codes_in_one_word(code: int, state: str) -> None:
    view, now = finished()
    assert view.state.finished is not None
    ended = replace(view, state=replace(view.state, finished=replace(view.state.finished, exit_code=code)))
    data = status_json(ended, now)
    assert (data["state"], data["exit_code"]) == (state, code)


def test_values_of_a_running_training() -> None:
    view, now = both_running()
    data = status_json(view, now)
    high = next(step for step in data["steps"] if step["id"] == "train-high")
    assert (high["kind"], high["expert"], high["state"], high["gpu"]) == ("train", "high", "running", "GPU 0")
    assert (high["progress"]["step"], high["progress"]["loss"]) == (1008, 0.0831)
    assert data["gpus"][1]["step"] == "train-low"
    assert (data["started"], data["elapsed_seconds"], data["updated"]) == (T0, 2001.0, T0 + 2000)


def test_waiting_and_failure_are_explained() -> None:
    view, now = waiting()
    low = status_json(view, now)["steps"][-1]
    assert low["waiting_for"].startswith("waiting for a GPU: ")
    view, now = one_failed()
    high = status_json(view, now)["steps"][2]
    assert high["failure"]["cause"] == "out_of_memory"
    assert high["failure"]["log"].endswith("/train-high/1/output.log")


def test_a_result_is_the_status_at_the_end() -> None:
    view, _ = finished()
    data = result_json(view)
    assert set(data) == STATUS
    assert data["event"] == "result"
    assert view.state.finished is not None
    assert data["elapsed_seconds"] == view.state.finished.at - T0
    assert [step["result"]["bytes"] for step in data["steps"][2:]] == [153_400_000, 153_400_000]


def test_a_lost_supervisor() -> None:
    view, now = lost()
    data = status_json(view, now)
    assert (data["supervisor_alive"], data["exit_code"]) == (False, None)


def test_events_are_those_of_the_journal() -> None:
    plan = make_plan()
    view, _ = finished()
    for event in events_of(plan, {name: job.state for name, job in view.state.jobs.items()}, exit_code=0):
        data = event_json(event)
        assert "kind" in data
        assert codec.from_json(json.dumps(data), Event, where="here") == event


def test_the_plan_comes_back_whole() -> None:
    plan = make_plan()
    gpu = GpuNow(label="GPU 0", name="RTX 5090", used_bytes=0, total_bytes=1, busy_because="x")
    data = plan_json(plan, AtStart(gpus=[gpu]))
    assert set(data) == {"event", "plan", "commands", "gpus", "cost"}
    json_lines(json.dumps({"schema": 1, **data}))  # every key of a plan is documented
    assert data["cost"] is None
    assert codec.from_json(json.dumps(data["plan"]), Plan, where="here") == plan
    assert data["commands"]["train-low"] == command_of(plan, plan.step("train-low")).shell()
    assert set(data["gpus"][0]) == {"label", "name", "used_bytes", "total_bytes", "busy_because"}


def test_the_plan_has_what_is_quoted_and_what_share_of_the_box_is_assumed() -> None:
    now = AtStart(price=Price(per_hour=0.93, source=PriceSource.VAST), runs=2, budget=3.0)
    quoted = make_plan(quote=Quote(seconds=7200, seconds_per_batch=2.0, measured=T0))
    assert plan_json(quoted, now)["cost"] == {
        "total": 0.93, "total_alone": 1.86, "per_hour": 0.93, "price_source": "vast", "runs": 2, "budget": 3.0,
        "rental_ends": None,
    }  # fmt: skip
    unknown = plan_json(make_plan(), now)["cost"]
    assert (unknown["total"], unknown["total_alone"], unknown["per_hour"]) == (None, None, 0.93)


def test_a_run_that_ends_for_lack_of_disk_is_stopping() -> None:
    view, now = both_running()
    low = replace(view, state=replace(view.state, disk_low=DiskLow(at=now, free=1, needed=2)))
    assert status_json(low, now)["state"] == "stopping"


def test_scripts_learn_where_the_loss_is_going_and_when_it_ends() -> None:
    view, now = both_running()
    data = status_json(view, now)
    assert data["ends_at"] == pytest.approx(now - 1 + 1443 * 3.02)
    high = data["steps"][2]
    assert high["curve"]["loss_source"] == "tensorboard"
    assert high["curve"]["step"] == 1008
    assert high["curve"]["trend"] == "falling"
    assert high["curve"]["learning_rate"] == pytest.approx(3e-4)
    assert high["newest_state"]["epoch"] == 40


def test_a_loss_that_is_no_number_is_null() -> None:
    view, now = both_running()
    broken = replace(view.losses["train-high"], newest=float("nan"), average=None)
    step = status_json(replace(view, losses={"train-high": broken}), now)["steps"][2]
    assert (step["curve"]["loss"], step["curve"]["smoothed"]) == (None, None)


def test_caches_that_are_up_to_date_and_a_step_that_was_refused() -> None:
    latents, text, *_ = status_json(*caches())["steps"]
    assert (latents["state"], latents["caches"]["kind"], latents["log"]) == ("succeeded", "caches_up_to_date", None)
    assert (text["state"], text["failure"]["cause"], text["failure"]["log"]) == ("failed", "bad_input", None)

"""What screens say of an expert that ends before its schedule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.runs import events_of, make_plan, make_view
from views.reports import BOTH, NO_PLOTS, report_of
from views.scenes import AT_START, CACHED, RUNS
from views.support import shown
from wan_train.engine.capabilities import stored
from wan_train.recipe.effective import Layer, resolve
from wan_train.recipe.load import shipped
from wan_train.recipe.model import Origin, Source
from wan_train.recipe.terms import Expert, Task
from wan_train.run.end_epochs import EarlyEnd, early_end
from wan_train.run.events import Event, ResultPlaced, RunResumed, StepStarted
from wan_train.run.live import Live
from wan_train.run.plan import Plan
from wan_train.run.progress import Progress
from wan_train.views.dashboard import run_lines
from wan_train.views.event_lines import event_text
from wan_train.views.plan_details import plan_text
from wan_train.views.report.page import page
from wan_train.views.result import result_text
from wan_train.views.summary import plan_lines, shorter_training, whole_training


def early_plan(until: str = "50", **ends: int) -> Plan:
    plan = make_plan()
    layer = Layer(source=Source(origin=Origin.FLAG, text="--until"), values={"until": until})
    return replace(plan, recipe=resolve(plan.recipe, [layer]), ends=ends or {"high": 50, "low": 50})


def finished(plan: Plan) -> list[Event]:
    events = events_of(plan, BOTH, epochs={"train-high": 50}, exit_code=0)
    return [replace(each, epochs=50) if isinstance(each, ResultPlaced) else each for each in events]


def test_the_summary_counts_what_will_be_trained() -> None:
    text = " ".join(shown(plan_lines(early_plan(), AT_START), 200).split())
    assert "50 of 100 epochs (--until 50), 1,200 steps per expert" in text
    assert "LoRA at epoch 50" in text
    text = " ".join(shown(plan_lines(early_plan(high=50), AT_START), 200).split())
    assert "high-noise 50 of 100 epochs (--until 50), 1,200 steps; low-noise 100 epochs, 2,400 steps" in text


def test_the_dry_run_shows_the_arithmetic_and_the_step_at_which_the_trainer_saves() -> None:
    text = " ".join(plan_text(early_plan(), AT_START).split())
    assert "50 epochs = 1,200 steps, which is 50 of 100 epochs (--until 50)" in text
    assert "--max_train_epochs 100" in text
    assert "--save_every_n_steps 1200" in text


def test_the_view_shows_both_totals() -> None:
    plan = early_plan()
    progress = Progress(epoch=7, epochs=50, step=160, steps=1200, seconds_per_step=1.0, eta_seconds=1040.0)
    live = Live(at=0.0, progress={"train-high": progress})
    view = make_view(plan, events_of(plan, {**CACHED, "train-high": RUNS}), live=live)
    assert "epoch 7/50 (of 100) · step 160/1,200" in shown(run_lines(view, 0.0), 120).replace("1200", "1,200")


def test_the_result_says_where_it_ended_and_how_to_train_the_rest() -> None:
    plan = early_plan()
    text = result_text(make_view(plan, finished(plan)))
    assert text.count("ended after epoch 50 of 100 (--until 50)") == 2
    assert f"wan-train resume {plan.run_id} --until all" in text
    whole = make_plan()
    assert "--until" not in result_text(make_view(whole, events_of(whole, BOTH, exit_code=0)))


def test_the_report_says_the_same() -> None:
    plan = early_plan()
    text = page(report_of(plan=plan, events=finished(plan), **NO_PLOTS))
    assert "ends after epoch 50 of 100 (--until 50)" in text
    assert f"wan-train resume {plan.run_id} --until all" in text


def test_events_name_the_ends() -> None:
    plan = early_plan()
    view = make_view(plan, finished(plan))
    [started, *_] = [each for each in finished(plan) if isinstance(each, StepStarted) and each.step == "train-high"]
    said = event_text(replace(started, total_epochs=50, schedule_epochs=100), view)
    assert said is not None
    assert "ends after epoch 50 of 100" in said
    said = event_text(RunResumed(at=0.0, ends={"train-high": 70, "train-low": 100}), view)
    assert said == "resumed under the same learning rate; ends: train-high after epoch 70, train-low after epoch 100"


def test_the_offer_is_half_of_the_guides_training() -> None:
    plan = replace(make_plan(), recipe=shipped(Task.T2V))
    offered = early_end(plan.recipe, 24, stored("d0a1930"))
    assert offered is not None
    assert dict(offered.epochs) == {Expert.HIGH: 50, Expert.LOW: 50}
    assert whole_training(plan) == "all 100 epochs, as in the guide"
    assert shorter_training(offered) == "end after epoch 50: the same LoRA to about 0.4 %, half the time"
    assert whole_training(make_plan(epochs=60)) == "all 60 epochs"
    assert early_end(early_plan().recipe, 24, stored("d0a1930")) is None
    assert early_end(plan.recipe, None, stored("d0a1930")) is None


@pytest.mark.parametrize(
    ("saved", "words"), [(0.5, "half the time"), (0.3, "70 % of the time"), (0.65, "35 % of the time")]
)
def test_an_offer_that_differs_between_the_experts_names_both(saved: float, words: str) -> None:
    offered = EarlyEnd(epochs={Expert.HIGH: 50, Expert.LOW: 40}, saved=saved, distance=0.0142)
    assert shorter_training(offered) == (
        f"end after epoch 50 (high-noise) and epoch 40 (low-noise): the same LoRA to about 1 %, {words}"
    )

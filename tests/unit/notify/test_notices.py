"""What is said of a run and its box, and when: values in, messages out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from support.runs import OUT_OF_MEMORY, SUPERVISOR, T0, events_of, make_plan
from wan_train.base.clock import Moment
from wan_train.base.errors import ExitCode
from wan_train.box.rental import PriceSource
from wan_train.engine.failures import Cause, Diagnosis
from wan_train.notify.notices import RunFacts, of_box, of_run
from wan_train.notify.send import Message
from wan_train.recipe.terms import EngineKind
from wan_train.run.box_ending import Ending, Phase
from wan_train.run.duties import Then
from wan_train.run.events import (
    BudgetSet,
    Event,
    PriceSet,
    RetryScheduled,
    RunFinished,
    RunResumed,
    SupervisorStarted,
)
from wan_train.run.live import Live
from wan_train.run.plan import Plan
from wan_train.run.state import JobState, fold_all

CACHED = {"cache-latents": JobState.SUCCEEDED, "cache-text": JobState.SUCCEEDED}
BOTH = {**CACHED, "train-high": JobState.SUCCEEDED, "train-low": JobState.SUCCEEDED}
BUSY = {**CACHED, "train-high": JobState.RUNNING, "train-low": JobState.RUNNING}
"""How far a run is, by its steps."""


def said(plan: Plan, events: list[Event], *, now: float | None = None, **more: object) -> tuple[Message, ...]:
    at = max(event.at for event in events) if now is None else now
    facts = RunFacts(run_dir=plan.run_dir, plan=plan, events=events, state=fold_all(plan, events), now=at)
    return of_run(replace(facts, **more))  # type: ignore[arg-type]  fields of a facts by name


def text(message: Message) -> str:
    return f"{message.title}\n{message.body}"


def priced(dollars: float, events: list[Event]) -> list[Event]:
    return [events[0], PriceSet(at=T0, per_hour=dollars, source=PriceSource.GIVEN), *events[1:]]


def test_a_finished_run_names_time_cost_and_both_loras() -> None:
    plan = make_plan()
    (message,) = said(plan, priced(2.0, events_of(plan, BOTH, exit_code=ExitCode.DONE)))
    assert message.title == "mylora: finished in 1 h, $2.02"
    assert [line.partition(":")[0] for line in message.body.splitlines()] == ["LoRA", "LoRA"]
    assert str(plan.run_dir) in message.body


def test_a_failed_run_says_why_in_one_sentence_and_what_can_help() -> None:
    plan = make_plan()
    jobs = {**CACHED, "train-high": JobState.FAILED, "train-low": JobState.FAILED}
    (message,) = said(plan, events_of(plan, jobs, exit_code=ExitCode.TRAINING_FAILED))
    assert message.title.startswith("mylora: failed after ")
    assert "train-high: The GPU's memory was not enough.\n" in message.body
    assert message.body.endswith(f"Next: wan-train explain {plan.run_id}")


def test_a_diverged_run_says_so() -> None:
    plan = make_plan()
    diagnosis = Diagnosis(cause=Cause.NAN_LOSS, meaning="the loss became NaN", advice="Lower it.", evidence="loss=nan")
    jobs = {**CACHED, "train-high": JobState.FAILED, "train-low": JobState.SUCCEEDED}
    (message,) = said(plan, events_of(plan, jobs, diagnosis=diagnosis, exit_code=ExitCode.DIVERGED))
    assert message.title.startswith("mylora: diverged after ")
    assert "train-high: The loss became NaN." in message.body


def test_a_run_that_reached_its_budget_names_the_command_that_continues() -> None:
    plan = make_plan()
    events = events_of(plan, {**CACHED, "train-high": JobState.STOPPED}, exit_code=ExitCode.OVER_BUDGET)
    events.insert(1, BudgetSet(at=T0, dollars=3.0))
    (message,) = said(plan, priced(2.0, events))
    assert "stopped before its budget was reached" in message.title
    assert message.body.endswith(f"Next: wan-train resume {plan.run_id} --budget 6")


def test_the_end_waits_for_uploads_that_it_names_and_not_for_ever() -> None:
    plan = make_plan()
    events = events_of(plan, BOTH, exit_code=ExitCode.DONE)
    end = events[-1].at
    assert said(plan, events, now=end + 60, uploads={"hf:me/cats": False}) == ()
    (early,) = said(plan, events, now=end + 60, uploads={"hf:me/cats": True})
    (late,) = said(plan, events, now=end + 601, uploads={"hf:me/cats": False})
    assert "Uploaded to hf:me/cats" in early.body
    assert "Not uploaded yet: hf:me/cats" in late.body
    assert early.id == late.id, "it is one message, whenever it is sent"


def test_one_expert_that_failed_is_news_while_the_other_trains() -> None:
    plan = make_plan()
    (message,) = said(plan, events_of(plan, {**BUSY, "train-high": JobState.FAILED}))
    assert message.title == "mylora: train-high failed"
    assert "The run continues with the other expert." in message.body


def test_a_failure_after_which_nothing_trains_is_told_with_the_end_of_the_run() -> None:
    plan = make_plan()
    failed = {"cache-text": JobState.FAILED, "train-high": JobState.SKIPPED, "train-low": JobState.SKIPPED}
    assert said(plan, events_of(plan, {"cache-latents": JobState.RUNNING, **failed})) == ()


def retries(count: int, at: float) -> list[Event]:
    return [
        RetryScheduled(
            at=at + n, step="train-high", attempt=1, diagnosis=OUT_OF_MEMORY, not_before=at + n, why="out of memory"
        )
        for n in range(count)
    ]


def test_retries_are_news_beyond_the_second_and_once_for_each_start() -> None:
    plan = make_plan()
    events = events_of(plan, BUSY)
    assert said(plan, [*events, *retries(2, T0 + 100)]) == ()
    (third,) = said(plan, [*events, *retries(3, T0 + 100)])
    (fourth,) = said(plan, [*events, *retries(4, T0 + 100)])
    assert third.title == "mylora: train-high failed 3 times and is retried"
    assert third.id == fourth.id
    resumed: list[Event] = [*events, *retries(3, T0 + 100), RunResumed(at=T0 + 200)]
    assert said(plan, [*resumed, *retries(2, T0 + 300)]) == ()
    (again,) = said(plan, [*resumed, *retries(3, T0 + 300)])
    assert again.id != third.id


@pytest.mark.parametrize(
    ("away", "boot_id", "is_news"),
    [(30, SUPERVISOR.boot_id, False), (3600, SUPERVISOR.boot_id, True), (40, "another boot", True)],
)
def test_a_run_that_comes_back_is_news_unless_only_its_supervisor_died(
    away: float, boot_id: str, is_news: bool
) -> None:
    plan = make_plan()
    events = events_of(plan, BUSY)
    left = events[-1].at
    identity = replace(SUPERVISOR, pid=4300, boot_id=boot_id)
    back = SupervisorStarted(at=left + away, identity=identity, idle_since=left)
    found = said(plan, [*events, back])
    assert bool(found) == is_news
    if is_news:
        assert found[0].title.startswith("mylora: back after ")
    by_a_person: list[Event] = [*events, RunResumed(at=left + 1), back]
    assert said(plan, by_a_person) == ()


def test_a_wait_for_a_gpu_is_news_after_ten_minutes_and_only_while_it_lasts() -> None:
    plan = make_plan()
    events = events_of(plan, {})

    def waiting(seconds: float, why: str = "waiting for a GPU: GPU 0 is used by another program") -> list[str]:
        now = T0 + seconds
        live = Live(at=now - 1, waiting={"cache-latents": why})
        return [text(each) for each in said(plan, events, now=now, live=live)]

    assert waiting(500) == []
    (message,) = waiting(700)
    assert message == "mylora: waiting for a GPU for 11 min\nWaiting for a GPU: GPU 0 is used by another program."
    assert waiting(700, "waiting for cache-latents") == []
    old = Live(at=T0, waiting={"cache-latents": "waiting for a GPU: none"})
    assert said(plan, events, now=T0 + 700, live=old) == (), "nobody looked since"


def test_the_budget_is_news_at_80_percent_and_again_with_another_budget() -> None:
    plan = make_plan()

    def spent(hours: float, *budgets: float) -> list[Message]:
        events = priced(1.0, events_of(plan, BUSY))
        events += [BudgetSet(at=events[-1].at, dollars=budget) for budget in budgets]
        return list(said(plan, events, now=T0 + 3600 * hours))

    assert spent(2.3, 3.0) == []
    (first,) = spent(2.41, 3.0)
    assert first.title == "mylora: 80 % of the budget spent"
    assert "$2.41 of $3.00 spent." in first.body
    assert spent(2.41, 3.0, 5.0) == []
    (second,) = spent(4.5, 3.0, 5.0)
    assert second.id != first.id


def ending(**changes: object) -> Ending:
    plain = Ending(
        then=Then.DESTROY,
        runs=("20251122-120000-mylora",),
        because="the last run is over; every result is safe elsewhere",
        decided=Moment(at=T0, boot_id=SUPERVISOR.boot_id, uptime=100.0),
        grace_seconds=900.0,
        due=T0 + 900,
        life=SUPERVISOR,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  fields by name


def of(end: Ending, now: float) -> list[Message]:
    return list(of_box(end, ["mylora"], now, first_process=SUPERVISOR))


def test_the_end_of_the_box_is_news_five_minutes_before_with_the_way_to_keep_it() -> None:
    assert of(ending(), T0 + 500) == []
    (message,) = of(ending(), T0 + 600)
    assert message.title == "mylora: the box is destroyed in 5 min"
    assert "The last run is over; every result is safe elsewhere." in message.body
    assert "wan-train status" in message.body
    assert of(ending(phase=Phase.CANCELLED), T0 + 600) == []
    rebooted = replace(SUPERVISOR, start_time=99)
    assert of_box(ending(), ["mylora"], T0 + 600, first_process=rebooted) == (), (
        "that ending is of an earlier life of the box"
    )


def test_a_box_that_cannot_be_ended_is_news_with_the_command_to_end_it_by_hand() -> None:
    hand = "vastai destroy instance 7000001"
    (message,) = of(ending(phase=Phase.ENDING, problem="Vast refused the key", by_hand=hand, tries=1), T0 + 950)
    assert message.title == "mylora: the box is still on"
    assert "Vast refused the key" in message.body
    assert message.body.endswith(f"By hand: {hand}")
    (again,) = of(ending(phase=Phase.ENDING, problem="Vast does not answer", by_hand=hand, tries=7), T0 + 1500)
    assert again.id == message.id


def test_a_hostile_title_wakes_no_server_and_takes_one_line() -> None:
    plan = make_plan(title="@everyone <!channel>\nfinished: \x1b[31mred " + "x" * 500)
    (message,) = said(plan, events_of(plan, BOTH, exit_code=ExitCode.DONE))
    assert "@everyone" not in text(message)
    assert "<!channel>" not in text(message)
    assert "\x1b" not in text(message)
    assert "\n" not in message.title
    assert len(message.title) < 200


def test_each_end_of_a_run_that_was_resumed_is_a_message_of_its_own() -> None:
    plan = make_plan()
    first = events_of(plan, {**CACHED, "train-high": JobState.STOPPED}, exit_code=ExitCode.INTERRUPTED)
    end = first[-1].at
    (one,) = said(plan, first)
    (two,) = said(plan, [*first, RunResumed(at=end + 10), RunFinished(at=end + 20, exit_code=ExitCode.INTERRUPTED)])
    assert one.id != two.id
    assert "stopped after" in one.title


def test_a_rehearsal_says_that_its_files_are_not_usable() -> None:
    plan = make_plan(engine=EngineKind.REHEARSAL, run_dir=Path("/workspace/runs/20251122-120000-mylora"))
    (message,) = said(plan, events_of(plan, BOTH, exit_code=ExitCode.DONE))
    assert "not usable LoRAs" in message.body

"""What follows a failure: total over causes, budgets that refill, a ladder that ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.runs import SUPERVISOR, T0, make_plan, with_settings
from wan_train.base import codec
from wan_train.engine.failures import Cause, Diagnosis
from wan_train.recipe.model import Origin, Source
from wan_train.recipe.terms import Expert
from wan_train.run import retry
from wan_train.run.events import RunResumed, StateSaved
from wan_train.run.state import Attempt, Job, JobState, fold, initial

PLAN = make_plan()
OOM = Cause.OUT_OF_MEMORY


def attempt(number: int, cause: Cause | None, *, progress: bool = False, **changes: int) -> Attempt:
    saved = StateSaved(at=T0, step="train-high", attempt=number, path="state", epoch=1) if progress else None
    return Attempt(
        number=number,
        gpu_uuid=None,
        gpu_label=None,
        identity=SUPERVISOR,
        started=T0,
        diagnosis=of(cause) if cause is not None else None,
        last_state=saved,
        changes=changes,
    )


def of(cause: Cause) -> Diagnosis:
    return Diagnosis(cause=cause, meaning="it failed", advice="do something")


def job(*attempts: Attempt) -> Job:
    return Job(step="train-high", attempts=attempts)


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_has_a_rule_and_a_budget_that_ends(cause: Cause) -> None:
    attempts: list[Attempt] = []
    changes: dict[str, int] = {}
    for tries in range(1, 30):
        attempts.append(replace(attempt(tries, cause), changes=dict(changes)))
        move = retry.next_move(PLAN, job(*attempts), of(cause), steps_made=0)
        if move is None:
            assert tries <= retry.RULES[cause].retries + 1
            return
        assert move.pause >= 0
        changes |= move.changes  # type: ignore[arg-type]  # the rungs used here are numbers
    raise AssertionError(f"{cause} is tried for ever")


@pytest.mark.parametrize(
    "cause", [Cause.NAN_LOSS, Cause.DISK_FULL, Cause.BAD_INPUT, Cause.MISSING_FILE], ids=lambda cause: cause.value
)
def test_what_only_a_person_can_mend_is_not_repeated(cause: Cause) -> None:
    assert retry.next_move(PLAN, job(attempt(1, cause)), of(cause), steps_made=500) is None


@given(st.integers(0, 12), st.integers(1, 5))
def test_progress_refills_the_budget(before: int, after: int) -> None:
    failed = [attempt(number, Cause.CUDA_ERROR) for number in range(before)]
    good = attempt(before, Cause.CUDA_ERROR, progress=True)
    assert retry.failures_in_a_row(job(*failed, good), Cause.CUDA_ERROR) == 1
    more = [attempt(before + number, Cause.CUDA_ERROR) for number in range(1, after + 1)]
    assert retry.failures_in_a_row(job(*failed, good, *more), Cause.CUDA_ERROR) == after


def test_a_person_who_resumes_gives_a_new_budget() -> None:
    """Through the events that really happen: two failures use the budget up, then the run is resumed."""
    failed = attempt(1, Cause.UNKNOWN), attempt(2, Cause.UNKNOWN)
    used_up = Job(step="train-high", state=JobState.FAILED, attempts=failed)
    assert retry.next_move(PLAN, used_up, of(Cause.UNKNOWN), steps_made=0) is None
    state = replace(initial(PLAN), jobs={**initial(PLAN).jobs, "train-high": used_up})
    resumed = fold(state, RunResumed(at=T0)).jobs["train-high"]
    again = replace(resumed, attempts=(*resumed.attempts, attempt(3, Cause.UNKNOWN)))
    assert retry.next_move(PLAN, again, of(Cause.UNKNOWN), steps_made=0) is not None


def test_pauses_grow() -> None:
    failures = [attempt(number, Cause.CUDA_ERROR) for number in range(1, 4)]
    pauses = []
    for count in range(1, 4):
        move = retry.next_move(PLAN, job(*failures[:count]), of(Cause.CUDA_ERROR), steps_made=0)
        assert move is not None
        pauses.append(move.pause)
    assert pauses == sorted(set(pauses))


def test_a_sample_that_fails_costs_the_samples_and_not_the_training() -> None:
    move = retry.next_move(PLAN, job(attempt(1, Cause.SAMPLING, progress=True)), of(Cause.SAMPLING), steps_made=500)
    assert move is not None
    assert (move.changes, move.pause) == ({"sample_every_n_epochs": 0}, 0.0)
    assert "without samples" in move.why
    # What runs out of memory then is the training, and is helped as ever.
    last = attempt(2, OOM, sample_every_n_epochs=0)
    after = retry.next_move(PLAN, job(attempt(1, Cause.SAMPLING), last), of(OOM), steps_made=0)
    assert after is not None
    assert after.changes == {"blocks_to_swap": 20}


def test_memory_that_runs_out_at_once_takes_the_next_memory_step() -> None:
    move = retry.next_move(PLAN, job(attempt(1, OOM)), of(OOM), steps_made=0)
    assert move is not None
    swapped = move.changes["blocks_to_swap"]
    assert isinstance(swapped, int)
    assert swapped > PLAN.training(Expert.HIGH).blocks_to_swap


def test_memory_that_runs_out_late_is_first_tried_as_it_was() -> None:
    once = retry.next_move(PLAN, job(attempt(1, OOM)), of(OOM), steps_made=2048)
    assert once is not None
    assert not once.changes
    twice = retry.next_move(PLAN, job(attempt(1, OOM), attempt(2, OOM)), of(OOM), steps_made=2048)
    assert twice is not None
    assert twice.changes


def test_a_late_one_on_a_new_rung_is_tried_as_it_was_again() -> None:
    history = job(attempt(1, OOM), attempt(2, OOM, blocks_to_swap=20))
    move = retry.next_move(PLAN, history, of(OOM), steps_made=2048)
    assert move is not None
    assert not move.changes


@pytest.mark.parametrize(
    ("origin", "said"),
    [(Origin.WORDS, " (blocks_to_swap 5 was set by its source)"), (Origin.MACHINE, ""), (None, "")],
)
def test_what_a_person_chose_is_changed_too_and_named(origin: Origin | None, said: str) -> None:
    (high, low) = with_settings(PLAN.recipe, blocks_to_swap=5).experts
    sources = {} if origin is None else {"blocks_to_swap": Source(origin=origin, text="its source")}
    plan = replace(PLAN, recipe=replace(PLAN.recipe, experts=(replace(high, sources=sources), low)))
    move = retry.next_move(plan, job(attempt(1, OOM)), of(OOM), steps_made=0)
    assert move is not None
    assert move.changes == {"blocks_to_swap": 10}
    assert move.why == f"out of GPU memory, next: 10 of 40 blocks are kept in RAM{said}"


def test_a_ladder_reads_the_settings_of_its_own_expert() -> None:
    plan = replace(PLAN, recipe=with_settings(PLAN.recipe, Expert.LOW, blocks_to_swap=30))
    move = retry.next_move(plan, job(attempt(1, OOM)), of(OOM), steps_made=0)
    assert move is not None
    assert move.changes == {"blocks_to_swap": 20}


@pytest.mark.parametrize("cause", [Cause.SETTING, Cause.ENVIRONMENT, Cause.NO_GPU, Cause.DRIVER, Cause.HUB_REFUSED])
def test_what_fails_the_same_way_is_not_repeated_and_said_so(cause: Cause) -> None:
    assert retry.next_move(PLAN, job(attempt(1, cause)), of(cause), steps_made=500) is None
    assert retry.another_attempt(of(cause)) is retry.AnotherAttempt.CANNOT_HELP
    assert retry.resuming_can_help(of(cause)) is (cause is not Cause.SETTING)


@given(st.sampled_from(Cause))
def test_what_is_said_of_another_attempt_is_what_happens(cause: Cause) -> None:
    tried = retry.next_move(PLAN, job(attempt(1, cause)), of(cause), steps_made=0) is not None
    assert tried is (retry.another_attempt(of(cause)) is not retry.AnotherAttempt.CANNOT_HELP)


def test_the_hubs_time_is_waited_for() -> None:
    limited = replace(of(Cause.HUB), retry_after=57.0)
    move = retry.next_move(PLAN, job(attempt(1, Cause.HUB)), limited, steps_made=0)
    assert move is not None
    assert move.at_least == 57.0
    assert retry.another_attempt(limited) is retry.AnotherAttempt.LATER


def test_a_diagnosis_of_an_old_journal_is_read() -> None:
    text = '{"cause": "unknown", "meaning": "m", "advice": "a", "evidence": null}'
    assert codec.from_json(text, Diagnosis, where="here").retry_after is None

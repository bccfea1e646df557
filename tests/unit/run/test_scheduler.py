"""What a run does next, told as histories in a small world."""

from __future__ import annotations

import json
import random
import signal
from dataclasses import replace

import pytest
from run_world import world

from support.runs import SUPERVISOR, T0, events_of, make_plan
from wan_train.base import codec
from wan_train.base.errors import ExitCode
from wan_train.engine.failures import Cause
from wan_train.recipe.terms import Expert
from wan_train.run.events import DiskLow, Event, RunResumed, StateSaved, StepStarted, StopMode, StopRequested
from wan_train.run.scheduler import Claim, Finish, GiveUp, GpuView, Launch, Release, Stop, decide, why_waiting
from wan_train.run.state import JobState, fold, fold_all, initial

PLAN = make_plan()
CACHED = {"cache-latents": JobState.SUCCEEDED, "cache-text": JobState.SUCCEEDED}


def gpu(number: int, **changes: object) -> GpuView:
    facts = {"claimed": True, "free": True, **changes}
    return GpuView(uuid=f"GPU-{number}", label=f"GPU {number}", **facts)  # type: ignore[arg-type]  # names checked at each call


class TestOneGpuForBothCachings:
    def actions(self, total_gb: int, **changes: object) -> list[object]:
        """Latents are being cached on GPU 0 of this size; what is decided for the text."""
        plan = changes.pop("plan", PLAN)
        state = fold_all(plan, events_of(plan, {"cache-latents": JobState.RUNNING}))  # type: ignore[arg-type]  # a plan
        others = [gpu(1, claimed=False, free=True)] if changes.pop("another_is_free", False) else []
        views = [gpu(0, free=False, total_bytes=total_gb * 10**9, **changes), *others]
        return list(decide(plan, state, views, T0 + 100))  # type: ignore[arg-type]  # a plan

    def test_one_that_has_room(self) -> None:
        assert self.actions(24) == [Launch(step="cache-text", gpu_uuid="GPU-0")]

    def test_one_that_has_none(self) -> None:
        assert not self.actions(16)

    def test_another_one_is_better(self) -> None:
        assert self.actions(24, another_is_free=True) == [Claim(gpu_uuid="GPU-1")]

    def test_clips_take_more(self) -> None:
        clips = replace(PLAN, dataset=replace(PLAN.dataset, has_videos=True))
        assert not self.actions(80, plan=clips)

    def test_whoever_waits_for_its_caches_is_not_launched(self) -> None:
        state = initial(PLAN)
        blocked = {"cache-latents": "looking"}
        launched = decide(PLAN, state, [gpu(0)], T0, blocked)
        assert launched == (Launch(step="cache-text", gpu_uuid="GPU-0"),)
        assert why_waiting(PLAN, state, PLAN.step("cache-latents"), [gpu(0)], T0, blocked=blocked) == "looking"


class TestHistories:
    def test_two_gpus_both_caches_then_both_experts_at_once(self) -> None:
        run = world(2)
        run.play()
        assert [step for step, _ in run.started()] == ["cache-latents", "cache-text", "train-high", "train-low"]
        starts = {event.step: event.at for event in run.events if isinstance(event, StepStarted)}
        assert starts["cache-latents"] == starts["cache-text"]
        assert starts["train-high"] == starts["train-low"]
        assert {uuid for _, uuid in run.started()} == {"GPU-0", "GPU-1"}
        assert run.exit_code is ExitCode.DONE

    def test_one_gpu_everything_in_turn_high_before_low(self) -> None:
        run = world(1)
        run.play()
        assert [step for step, _ in run.started()] == ["cache-latents", "cache-text", "train-high", "train-low"]
        assert run.most_at_once == 1

    def test_four_gpus_two_are_enough(self) -> None:
        run = world(4)
        run.play()
        assert len({uuid for _, uuid in run.started()}) == 2
        assert run.most_at_once == 2

    def test_no_gpu_nothing_starts_and_nothing_ends(self) -> None:
        run = world(0)
        for _ in range(50):
            run.tick()
        assert run.started() == []
        assert not run.state.is_over

    @pytest.mark.parametrize("gpus", [1, 2])
    def test_what_is_tried_again_succeeds(self, gpus: int) -> None:
        run = world(gpus, flaky={"train-high": Cause.OUT_OF_MEMORY, "cache-text": Cause.LOST})
        run.play()
        assert run.exit_code is ExitCode.DONE
        assert [step for step, _ in run.started()].count("train-high") == 2

    def test_a_box_short_of_ram_trains_in_turn(self) -> None:
        run = world(2, flaky={"train-low": Cause.HOST_OUT_OF_MEMORY}, chance=random.Random(1))
        run.play()
        assert run.exit_code is ExitCode.DONE
        assert run.state.one_at_a_time

    def test_a_disk_that_fills_up_ends_the_run_after_the_next_states(self) -> None:
        run = world(2, longest=30, chance=random.Random(3))
        while not any(process.gpu for step, process in run.running.items() if step == "train-low"):
            run.tick()
        run.append(DiskLow(at=run.now, free=10, needed=20))
        run.play()
        assert run.exit_code is ExitCode.NOT_READY

    def test_a_stopped_run_goes_on_and_finishes_what_was_left(self) -> None:
        run = world(1, longest=20)
        for _ in range(30):
            run.tick()
        run.stop()
        run.play()
        done = [step for step, job in run.state.jobs.items() if job.state is JobState.SUCCEEDED]
        run.append(RunResumed(at=run.now))
        before = len(run.started())
        run.play()
        assert run.exit_code is ExitCode.DONE
        assert set(done).isdisjoint(step for step, _ in run.started()[before:])

    @pytest.mark.parametrize(("fails", "other"), [("train-high", "train-low"), ("train-low", "train-high")])
    @pytest.mark.parametrize("gpus", [1, 2])
    def test_a_failed_expert_does_not_stop_the_other(self, fails: str, other: str, gpus: int) -> None:
        run = world(gpus, failing=frozenset({fails}))
        run.play()
        assert run.state.jobs[fails].state is JobState.FAILED
        assert run.state.jobs[other].state is JobState.SUCCEEDED
        assert run.exit_code is ExitCode.PARTLY_FAILED

    @pytest.mark.parametrize("fails", ["cache-latents", "cache-text"])
    def test_without_caches_nothing_is_trained(self, fails: str) -> None:
        run = world(2, failing=frozenset({fails}))
        run.play()
        assert run.state.jobs["train-high"].state is JobState.SKIPPED
        assert run.state.jobs["train-low"].reason == f"{fails} failed"
        assert run.exit_code is ExitCode.TRAINING_FAILED

    def test_both_experts_fail(self) -> None:
        run = world(2, failing=frozenset({"train-high", "train-low"}))
        run.play()
        assert run.exit_code is ExitCode.TRAINING_FAILED

    def test_one_expert_alone(self) -> None:
        run = world(2, plan=make_plan(experts=(Expert.LOW,)))
        run.play()
        assert [step for step, _ in run.started()] == ["cache-latents", "cache-text", "train-low"]
        assert run.exit_code is ExitCode.DONE

    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)]
    )
    @pytest.mark.parametrize("when", [0, 1, 4, 8, 14])
    @pytest.mark.parametrize("mode", list(StopMode))
    def test_a_stop_is_the_exit_code(self, number: int, code: ExitCode, when: int, mode: StopMode) -> None:
        run = world(2, longest=30, chance=random.Random(when))
        for _ in range(when):
            run.tick()
        assert not run.state.is_over
        run.stop(mode, number)
        run.play()
        assert run.exit_code is code
        assert all(job.state in {JobState.STOPPED, JobState.SUCCEEDED} for job in run.state.jobs.values())

    def test_a_stop_that_comes_after_the_last_step_changes_nothing(self) -> None:
        done = {**CACHED, "train-high": JobState.SUCCEEDED, "train-low": JobState.SUCCEEDED}
        state = fold_all(PLAN, events_of(PLAN, done))
        state = fold(state, StopRequested(at=T0 + 9e4, mode=StopMode.NOW, signal=signal.SIGINT))
        assert decide(PLAN, state, (), T0 + 9e4) == (Finish(exit_code=ExitCode.DONE),)


class TestGpus:
    def test_a_free_gpu_is_claimed_before_it_is_used(self) -> None:
        state = initial(PLAN)
        assert decide(PLAN, state, [gpu(0, claimed=False)], T0) == (Claim(gpu_uuid="GPU-0"),)
        assert decide(PLAN, state, [gpu(0, free=False)], T0) == ()
        assert decide(PLAN, state, [gpu(0)], T0) == (Launch(step="cache-latents", gpu_uuid="GPU-0"),)

    def test_only_as_many_as_there_are_steps(self) -> None:
        state = fold_all(PLAN, events_of(PLAN, {**CACHED, "train-high": JobState.SUCCEEDED}))
        actions = decide(PLAN, state, [gpu(number, claimed=False) for number in range(4)], T0)
        assert actions == (Claim(gpu_uuid="GPU-0"),)

    def test_a_gpu_that_an_older_run_waits_for_is_left(self) -> None:
        assert decide(PLAN, initial(PLAN), [gpu(0, claimed=False, first_in_line=False)], T0) == ()

    def test_a_lease_that_nothing_needs_any_more_is_given_back_at_once(self) -> None:
        state = fold_all(
            PLAN,
            events_of(
                PLAN,
                {**CACHED, "train-high": JobState.RUNNING, "train-low": JobState.SUCCEEDED},
                gpus={"train-low": 1},
            ),
        )
        assert decide(PLAN, state, [gpu(0, free=False, busy_because="in use"), gpu(1)], T0) == (
            Release(gpu_uuid="GPU-1"),
        )

    def test_a_lease_is_kept_while_a_step_will_need_it(self) -> None:
        state = fold_all(PLAN, events_of(PLAN, {"cache-latents": JobState.RUNNING, "cache-text": JobState.SUCCEEDED}))
        assert decide(PLAN, state, [gpu(0, free=False, busy_because="in use"), gpu(1)], T0) == ()

    def test_a_gpu_that_somebody_fills_after_our_claim_does_not_keep_us_from_a_free_one(self) -> None:
        state = fold_all(PLAN, events_of(PLAN, {**CACHED, "train-high": JobState.SUCCEEDED}))
        filled = gpu(0, free=False, busy_because="GPU 0: 20.0 of 32.0 GiB in use")
        assert Claim(gpu_uuid="GPU-1") in decide(PLAN, state, [filled, gpu(1, claimed=False)], T0)

    def test_of_two_leases_the_one_on_a_filled_gpu_is_given_back(self) -> None:
        state = fold_all(PLAN, events_of(PLAN, {**CACHED, "train-high": JobState.RUNNING}, gpus={"train-high": 2}))
        filled = gpu(0, free=False, busy_because="GPU 0: 20.0 of 32.0 GiB in use")
        settling = gpu(1, free=False)
        assert decide(PLAN, state, [filled, settling], T0) == (Release(gpu_uuid="GPU-0"),)

    def test_after_a_stop_leases_go_back_and_nothing_is_claimed(self) -> None:
        state = fold_all(PLAN, events_of(PLAN, CACHED))
        state = fold(state, StopRequested(at=T0, mode=StopMode.NOW, signal=signal.SIGTERM))
        actions = decide(PLAN, state, [gpu(0), gpu(1, claimed=False)], T0)
        assert Release(gpu_uuid="GPU-0") in actions
        assert GiveUp(step="train-high", because=None) in actions
        assert not [action for action in actions if isinstance(action, Claim | Launch)]


class TestStopping:
    RUNNING = events_of(PLAN, {**CACHED, "train-high": JobState.RUNNING})

    def stops(self, *events: Event) -> list[Stop]:
        state = fold_all(PLAN, [*self.RUNNING, *events])
        return [action for action in decide(PLAN, state, (), T0) if isinstance(action, Stop)]

    def saved(self, at: float) -> StateSaved:
        return StateSaved(at=at, step="train-high", attempt=1, path="/state", epoch=4)

    def request(self, mode: StopMode, at: float = T0 + 500) -> StopRequested:
        return StopRequested(at=at, mode=mode, signal=signal.SIGINT)

    def test_now(self) -> None:
        assert self.stops(self.request(StopMode.NOW)) == [Stop(step="train-high")]

    def test_later_waits_for_a_state_newer_than_the_request(self) -> None:
        later = self.request(StopMode.AFTER_STATE)
        assert self.stops(self.saved(T0 + 400), later) == []
        assert self.stops(later, self.saved(T0 + 600)) == [Stop(step="train-high")]

    def test_now_overrides_later_but_not_the_other_way_round(self) -> None:
        now, later = self.request(StopMode.NOW), self.request(StopMode.AFTER_STATE)
        assert self.stops(later, now) == [Stop(step="train-high")]
        assert self.stops(now, later) == [Stop(step="train-high")]

    def test_caching_needs_no_state(self) -> None:
        events = events_of(PLAN, {"cache-latents": JobState.RUNNING})
        state = fold_all(PLAN, [*events, self.request(StopMode.AFTER_STATE)])
        assert Stop(step="cache-latents") in decide(PLAN, state, (), T0)


class TestReasons:
    def test_for_people(self) -> None:
        state = fold_all(PLAN, events_of(PLAN, {"cache-latents": JobState.RUNNING}))
        views = [
            gpu(0, free=False, busy_because="GPU 0: 20.0 of 32.0 GiB in use"),
            gpu(1, claimed=False, first_in_line=False),
        ]

        def why(step: str) -> str:
            return why_waiting(PLAN, state, PLAN.step(step), views, T0)

        assert why("train-high") == "waiting for cache-latents and cache-text"
        assert why("cache-text") == "waiting for a GPU: GPU 0 runs cache-latents; GPU 1 is wanted by an older run"

    def test_of_a_retry_until_its_time_has_come(self) -> None:
        run = world(1, flaky={"cache-latents": Cause.UNKNOWN}, longest=1)
        while run.state.jobs["cache-latents"].state is not JobState.BACKOFF:
            run.tick()
        due = run.state.jobs["cache-latents"].not_before
        assert due is not None
        step = run.plan.step("cache-latents")
        assert why_waiting(run.plan, run.state, step, run.views(), due - 3) == "retrying in 3 s: it failed"
        assert why_waiting(run.plan, run.state, step, run.views(), due).startswith("waiting for a GPU")

    def test_without_any_gpu(self) -> None:
        assert "none" in why_waiting(PLAN, initial(PLAN), PLAN.steps[0], (), T0)

    def test_every_waiting_step_has_a_reason(self) -> None:
        run = world(2, chance=random.Random(4))
        for _ in range(60):
            run.stir()
            run.tick()
            for step in run.plan.steps:
                if run.state.jobs[step.id].state is JobState.WAITING:
                    assert why_waiting(run.plan, run.state, step, run.views(), run.now)


def test_a_plan_survives_the_journal_of_another_release() -> None:
    """Keys that a newer release added to an event are ignored by an older one."""
    event = StepStarted(at=T0, step="train-high", attempt=1, gpu_uuid="GPU-0", gpu_label="GPU 0", identity=SUPERVISOR)
    data = {**json.loads(codec.to_json(event, Event)), "of_the_future": [1, 2]}
    assert codec.from_json(json.dumps(data), Event, where="test") == event

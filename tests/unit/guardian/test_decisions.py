"""What the guardian decides, as a function of values, and over long simulated histories of a box."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_train.base.clock import Moment
from wan_train.base.host import ProcessIdentity
from wan_train.guardian.decisions import (
    LATE_UPLOAD_SECONDS,
    MOST_RESTARTS,
    REPORT_SECONDS,
    RESTART_SECONDS,
    SAVING_SECONDS,
    STOPPING_SECONDS,
    UPLOAD_SECONDS,
    Action,
    Box,
    CarryOut,
    GuardedRun,
    HasEnded,
    Keep,
    Other,
    Record,
    Release,
    Restart,
    Saving,
    StopRun,
    Upload,
    decide,
    pause_after,
)
from wan_train.run.box_ending import Ending, Phase
from wan_train.run.duties import Duties, Then
from wan_train.run.events import StopMode

BEGAN = Moment(at=1_800_000_000.0, boot_id="a", uptime=100.0)
LIFE = ProcessIdentity(pid=1, start_time=7, boot_id="a")


def after(seconds: float) -> Moment:
    return replace(BEGAN, at=BEGAN.at + seconds, uptime=BEGAN.uptime + seconds)


def duties(then: Then = Then.STOP, *, uploads: tuple[str, ...] = (), max_hours: float | None = None) -> Duties:
    command = ("poweroff",) if then is Then.COMMAND else ()
    return Duties(began=BEGAN, then=then, command=command, uploads=uploads, max_hours=max_hours)


def over(name: str = "a", given: Duties | None = None, **more: object) -> GuardedRun:
    run = GuardedRun(run_id=name, duties=given or duties(), is_over=True, has_supervisor=False)
    return replace(run, **more)  # type: ignore[arg-type]  # fields by name


def working(name: str = "a", given: Duties | None = None, **more: object) -> GuardedRun:
    return over(name, given, **{"is_over": False, "has_supervisor": True, **more})


def a_box(*runs: GuardedRun, at: float = 3600.0, ending: Ending | None = None, **more: object) -> Box:
    box = Box(now=after(at), runs=runs, ending=ending, first_process=LIFE)
    return replace(box, **more)  # type: ignore[arg-type]  # fields by name


def countdown(box: Box) -> Ending:
    """The ending that a box decides on."""
    [action] = [each for each in decide(box) if isinstance(each, Record)]
    assert action.ending is not None
    return action.ending


def ordered(box: Box) -> CarryOut | None:
    return next((each for each in decide(box) if isinstance(each, CarryOut)), None)


class TestEnding:
    def test_the_countdown_begins_when_the_last_run_is_over(self) -> None:
        ending = countdown(a_box(over()))
        assert (ending.then, ending.phase, ending.grace_seconds) == (Then.STOP, Phase.COUNTDOWN, 300.0)
        assert ending.because == "the last run is over"

    @pytest.mark.parametrize("other", [working("b"), working("b", duties(Then.NOTHING, uploads=("hf:a/b",)))])
    def test_runs_that_work_are_waited_for(self, other: GuardedRun) -> None:
        assert decide(a_box(over(), other)) == []

    def test_runs_without_duties_are_waited_for(self) -> None:
        assert decide(a_box(over(), others=(Other(run_id="b"),))) == []

    def test_the_report_is_waited_for_but_not_for_ever(self) -> None:
        assert decide(a_box(over(has_supervisor=True, settled_seconds=1.0))) == []
        assert countdown(a_box(over(has_supervisor=True, settled_seconds=REPORT_SECONDS)))

    def test_nothing_ends_before_its_grace_is_over(self) -> None:
        ending = countdown(a_box(over()))
        assert decide(a_box(over(), at=3600 + 299, ending=ending)) == []
        carried = ordered(a_box(over(), at=3600 + 300, ending=ending))
        assert carried is not None
        assert carried.ending.phase is Phase.ENDING

    def test_a_wall_clock_that_is_set_shortens_and_lengthens_nothing(self) -> None:
        ending = countdown(a_box(over()))
        for jump in (-1e6, 1e6):
            early = replace(after(3600 + 299), at=BEGAN.at + jump)
            late = replace(after(3600 + 301), at=BEGAN.at + jump)
            assert ordered(replace(a_box(over(), ending=ending), now=early)) is None
            assert ordered(replace(a_box(over(), ending=ending), now=late)) is not None

    def test_a_run_that_begins_in_the_grace_calls_the_countdown_off(self) -> None:
        ending = countdown(a_box(over()))
        assert decide(a_box(over(), working("b"), ending=ending)) == [Record(ending=None)]

    def test_a_person_keeps_the_box_on(self) -> None:
        ending = countdown(a_box(over()))
        [kept] = decide(a_box(over(), ending=ending, kept_by="wan-train status"))
        assert isinstance(kept, Keep)
        assert kept.ending.phase is Phase.CANCELLED
        assert kept.run_ids == ("a",)
        assert decide(a_box(over(kept_at=10.0), ending=kept.ending)) == [Release(run_id="a")]

    def test_it_is_tried_again_with_growing_pauses(self) -> None:
        ending = replace(countdown(a_box(over())), phase=Phase.ENDING, tries=3, tried=after(4000), problem="down")
        assert ordered(a_box(over(), at=4000 + pause_after(3) - 1, ending=ending)) is None
        assert ordered(a_box(over(), at=4000 + pause_after(3), ending=ending)) is not None
        assert pause_after(0) == 5
        assert pause_after(100) == 300

    def test_one_order_at_a_time(self) -> None:
        ending = replace(countdown(a_box(over())), phase=Phase.ENDING, tried=after(4000))
        assert decide(a_box(over(), at=9000, ending=ending, is_acting=True)) == []

    def test_a_box_that_runs_after_its_stop_was_accepted_is_told_again(self) -> None:
        ending = replace(countdown(a_box(over())), phase=Phase.ASKED, tried=after(4000))
        assert ordered(a_box(over(), at=4100, ending=ending)) is None
        assert ordered(a_box(over(), at=4200, ending=ending)) is not None

    @pytest.mark.parametrize(
        "newcomer",
        [
            {"runs": (over("a", has_ended=False), working("b"))},
            {"runs": (over("a"),), "others": (Other(run_id="b"),)},
        ],
    )
    def test_a_run_that_begins_on_a_box_that_is_still_there_is_not_ended_by_the_old_order(
        self, newcomer: dict[str, object]
    ) -> None:
        asked = replace(countdown(a_box(over("a"))), phase=Phase.ASKED, tried=after(4000))
        for seconds in (4002, 5000):
            actions = decide(a_box(at=seconds, ending=asked, **newcomer))
            assert HasEnded(run_ids=("a",)) in actions
            assert Record(ending=None) in actions
            assert not [each for each in actions if isinstance(each, CarryOut)]

    def test_a_box_that_was_stopped_and_came_back_is_not_stopped_again(self) -> None:
        ending = replace(countdown(a_box(over())), phase=Phase.ASKED)
        reborn = replace(LIFE, start_time=9)
        assert decide(a_box(over(), ending=ending, first_process=reborn)) == [
            HasEnded(run_ids=("a",)),
            Record(ending=None),
        ]
        assert decide(a_box(over(has_ended=True), first_process=reborn)) == [Release(run_id="a")]

    @pytest.mark.parametrize("life", [LIFE, ProcessIdentity(pid=1, start_time=8, boot_id="b")])
    def test_the_ending_of_a_run_that_a_person_resumes_afterwards_is_still_owed(self, life: ProcessIdentity) -> None:
        asked = replace(countdown(a_box(over())), phase=Phase.ASKED, tried=after(4000))
        later = after(4060) if life == LIFE else replace(after(4060), boot_id="b", uptime=5.0)
        resumed = working(given=replace(duties(), began=later))
        actions = decide(a_box(resumed, at=4062, ending=asked, first_process=life))
        assert Record(ending=None) in actions
        assert HasEnded(run_ids=("a",)) not in actions

    def test_a_run_from_before_a_reboot_is_not_ended_twice(self) -> None:
        decided = replace(after(4000), boot_id="b", uptime=20.0)
        asked = replace(countdown(a_box(over())), phase=Phase.ASKED, decided=decided, tried=decided)
        back = ProcessIdentity(pid=1, start_time=9, boot_id="c")
        assert HasEnded(run_ids=("a",)) in decide(a_box(over(), at=4100, ending=asked, first_process=back))

    def test_a_countdown_that_a_reboot_interrupts_begins_anew(self) -> None:
        ending = countdown(a_box(over()))
        reborn = replace(LIFE, start_time=9)
        assert decide(a_box(over(), ending=ending, first_process=reborn)) == [Record(ending=None)]
        assert countdown(a_box(over(), first_process=reborn))

    def test_a_command_of_the_users_is_run_once(self) -> None:
        ending = replace(countdown(a_box(over(given=duties(Then.COMMAND)))), phase=Phase.ASKED)
        assert ending.command == ("poweroff",)
        assert decide(a_box(over(given=duties(Then.COMMAND)), ending=ending)) == [
            HasEnded(run_ids=("a",)),
            Record(ending=None),
        ]


class TestWhatBecomesOfTheBox:
    def test_it_is_destroyed_when_everything_is_safe(self) -> None:
        ending = countdown(a_box(over(given=duties(Then.DESTROY, uploads=("hf:a/b",)))))
        assert ending.then is Then.DESTROY

    @pytest.mark.parametrize(
        ("run", "unsafe", "why"),
        [
            (over(given=duties(Then.DESTROY)), (), "a has no upload"),
            (
                over(
                    given=duties(Then.DESTROY, uploads=("hf:a/b",)),
                    unverified=("hf:a/b lacks 1 file",),
                    settled_seconds=UPLOAD_SECONDS,
                ),
                (),
                "hf:a/b lacks 1 file",
            ),
            (over(given=duties(Then.DESTROY, uploads=("hf:a/b",))), ("c was not uploaded",), "c was not uploaded"),
        ],
    )
    def test_else_it_is_stopped_and_says_why(self, run: GuardedRun, unsafe: tuple[str, ...], why: str) -> None:
        ending = countdown(a_box(run, unsafe=unsafe))
        assert ending.then is Then.STOP
        assert ending.because == f"the last run is over; stopped and not destroyed, because {why}"

    def test_a_run_beside_it_that_wants_only_a_stop_wins(self) -> None:
        destroy = over("a", duties(Then.DESTROY, uploads=("hf:a/b",)))
        assert countdown(a_box(destroy, over("b"))).then is Then.STOP

    @pytest.mark.parametrize("then", [Then.STOP, Then.DESTROY])
    def test_a_command_of_another_run_gives_way(self, then: Then) -> None:
        command = over("a", duties(Then.COMMAND, uploads=("hf:a/b",)))
        ending = countdown(a_box(command, over("b", duties(then, uploads=("hf:a/b",)))))
        assert (ending.then, ending.command) == (then, ())

    def test_a_run_without_upload_beside_it_prevents_destruction(self) -> None:
        destroy = over("a", duties(Then.DESTROY, uploads=("hf:a/b",)))
        kept = over("b", duties(Then.NOTHING, uploads=("hf:c/d",)), unverified=("hf:c/d lacks 2 files",))
        late = replace(kept, settled_seconds=1e9)
        assert countdown(a_box(destroy, late)).then is Then.STOP

    def test_uploads_are_waited_for(self) -> None:
        run = over(given=duties(uploads=("hf:a/b",)), upload_pending=True, settled_seconds=60)
        assert decide(a_box(run)) == []
        assert decide(a_box(replace(run, upload_due=True))) == [Upload(run_id="a")]
        assert countdown(a_box(replace(run, settled_seconds=UPLOAD_SECONDS)))

    def test_what_no_upload_can_make_safe_is_not_waited_for(self) -> None:
        run = over(given=duties(uploads=("hf:a/b",)), unverified=("train-high can be resumed from its checkpoint",))
        assert countdown(a_box(run)).then is Then.STOP


class TestCare:
    def test_a_dead_supervisor_is_replaced_within_a_minute(self) -> None:
        dead = working(has_supervisor=False, gone_seconds=RESTART_SECONDS)
        assert decide(a_box(dead)) == [Restart(run_id="a")]
        assert decide(a_box(replace(dead, gone_seconds=1.0))) == []
        assert decide(a_box(replace(dead, gone_seconds=59.0, restarts=MOST_RESTARTS - 1))) == [Restart(run_id="a")]

    def test_one_that_keeps_dying_is_given_up_and_the_box_ends(self) -> None:
        lost = working(has_supervisor=False, gone_seconds=1e6, restarts=MOST_RESTARTS)
        assert countdown(a_box(lost)).because == "a cannot be resumed"

    def test_a_run_with_nothing_owed_is_released(self) -> None:
        assert decide(a_box(over(given=duties(Then.NOTHING)))) == [Release(run_id="a")]
        assert decide(a_box(over(given=duties(Then.NOTHING), has_messages=True))) == []


class TestAtTheLatest:
    LIMITED = duties(max_hours=1.0)

    def test_every_run_is_asked_to_save_first(self) -> None:
        late = working(given=self.LIMITED, elapsed=3600.0)
        assert decide(a_box(late, others=(Other(run_id="b"),))) == [
            StopRun(run_id="a", mode=StopMode.AFTER_STATE),
            StopRun(run_id="b", mode=StopMode.AFTER_STATE),
        ]

    def test_then_at_once(self) -> None:
        saving = Saving(seconds=SAVING_SECONDS, mode=StopMode.AFTER_STATE)
        late = working(given=self.LIMITED, elapsed=3600.0 + SAVING_SECONDS, saving=saving)
        assert decide(a_box(late)) == [StopRun(run_id="a", mode=StopMode.NOW)]

    def test_what_hangs_is_not_waited_for(self) -> None:
        hung = Saving(seconds=SAVING_SECONDS + STOPPING_SECONDS, mode=StopMode.NOW)
        late = working(given=self.LIMITED, elapsed=4400.0, saving=hung)
        ending = countdown(a_box(late, others=(Other(run_id="b", saving=hung),)))
        assert ending.because == "a reached its --max-hours 1"

    def test_a_cancelled_ending_is_wanted_again_at_the_limit(self) -> None:
        kept = over(given=self.LIMITED, elapsed=1800.0, kept_at=1700.0)
        assert decide(a_box(kept)) == []
        assert countdown(a_box(replace(kept, elapsed=3600.0)))
        assert decide(a_box(replace(kept, elapsed=3700.0, kept_at=3650.0))) == [Release(run_id="a")]


# A simulated box: every few seconds a decision, obeyed as a box with faults obeys it.

STEP = 30.0
GRACE = 60.0
HOURS = 1.0
LATEST = HOURS * 3600 + SAVING_SECONDS + STOPPING_SECONDS + max(REPORT_SECONDS, LATE_UPLOAD_SECONDS) + GRACE + 10 * STEP


class SimulatedBox:
    """Runs that end, hang or lose their supervisors, and uploads that are done when they are done."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        then = st.sampled_from([Then.STOP, Then.DESTROY])
        self.runs = [
            GuardedRun(
                run_id=str(number),
                duties=Duties(
                    began=BEGAN, then=data.draw(then), uploads=("hf:a/b",), grace_seconds=GRACE, max_hours=HOURS
                ),
                is_over=False,
                has_supervisor=True,
                unverified=("hf:a/b lacks 1 file",),
            )
            for number in range(data.draw(st.integers(1, 3)))
        ]
        self.ends = [data.draw(st.floats(0, 9000)) for _ in self.runs]
        self.obeys = [data.draw(st.booleans()) for _ in self.runs]
        self.verifies = [data.draw(st.floats(0, 9000)) for _ in self.runs]
        self.accepts = data.draw(st.integers(0, 3))
        self.ending: Ending | None = None
        self.asked_at: dict[str, float] = {}
        self.gone: CarryOut | None = None
        self.time = 0.0

    def round(self) -> list[Action]:
        for number, run in enumerate(self.runs):
            is_over = run.is_over or self.time >= self.ends[number]
            saving = run.saving
            if run.run_id in self.asked_at and saving is not None:
                saving = replace(saving, seconds=self.time - self.asked_at[run.run_id])
                is_over = is_over or (self.obeys[number] and saving.mode is StopMode.NOW)
            self.runs[number] = replace(
                run,
                is_over=is_over,
                has_supervisor=not is_over,
                elapsed=self.time,
                saving=saving,
                unverified=() if is_over and self.time >= self.verifies[number] else run.unverified,
                upload_pending=self.time < self.verifies[number],
                settled_seconds=run.settled_seconds + STEP if run.is_settled else 0.0,
            )
        actions = decide(Box(now=after(self.time), runs=tuple(self.runs), ending=self.ending, first_process=LIFE))
        for action in actions:
            self.obey(action)
        self.time += STEP
        return actions

    def obey(self, action: Action) -> None:
        match action:
            case StopRun(run_id=run_id, mode=mode):
                self.asked_at.setdefault(run_id, self.time)
                number = int(run_id)
                self.runs[number] = replace(self.runs[number], saving=Saving(seconds=0.0, mode=mode))
            case Record(ending=ending):
                self.ending = ending
            case CarryOut(ending=ending):
                self.accepts -= 1
                if self.accepts < 0:
                    self.gone = action
                tries = ending.tries + 1
                self.ending = replace(ending, tries=tries, problem="down")
            case _:
                pass


@given(st.data())
def test_the_box_ends_whatever_hangs_and_no_result_is_lost(data: st.DataObject) -> None:
    box = SimulatedBox(data)
    slack = sum(pause_after(tries) + STEP for tries in range(box.accepts + 1))
    while box.gone is None:
        box.round()
        assert box.time <= LATEST + slack, "it runs beyond its limit"
    ending = box.gone.ending
    assert box.time - STEP - (ending.decided.at - BEGAN.at) >= GRACE
    if ending.then is Then.DESTROY:
        assert all(run.is_over and not run.unverified for run in box.runs)
    if box.time < HOURS * 3600:
        assert all(run.is_over for run in box.runs)

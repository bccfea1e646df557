"""Random graphs of tiny steps in real threads: order, failures, the end, and bugs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_train.base.errors import NotReadyError
from wan_train.provision.download_queue import Lane
from wan_train.provision.executor import Graph, Outcome, failure
from wan_train.provision.status_table import Board, Phase
from wan_train.provision.steps import Finding, State, Step
from wan_train.provision.work import Work

MISSING = Finding(state=State.MISSING, detail="missing", size=10)
READY = Finding(state=State.READY, detail="there")


@dataclass(frozen=True)
class Plan:
    """One step of a random graph; `needs` and `after` are numbers of earlier ones."""

    needs: frozenset[int]
    after: frozenset[int]
    fails: bool
    ready: bool
    in_lane: bool


@dataclass
class Journal:
    """What happened, in order."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str, step: str) -> None:
        with self.lock:
            self.lines.append((what, step))

    def at(self, what: str, step: str) -> int:
        return self.lines.index((what, step))


@st.composite
def plans(draw: st.DrawFn) -> list[Plan]:
    made: list[Plan] = []
    for number in range(draw(st.integers(1, 8))):
        earlier = st.frozensets(st.integers(0, number - 1), max_size=2) if number else st.just(frozenset[int]())
        # A step of the lane needs nothing: it would hold up the line while it waits.
        in_lane = draw(st.booleans())
        made.append(
            Plan(
                needs=frozenset() if in_lane else draw(earlier),
                after=frozenset() if in_lane else draw(earlier),
                fails=draw(st.integers(0, 3)) == 0,
                ready=draw(st.integers(0, 3)) == 0,
                in_lane=in_lane,
            )
        )
    return made


def name(number: int) -> str:
    return f"step{number}"


def step_of(number: int, plan: Plan, lane: Lane, journal: Journal) -> Step:
    done = threading.Event()

    def apply(work: Work) -> None:
        if plan.in_lane:
            with lane.turn(work.step, work.look):
                journal.add("enter", work.step)
                journal.add("leave", work.step)
        journal.add("begin", work.step)
        work.say("at work")
        if plan.fails:
            raise NotReadyError("it fails", hint="Mend it.")
        done.set()
        journal.add("end", work.step)

    return Step(
        id=name(number),
        title=f"Step {number}",
        check=lambda: READY if done.is_set() else MISSING,
        apply=apply,
        needs=tuple(map(name, plan.needs)),
        after=tuple(map(name, plan.after)),
        lane=lane if plan.in_lane else None,
    )


def perform(
    steps: list[Step],
    found: dict[str, Finding],
    *,
    board: Board,
    tick: Callable[[], None] = lambda: None,
    ended: threading.Event | None = None,
) -> Outcome:
    graph = Graph(steps=steps, board=board, logs=Path("unused"), lock=0, tick=tick, ended=ended or threading.Event())
    return graph.perform(found)


@settings(max_examples=60, deadline=None)
@given(plans())
def test_order_and_failures_of_any_graph(made: list[Plan]) -> None:
    lane, journal, board = Lane([name(n) for n, plan in enumerate(made) if plan.in_lane]), Journal(), Board()
    steps = [step_of(number, plan, lane, journal) for number, plan in enumerate(made)]
    found = {name(n): READY if plan.ready else MISSING for n, plan in enumerate(made)}
    outcome = perform(steps, found, board=board)

    expected: dict[str, Phase] = {}
    for number, plan in enumerate(made):
        needed = [expected[name(each)] for each in plan.needs]
        if plan.ready:
            expected[name(number)] = Phase.READY
        elif any(phase not in {Phase.READY, Phase.DONE} for phase in needed):
            expected[name(number)] = Phase.SKIPPED
        else:
            expected[name(number)] = Phase.FAILED if plan.fails else Phase.DONE
    assert {row.id: row.phase for row in board.rows()} == expected
    assert outcome.is_complete
    assert set(outcome.failures) == {step for step, phase in expected.items() if phase is Phase.FAILED}
    assert (failure(steps, outcome.failures) is None) == (not outcome.failures)
    for step, phase in expected.items():
        assert (("begin", step) in journal.lines) == (phase in {Phase.DONE, Phase.FAILED})
        if phase is Phase.DONE:
            assert outcome.found[step].state is State.READY
    for number, plan in enumerate(made):
        if ("begin", name(number)) in journal.lines:
            for before in plan.needs | plan.after:
                if ("end", name(before)) in journal.lines:
                    assert journal.at("end", name(before)) < journal.at("begin", name(number))
    turns = [step for what, step in journal.lines if what in {"enter", "leave"}]
    assert turns[::2] == turns[1::2], "one at a time"
    assert turns[::2] == sorted(turns[::2], key=lambda step: int(step.removeprefix("step"))), "in the lane's order"


@settings(max_examples=20, deadline=None)
@given(plans(), st.data())
def test_the_end_comes_for_all_and_nothing_begins_after_it(made: list[Plan], data: st.DataObject) -> None:
    last = data.draw(st.integers(0, len(made) - 1))
    lane, journal, board = Lane([name(n) for n, plan in enumerate(made) if plan.in_lane]), Journal(), Board()
    steps = [step_of(number, plan, lane, journal) for number, plan in enumerate(made)]
    ended, at_work = threading.Event(), threading.Event()

    def for_ever(work: Work) -> None:
        at_work.set()
        while True:
            work.pause(60)

    steps[last] = Step(id=name(last), title="for ever", check=lambda: MISSING, apply=for_ever)
    found = {step.id: MISSING for step in steps}

    def tick() -> None:
        if at_work.is_set():
            ended.set()

    outcome = perform(steps, found, board=board, tick=tick, ended=ended)
    assert not outcome.is_complete
    phases = {row.id: row.phase for row in board.rows()}
    assert phases[name(last)] is Phase.ENDED
    assert not {Phase.WAITING, Phase.RUNNING} & set(phases.values())


def test_a_bug_in_a_step_surfaces_and_the_others_are_not_lost() -> None:
    other = threading.Event()

    def bug(_work: Work) -> None:
        raise ZeroDivisionError

    steps = [
        Step(id="bug", title="Bug", check=lambda: MISSING, apply=bug),
        Step(id="next", title="Next", check=lambda: READY, apply=lambda _: None, needs=("bug",)),
        Step(id="other", title="Other", check=lambda: READY, apply=lambda _: other.set()),
    ]
    board = Board()
    with pytest.raises(ZeroDivisionError):
        perform(steps, dict.fromkeys(("bug", "next", "other"), MISSING), board=board)
    assert [row.phase for row in board.rows()] == [Phase.FAILED, Phase.SKIPPED, Phase.DONE]
    assert other.is_set()


def test_whoever_prints_may_fail_and_the_steps_are_ended_first() -> None:
    begun = threading.Event()

    def work_until_the_end(work: Work) -> None:
        begun.set()
        work.pause(60)

    def tick() -> None:
        if begun.is_set():
            raise BrokenPipeError

    board = Board()
    step = Step(id="one", title="One", check=lambda: MISSING, apply=work_until_the_end)
    with pytest.raises(BrokenPipeError):
        perform([step], {"one": MISSING}, board=board, tick=tick)
    assert [row.phase for row in board.rows()] == [Phase.ENDED]


def test_a_step_is_believed_only_when_a_second_look_finds_it() -> None:
    step = Step(id="one", title="One", check=lambda: MISSING, apply=lambda _: None)
    outcome = perform([step], {"one": MISSING}, board=Board())
    assert outcome.failures["one"].message == "missing"


def test_waiting_is_told_with_its_reason_and_is_no_work() -> None:
    """First its needs, then its turn; the clock of the board goes by hand."""
    now = [0.0]
    board, lane, seen = Board(clock=lambda: now[0]), Lane(["first", "second"]), threading.Event()

    def first(work: Work) -> None:
        with lane.turn("first", work.look):
            assert seen.wait(60)

    def second(work: Work) -> None:
        with lane.turn("second", work.look):
            now[0] += 5

    steps = [
        Step(id="first", title="First", check=lambda: READY, apply=first, lane=lane),
        Step(id="second", title="Second", check=lambda: READY, apply=second, lane=lane),
        Step(id="third", title="Third", check=lambda: READY, apply=lambda _: None, needs=("second",)),
    ]

    def tick() -> None:
        rows = {row.id: row for row in board.rows()}
        if not seen.is_set() and rows["second"].turn_after == "first" and rows["third"].needs == ("second",):
            assert {rows["second"].phase, rows["third"].phase} == {Phase.WAITING}
            now[0] += 100
            seen.set()

    perform(steps, dict.fromkeys(("first", "second", "third"), MISSING), board=board, tick=tick)
    rows = {row.id: row for row in board.rows()}
    assert rows["second"].seconds(now[0]) == 5
    assert (rows["second"].turn_after, rows["third"].needs) == (None, ())


def test_a_rate_is_that_of_the_last_seconds_and_none_at_first() -> None:
    now = [0.0]
    board = Board(clock=lambda: now[0])
    board.enter("one", "One", Phase.WAITING, total=10**9)
    board.begin("one")
    rates: list[float] = []
    for second in range(32):
        now[0] = float(second)
        board.progress("one", second * 10**6 if second < 20 else 19 * 10**6, 10**9)
        rates.append(board.rows()[0].rate)
    assert rates[1] == 0
    assert rates[2] == rates[19] == pytest.approx(1e6)
    assert rates[31] == 0, "nothing came for ten seconds"
    board.progress("one", 0, 10**9)
    assert board.rows()[0].rate == 0

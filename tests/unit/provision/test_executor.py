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
from wan_train.provision.executor import Graph, Outcome, failure
from wan_train.provision.status_table import Phase, StatusTable
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
        made.append(
            Plan(
                needs=draw(earlier),
                after=draw(earlier),
                fails=draw(st.integers(0, 3)) == 0,
                ready=draw(st.integers(0, 3)) == 0,
            )
        )
    return made


def name(number: int) -> str:
    return f"step{number}"


def step_of(number: int, plan: Plan, journal: Journal) -> Step:
    done = threading.Event()

    def apply(work: Work) -> None:
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
    )


def perform(
    steps: list[Step],
    found: dict[str, Finding],
    *,
    table: StatusTable,
    tick: Callable[[], None] = lambda: None,
    ended: threading.Event | None = None,
) -> Outcome:
    graph = Graph(steps=steps, table=table, logs=Path("unused"), lock=0, tick=tick, ended=ended or threading.Event())
    return graph.perform(found)


@settings(max_examples=60)
@given(plans())
def test_order_and_failures_of_any_graph(made: list[Plan]) -> None:
    journal, table = Journal(), StatusTable()
    steps = [step_of(number, plan, journal) for number, plan in enumerate(made)]
    found = {name(n): READY if plan.ready else MISSING for n, plan in enumerate(made)}
    outcome = perform(steps, found, table=table)

    expected: dict[str, Phase] = {}
    for number, plan in enumerate(made):
        needed = [expected[name(each)] for each in plan.needs]
        if plan.ready:
            expected[name(number)] = Phase.READY
        elif any(phase not in {Phase.READY, Phase.DONE} for phase in needed):
            expected[name(number)] = Phase.SKIPPED
        else:
            expected[name(number)] = Phase.FAILED if plan.fails else Phase.DONE
    assert {row.id: row.phase for row in table.rows()} == expected
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


@settings(max_examples=20)
@given(plans(), st.data())
def test_the_end_comes_for_all_and_nothing_begins_after_it(made: list[Plan], data: st.DataObject) -> None:
    last = data.draw(st.integers(0, len(made) - 1))
    journal, table = Journal(), StatusTable()
    steps = [step_of(number, plan, journal) for number, plan in enumerate(made)]
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

    outcome = perform(steps, found, table=table, tick=tick, ended=ended)
    assert not outcome.is_complete
    phases = {row.id: row.phase for row in table.rows()}
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
    table = StatusTable()
    with pytest.raises(ZeroDivisionError):
        perform(steps, dict.fromkeys(("bug", "next", "other"), MISSING), table=table)
    assert [row.phase for row in table.rows()] == [Phase.FAILED, Phase.SKIPPED, Phase.DONE]
    assert other.is_set()


def test_whoever_prints_may_fail_and_the_steps_are_ended_first() -> None:
    begun = threading.Event()

    def work_until_the_end(work: Work) -> None:
        begun.set()
        work.pause(60)

    def tick() -> None:
        if begun.is_set():
            raise BrokenPipeError

    table = StatusTable()
    step = Step(id="one", title="One", check=lambda: MISSING, apply=work_until_the_end)
    with pytest.raises(BrokenPipeError):
        perform([step], {"one": MISSING}, table=table, tick=tick)
    assert [row.phase for row in table.rows()] == [Phase.ENDED]


def test_a_step_is_believed_only_when_a_second_look_finds_it() -> None:
    step = Step(id="one", title="One", check=lambda: MISSING, apply=lambda _: None)
    outcome = perform([step], {"one": MISSING}, table=StatusTable())
    assert outcome.failures["one"].message == "missing"


def test_waiting_has_its_reason_and_is_no_work() -> None:
    """The clock of the table is moved by hand."""
    now = [0.0]
    table, seen = StatusTable(clock=lambda: now[0]), threading.Event()

    def first(_work: Work) -> None:
        assert seen.wait(60)

    def second(_work: Work) -> None:
        now[0] += 5

    steps = [
        Step(id="first", title="First", check=lambda: READY, apply=first),
        Step(id="second", title="Second", check=lambda: READY, apply=second, after=("first",)),
        Step(id="third", title="Third", check=lambda: READY, apply=lambda _: None, needs=("second",)),
    ]

    def tick() -> None:
        rows = {row.id: row for row in table.rows()}
        if not seen.is_set() and rows["second"].needs == ("first",) and rows["third"].needs == ("second",):
            assert {rows["second"].phase, rows["third"].phase} == {Phase.WAITING}
            now[0] += 100
            seen.set()

    perform(steps, dict.fromkeys(("first", "second", "third"), MISSING), table=table, tick=tick)
    rows = {row.id: row for row in table.rows()}
    assert rows["second"].seconds(now[0]) == 5
    assert rows["third"].needs == ()

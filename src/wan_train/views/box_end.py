"""The end of the box as text: the plan, the countdown, the result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

from wan_train.base.units import duration
from wan_train.run.box_ending import END_WORDS, Ending, Phase
from wan_train.run.duties import Duties, Then
from wan_train.views.formatting import safe
from wan_train.views.lines import Line, Span, line
from wan_train.views.model import RunView

PLAN_KEYS = line(Span("d", "bold"), Span(" leave", "dim"))
KEEP_KEYS = line(Span("k", "bold"), Span(" keep the box on   ", "dim"), Span("d", "bold"), Span(" leave", "dim"))


def box_end_texts(view: RunView) -> Iterator[tuple[str, str]]:
    """Sentences with their styles; none if nothing is to end the box."""
    ending = view.ending
    if ending is None:
        if view.duties is not None and view.duties.then is not Then.NOTHING and view.awaits_ending:
            yield _plan(view, view.duties), "dim"
        return
    because = safe(ending.because)
    match ending.phase:
        case Phase.COUNTDOWN:
            yield f"{_will_be_ended(ending.then)} in {duration(view.ending_seconds)}: {because}.", "bold yellow"
        case Phase.ENDING if ending.problem is None:
            yield f"The box is being {END_WORDS[ending.then].ended}: {because}.", "bold yellow"
        case Phase.ENDING:
            yield f"The box is still on, and costs money: {safe(ending.problem or '')}.", "red"
            yield "Trying again.", ""
            if ending.by_hand is not None:
                yield f"By hand: {safe(ending.by_hand)}", ""
        case Phase.ASKED:
            ordered = END_WORDS[ending.then].ordered
            yield f"{ordered[0].upper()}{ordered[1:]}: {because}.", "yellow"
        case Phase.CANCELLED:
            yield f"The box stays on, and costs money: {safe(ending.cancelled_by or 'a person')} cancelled its end.", ""
            if ending.by_hand is not None:
                yield f"By hand: {safe(ending.by_hand)}", ""
        case _:
            assert_never(ending.phase)


def footer(view: RunView) -> Line:
    """The keys of a view whose run is over."""
    can_keep = view.ending is not None and view.ending.phase in {Phase.COUNTDOWN, Phase.ENDING}
    return KEEP_KEYS if can_keep else PLAN_KEYS


def cancelled_texts(ending: Ending, seconds: float) -> tuple[str, str]:
    """Messages for a person whose command cancelled the end of the box."""
    when = f" in {duration(seconds)}" if seconds else ""
    return (
        f"The box was to be {END_WORDS[ending.then].ended}{when}.",
        "Your command cancelled that: it stays on, and costs money.",
    )


def box_question(then: Then) -> str:
    """The question for a person who stops a run by hand."""
    match then:
        case Then.STOP:
            return "Also stop the box, once its last run is over?"
        case Then.DESTROY:
            return "Also destroy the box, once its last run is over and everything is uploaded?"
        case Then.COMMAND | Then.NOTHING:
            return "Also run your command that ends the box, once its last run is over?"
        case _:
            assert_never(then)


def plan_of_the_end(duties: Duties) -> str:
    """The planned end of the box, without a subject: `destroyed 5 min after its last run`."""
    when = f"{duration(duties.grace_seconds)} after its last run" if duties.grace_seconds else "after its last run"
    return f"{END_WORDS[duties.then].ended} {when}{_latest(duties)}"


def _plan(view: RunView, duties: Duties) -> str:
    if not view.state.is_over:
        return f"The box will be {plan_of_the_end(duties)}."
    when = "once its last run is over and uploads are verified" if duties.uploads else "once its last run is over"
    return f"{_will_be_ended(duties.then)} {when}{_latest(duties)}."


def _latest(duties: Duties) -> str:
    return f", at the latest {duration(duties.max_hours * 3600)} after the start" if duties.max_hours else ""


def _will_be_ended(then: Then) -> str:
    return f"The box will be {END_WORDS[then].ended}"

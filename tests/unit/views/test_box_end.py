"""What becomes of the box: on the screen, in JSON, and to a person whose command keeps it on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.runs import make_plan, make_view
from wan_train.base.clock import Moment
from wan_train.run.box_ending import Ending, Phase
from wan_train.run.duties import Duties, Then
from wan_train.views.box_end import KEEP_KEYS, PLAN_KEYS, box_end_texts, cancelled_texts, footer
from wan_train.views.json_records import run_json
from wan_train.views.model import RunView

NOW = 1_800_000_000.0
BEGAN = Moment(at=NOW, boot_id="a", uptime=100.0)
ENDING = Ending(
    then=Then.STOP,
    runs=("cat",),
    because="the last run is over",
    decided=BEGAN,
    grace_seconds=300.0,
    due=NOW + 300,
    by_hand="vastai stop instance 7",
)


def view(ending: Ending | None = None, duties: Duties | None = None) -> RunView:
    plain = make_view(make_plan(), [])
    return replace(plain, ending=ending, ending_seconds=272.0, duties=duties, awaits_ending=True)


def texts(shown: RunView) -> str:
    return " ".join(text for text, _ in box_end_texts(shown))


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (ENDING, "The box will be stopped in 4 min 32 s: the last run is over."),
        (replace(ENDING, then=Then.DESTROY), "The box will be destroyed in 4 min 32 s: the last run is over."),
        (replace(ENDING, phase=Phase.ENDING), "The box is being stopped: the last run is over."),
        (
            replace(ENDING, phase=Phase.ENDING, problem="Vast cannot be reached"),
            (
                "The box is still on, and costs money: Vast cannot be reached. Trying again. "
                "By hand: vastai stop instance 7"
            ),
        ),
        (replace(ENDING, phase=Phase.ASKED), "The box was told to stop: the last run is over."),
        (
            replace(ENDING, phase=Phase.CANCELLED, cancelled_by="the key k"),
            "The box stays on, and costs money: the key k cancelled its end. By hand: vastai stop instance 7",
        ),
    ],
)
def test_each_phase_is_said(ending: Ending, said: str) -> None:
    assert texts(view(ending)) == said


@pytest.mark.parametrize(
    ("duties", "said"),
    [
        (Duties(began=BEGAN, then=Then.STOP), "The box will be stopped 5 min after its last run."),
        (
            Duties(began=BEGAN, then=Then.COMMAND, command=("poweroff",), grace_seconds=0, max_hours=6),
            "The box will be ended by your command after its last run, at the latest 6 h after the start.",
        ),
        (Duties(began=BEGAN, uploads=("hf:a/b",)), ""),
        (None, ""),
    ],
)
def test_the_plan_is_said_while_the_run_works(duties: Duties | None, said: str) -> None:
    assert texts(view(None, duties)) == said


def test_only_a_countdown_can_be_cancelled() -> None:
    assert footer(view(ENDING)) == KEEP_KEYS
    assert footer(view(replace(ENDING, phase=Phase.ASKED))) == PLAN_KEYS
    assert footer(view(None, Duties(began=BEGAN, then=Then.STOP))) == PLAN_KEYS


def test_the_same_in_json() -> None:
    found = run_json(view(ENDING), NOW)["box_end"]
    assert found["phase"] == "countdown"
    assert found["seconds"] == 272.0
    planned = run_json(view(None, Duties(began=BEGAN, then=Then.DESTROY, uploads=("hf:a/b",))), NOW)["box_end"]
    assert (planned["then"], planned["phase"], planned["seconds"]) == ("destroy", "planned", None)
    assert run_json(view(), NOW)["box_end"] is None


def test_whoever_keeps_a_box_is_told_what_it_costs() -> None:
    texts = cancelled_texts(ENDING, 272.0)
    assert texts == (
        "The box was to be stopped in 4 min 32 s.",
        "Your command cancelled that: it stays on, and costs money.",
    )
    assert all(len(text) < 80 for text in texts), "no word is broken at the edge of a terminal"

"""The end of a box as it is asked for: of Vast on loopback, and by a command of the user's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from support.vast_api import Mood, VastApi, vast_api
from wan_train.base.clock import Moment
from wan_train.box.vast import Vast
from wan_train.guardian.effects import end_box
from wan_train.run.box_ending import Ending
from wan_train.run.duties import Then

ENDING = Ending(
    then=Then.STOP,
    runs=("cat",),
    because="the last run is over",
    decided=Moment(at=1_800_000_000.0, boot_id="a", uptime=100.0),
    grace_seconds=0.0,
    due=1_800_000_000.0,
)


@pytest.fixture
def api() -> Iterator[VastApi]:
    with vast_api() as api:
        yield api


def end(ending: Ending, api: VastApi | None, **more: str) -> str:
    vast = Vast.of_this_box(api.environ(**more), api.address) if api is not None else None
    return end_box(ending, vast, proof_seconds=10.0, pause=lambda _: None)


@pytest.mark.parametrize("then", [Then.STOP, Then.DESTROY])
def test_the_state_proves_it(api: VastApi, then: Then) -> None:
    assert end(replace(ENDING, then=then), api) == ""
    assert not api.is_running
    assert api.destroyed is (then is Then.DESTROY)
    assert api.asked[-1].startswith("GET")


def test_an_accepted_order_that_does_nothing_is_a_problem(api: VastApi) -> None:
    api.mood = Mood.DEAF
    assert end(ENDING, api) == "Vast accepted the order (stop), but the box still runs"
    assert len(api.asked) > 2, "the proof was asked for more than once"


@pytest.mark.parametrize(
    ("mood", "told"),
    [(Mood.BREAKS, "status 500"), (Mood.BUSY, "status 429"), (Mood.REFUSES, "Vast refused"), (Mood.HTML, "not JSON")],
)
def test_a_provider_in_trouble_is_named(api: VastApi, mood: Mood, told: str) -> None:
    api.mood = mood
    assert told in end(ENDING, api)
    assert api.is_running


def test_a_refused_key_is_named_and_not_quoted(api: VastApi) -> None:
    said = end(ENDING, api, CONTAINER_API_KEY="wrong-key")
    assert "refused this box's key" in said
    assert "wrong-key" not in said


def test_a_box_without_a_key(api: VastApi) -> None:
    assert end(ENDING, None) == "this box has no Vast API key: CONTAINER_ID or CONTAINER_API_KEY is missing"
    assert api.asked == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-c", ""], ""),
        (["-c", "import sys; print('no permission'); sys.exit(3)"], f"{sys.executable} failed: no permission"),
        (["-c", "import sys; sys.exit(3)"], f"{sys.executable} failed: exit code 3"),
    ],
)
def test_a_command_of_the_users(words: list[str], said: str) -> None:
    assert end(replace(ENDING, then=Then.COMMAND, command=(sys.executable, *words)), None) == said


def test_a_command_that_is_gone() -> None:
    assert "no-such-program" in end(replace(ENDING, then=Then.COMMAND, command=("no-such-program",)), None)

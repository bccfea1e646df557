from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from support.runs import OUT_OF_MEMORY, T0, events_of, make_gpus, make_plan, make_view
from views.scenes import SCENES, one_failed, told
from views.support import shown
from wan_train.base.text import visible
from wan_train.cli.keys import Page
from wan_train.recipe.terms import EngineKind
from wan_train.run.curves import Curve, LossSource, Point, Segment
from wan_train.run.events import Exited, RetryScheduled, StepExited, StepStarted
from wan_train.run.live import Live
from wan_train.run.plan import Devices
from wan_train.run.progress import Progress
from wan_train.run.state import JobState
from wan_train.upload.destinations import parse_all
from wan_train.upload.status import Stage, TargetStatus
from wan_train.views import overlays
from wan_train.views.dashboard import run_lines, screen
from wan_train.views.lines import plain, to_rich
from wan_train.views.losses import losses_of
from wan_train.views.model import LogEnd, Pace

STEPS = ("cache-latents", "cache-text", "train-high", "train-low")


@pytest.mark.parametrize("height", range(1, 30))
def test_a_low_screen_keeps_the_steps_and_the_way_out(height: int) -> None:
    view, now = one_failed()
    lines = plain(screen(view, now, 80, height=height)).splitlines()
    assert len(lines) <= height
    if height >= 6:
        text = "\n".join(lines)
        assert all(step in text for step in STEPS)
        assert lines[-1].startswith("d leave")


def test_foreign_text_cannot_act_on_the_terminal_or_show_secrets() -> None:
    plan = make_plan(title="[red]x[/red]\x1b[2J\u202egnp")
    found = replace(OUT_OF_MEMORY, meaning="the hub refused hf_" + "a" * 30)
    events = events_of(plan, {"cache-latents": JobState.FAILED}, diagnosis=found)
    text = shown(run_lines(make_view(plan, events), T0 + 100), 120)
    assert "[red]x[/red]\\x1b[2J\\u202egnp" in text
    assert "the hub refused [hidden]" in text
    assert "\x1b" not in text


progresses = st.builds(
    Progress,
    stage=st.none() | st.text(max_size=40),
    epoch=st.none() | st.integers(0, 10**6),
    epochs=st.none() | st.integers(0, 10**6),
    step=st.none() | st.integers(0, 10**9),
    steps=st.none() | st.integers(0, 10**9),
    loss=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    loss_is_finite=st.booleans(),
    seconds_per_step=st.none() | st.floats(0, 1e6),
    eta_seconds=st.none() | st.floats(0, 1e12),
    cached=st.none() | st.integers(0, 10**6),
)
words = st.text(max_size=120)
lives = st.builds(
    Live,
    at=st.floats(T0 - 1e5, T0 + 1e5),
    gpus=st.sampled_from([(), make_gpus(used=(27, 3)), make_gpus(devices=Devices.CPU_SLOTS)]),
    gpu_problem=st.none() | words,
    progress=st.dictionaries(st.sampled_from(STEPS), progresses),
    waiting=st.dictionaries(st.sampled_from(STEPS), words),
    disk_free_bytes=st.none() | st.integers(0, 10**15),
)


numbers = st.floats(allow_nan=True, allow_infinity=True)
curves = st.builds(
    lambda values, source: Curve(
        segments=(
            Segment(
                attempt=1,
                source=source,
                points=tuple(Point(step=step, loss=loss) for step, loss in enumerate(values, start=1)),
            ),
        )
    ),
    st.lists(numbers, max_size=300),
    st.sampled_from(LossSource),
)
paces = st.builds(Pace, to_load=st.floats(0, 1e9), per_step=st.none() | st.floats(0, 1e9))


@settings(max_examples=80)
@given(
    title=words,
    jobs=st.dictionaries(st.sampled_from(STEPS), st.sampled_from(JobState)),
    live=st.none() | lives,
    width=st.integers(40, 200),
    height=st.none() | st.integers(1, 50),
    alive=st.booleans(),
    exit_code=st.sampled_from([None, 0, 4, 5, 130, 143]),
    engine=st.sampled_from(EngineKind),
    said=words,
    ascii_only=st.booleans(),
    losses=st.dictionaries(st.sampled_from(STEPS[2:]), curves),
    known=st.dictionaries(st.sampled_from(STEPS[2:]), paces),
    page=st.sampled_from(Page),
)
def test_whatever_happens_every_line_fits(
    *,
    title: str,
    jobs: dict[str, JobState],
    live: Live | None,
    width: int,
    height: int | None,
    alive: bool,
    exit_code: int | None,
    engine: EngineKind,
    said: str,
    ascii_only: bool,
    losses: dict[str, Curve],
    known: dict[str, Pace],
    page: Page,
) -> None:
    plan = make_plan(title=title, engine=engine, run_dir=Path("/workspace/runs/20251122-120000-" + "mylora" * 5))
    found = replace(OUT_OF_MEMORY, meaning=said, advice=said, evidence=said)
    events = events_of(plan, jobs, diagnosis=found, exit_code=exit_code, epochs={"train-low": 3})
    view = make_view(plan, events, live=live, supervisor_alive=alive, tails={"train-low": (said, "x" * 300)})
    drawn = {step: found for step, curve in losses.items() if (found := losses_of(curve, 24)) is not None}
    view = replace(told(view, events), losses=drawn, paces=known)
    match page:
        case Page.RUN:
            lines = screen(view, T0 + 5000, width, height=height)
        case Page.STOP:
            lines = screen(view, T0 + 5000, width, height=height, footer=overlays.stop_question(view, T0 + 5000, width))
        case Page.LOGS:
            log = LogEnd(step="train-low", path=Path("/x" * 80), lines=(visible(said), "y" * 300))
            lines = overlays.logs_page([log, log], width, height or 24)
        case Page.HELP:
            lines = overlays.help_page(view, width, height or 24)
    assert height is None or len(lines) <= height
    for line in lines:
        text = to_rich(line, width, ascii_only=ascii_only).plain
        assert cell_len(text) <= width
        assert "\n" not in text
        assert visible(text) == text
        assert text.isascii() or not ascii_only


def test_a_training_that_loads_again_shows_the_time_of_this_attempt() -> None:
    plan = make_plan()
    events = events_of(plan, {"cache-latents": JobState.SUCCEEDED, "train-high": JobState.BACKOFF})
    first = events_of(plan, {"train-high": JobState.RUNNING})[-1]
    assert isinstance(first, StepStarted)
    hour = 3600.0
    retry = RetryScheduled(
        at=first.at + hour,
        step="train-high",
        attempt=1,
        diagnosis=OUT_OF_MEMORY,
        not_before=first.at + hour,
        why="",
        changes={},
    )
    ended = StepExited(at=first.at + hour, step="train-high", attempt=1, exit=Exited(code=1))
    events += [first, ended, retry, replace(first, at=first.at + hour, attempt=2)]
    live = Live(at=first.at + hour + 5, gpus=make_gpus(), progress={"train-high": Progress(stage="loading the DiT")})
    text = shown(run_lines(make_view(plan, events, live=live), first.at + hour + 5), 100)
    assert "loading the DiT …  5 s" in text


def test_the_stop_question_shows_the_time_until_the_next_checkpoint() -> None:
    view, now = SCENES["both_running"]()
    asked = "".join(span.text for span in overlays.stop_question(view, now, 100).spans)
    # States are saved every 4 epochs of 24 steps; the one that waits longer has 48 to go.
    assert asked == "Stop after the next checkpoint, in about 2 min 20 s?  Nothing is lost.  y stop   n continue"
    narrow = "".join(span.text for span in overlays.stop_question(view, now, 60).spans)
    assert narrow == "Stop after the next checkpoint?  y stop   n continue"


def test_the_label_of_uploads_stands_apart_before_there_are_readings() -> None:
    plan = make_plan()
    (target,) = parse_all(["hf:me/cats"])
    view = replace(make_view(plan, events_of(plan, {})), live=None)
    view = replace(view, uploads=(TargetStatus(target=target, stage=Stage.WAITING),))
    assert "upload  hf:me/cats" in shown(run_lines(view, T0), 80)

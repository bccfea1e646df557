"""Every screen as a golden file at 60 and 120 columns. WAN_TRAIN_UPDATE_GOLDEN=1 writes the files anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import RenderableType

from support.runs import T0, events_of, make_plan, make_view
from views.datasets import CONFIG, PICTURES, check_of, inventory_of, mixed, problem
from views.scenes import AT_START, CACHED, DONE, ENDED, FAILED, NOW, SCENES, finished, rehearsal, summary_plan, waiting
from views.support import check_golden, shown
from wan_train.dataset.layout import layout_of
from wan_train.dataset.model import ProblemKind, Severity
from wan_train.run.events import (
    CachesDisturbed,
    CheckpointKept,
    EpochEnded,
    Event,
    StepSkipped,
    StepStarted,
    StopMode,
    StopRequested,
    SupervisorStarted,
)
from wan_train.views import overlays
from wan_train.views.dashboard import run_lines, screen
from wan_train.views.dataset_tables import problem_lines, trained_lines
from wan_train.views.event_lines import event_line
from wan_train.views.lines import Line, Screenful
from wan_train.views.model import LogEnd
from wan_train.views.plan_details import plan_details
from wan_train.views.result import result_lines, runs_lines, status_lines
from wan_train.views.summary import plan_lines

TALL = 60


def page(lines: Callable[[int], tuple[Line, ...]]) -> Callable[[int], RenderableType]:
    return lambda width: Screenful(lambda _: lines(width))


def live_screen(name: str) -> Screenful:
    view, now = SCENES[name]()
    return Screenful(lambda width: screen(view, now, width, height=TALL))


def problems() -> RenderableType:
    found = [
        problem(PICTURES / f"{number}.png", "is 90 x 90 pixels", severity=Severity.NOTE, fix="Use larger pictures")
        for number in range(7)
    ]
    found += [
        replace(
            problem(PICTURES / "1.png", "has no caption", severity=Severity.STOPS), kind=ProblemKind.MISSING_CAPTION
        ),
        replace(
            problem(CONFIG, "is 'x'", fix="Use a number"), kind=ProblemKind.WRONG_VALUE, key="datasets[0].batch_size"
        ),
        replace(
            problem(PICTURES / "2.jpg", "is rotated", fix="--fix turns it"), kind=ProblemKind.ROTATED, is_fixable=True
        ),
        replace(
            problem(PICTURES / "3.jpg", "is mirrored", fix="--fix flips it"), kind=ProblemKind.ROTATED, is_fixable=True
        ),
    ]
    return problem_lines(check_of(inventory_of([(960, 960)] * 3), *found))


def trained(*, stops: bool = False) -> RenderableType:
    return trained_lines(layout_of(mixed(), epochs=100, accumulation=1, image_to_video=False), stops=stops)


LOGS = [LogEnd(step="train-high", path=Path("/workspace/runs/x/train-high/1/output.log"), lines=("a", "b" * 200))]
SCREENS: dict[str, Callable[[int], RenderableType]] = {
    **{f"dashboard_{name}": lambda _, name=name: live_screen(name) for name in SCENES},
    **{f"result_{name}": lambda _, view=view: result_lines(view()) for name, view in ENDED.items()},
    **{f"status_{name}": lambda _, view=view: status_lines(view()) for name, view in ENDED.items()},
    "status_waiting": lambda _: run_lines(*waiting()),
    "help": page(lambda width: overlays.help_page(waiting()[0], width, 24)),
    "logs": page(lambda width: overlays.logs_page(LOGS, width, 12)),
    "runs": lambda _: runs_lines([finished()[0], rehearsal()[0], waiting()[0]], NOW),
    "summary": lambda _: plan_lines(summary_plan(), AT_START),
    "details": lambda _: plan_details(summary_plan(), AT_START),
    "problems": lambda _: problems(),
    "no_problems": lambda _: problem_lines(check_of(inventory_of([(960, 960)]))),
    "trained": lambda _: trained(),
    "trained_blocked": lambda _: trained(stops=True),
}


@pytest.mark.parametrize("width", [60, 120])
@pytest.mark.parametrize("name", SCREENS)
def test_screen(name: str, width: int) -> None:
    check_golden(f"{name}_{width}", shown(SCREENS[name](width), width, soft_wrap=True))


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("name", SCREENS)
def test_only_what_is_to_be_copied_is_wider_than_the_terminal(name: str, width: int) -> None:
    for line in shown(SCREENS[name](width), width, soft_wrap=True).splitlines():
        assert len(line) <= width or any(sign in line for sign in ("/", "wan-train ", "20251122-120000"))


@pytest.mark.parametrize("name", SCENES)
def test_ascii_keeps_every_column(name: str) -> None:
    fancy, simple = (shown(drawn, 80) for drawn in (live_screen(name), live_screen(name).in_ascii()))
    assert simple.isascii()
    assert [len(line) for line in simple.splitlines()] == [len(line) for line in fancy.splitlines()]


def test_event_lines() -> None:
    plan = make_plan()
    jobs = {**CACHED, "train-high": FAILED, "train-low": DONE}
    events: list[Event] = events_of(plan, jobs, gpus={"train-low": 1}, epochs={"train-low": 3}, exit_code=5)
    begun = next(event for event in events if isinstance(event, SupervisorStarted))
    started = next(event for event in events if isinstance(event, StepStarted) and event.step == "train-high")
    events[-1:-1] = [
        replace(begun, at=T0 + 3700),
        replace(started, at=T0 + 3701, attempt=2),
        EpochEnded(at=T0 + 3702, step="train-high", attempt=2, epoch=1, loss=None),
        CheckpointKept(at=T0 + 3703, step="train-high", path="/runs/a/x-000020.safetensors", epoch=20),
        CachesDisturbed(at=T0 + 3704, step="cache-text", what="a_wan_te.safetensors is gone"),
        StopRequested(at=T0 + 3705, mode=StopMode.AFTER_STATE, signal=15),
        StepSkipped(at=T0 + 3706, step="train-low", reason="cache-text failed"),
    ]
    view = make_view(plan, events)
    lines = [line for event in events if (line := event_line(event, view)) is not None]
    check_golden("event_lines", "".join(f"{line}\n" for line in lines))
